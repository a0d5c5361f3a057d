# Teaches the checkpoint that unime-tiny.sh publishes to look past backgrounds: its vision tower first, then all of it.
# The same command resumes where it was stopped, exactly. Seed 42. It starts from the weights of commit d6c4c24:
#     git archive d6c4c24 checkpoints/unime-tiny | tar -x -C runs
#     bash recipes/tiny/unime-tiny-backgrounds.sh runs/checkpoints/unime-tiny runs/unime-tiny-backgrounds
set -euo pipefail
export OMP_NUM_THREADS=1
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 # stop glibc from returning memory to the kernel
start=$1
out=$2

# Runs a script on two processes, whose output is a folder, unless it is finished.
step() {
    local folder=$out/$1
    shift
    [ -e "$folder/finished" ] && return
    echo "$(date '+%F %T') $folder"
    torchrun --standalone --nproc_per_node 2 "$@" --output_dir "$folder"
    rm -rf "$folder"/checkpoint-*
    touch "$folder/finished"
}

step tower recipes/tiny/tower.py --config recipes/tiny/tower.yaml --model_name_or_path "$start"
# float32: without AVX-512 or AMX, a CPU multiplies bfloat16 matrices ten times as slowly.
step stage2 recipes/stage2.py --config recipes/tiny/stage2.yaml --model_name_or_path "$out/tower" --bf16 false \
    --image_augmentations background resolution --transparent true --num_rows 24000 --dataset_seed 6 \
    --per_device_train_batch_size 64 --max_steps 180 --learning_rate 3e-4 --hard_negative_warmup_steps 180 \
    --save_steps 50 --save_total_limit 2
echo "$(date '+%F %T') finished: $out/stage2"
