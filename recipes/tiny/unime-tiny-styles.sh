# Trains a tiny backbone with a convolutional tower, and UniME on it, on the drawings of four artists (`make styles`).
# The same command resumes where it was stopped, exactly. Seed 42. Usage: bash recipes/tiny/unime-tiny-styles.sh [folder]
set -euo pipefail
export OMP_NUM_THREADS=1
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 # stop glibc from returning memory to the kernel
out=${1:-runs/unime-tiny-styles}
# float32: without AVX-512 or AMX, a CPU multiplies bfloat16 matrices ten times more slowly.
options="--styles openmoji twemoji noto fluent --image_augmentations size outline colours background resolution
    --bf16 false --save_strategy steps --save_steps 50 --save_total_limit 2 --logging_steps 10"

# Runs a script whose output is a folder, unless it is finished.
step() {
    local folder=$out/$1
    shift
    [ -e "$folder/finished" ] && return
    echo "$(date '+%F %T') $folder"
    python "$@" --output_dir "$folder"
    rm -rf "$folder"/checkpoint-*
    touch "$folder/finished"
}

step vision recipes/tiny/vision.py --config recipes/tiny/vision.yaml $options --tower segformer --emoji 0.7 \
    --num_rows 768000 --per_device_train_batch_size 128 --max_steps 6000 --warmup_steps 200
step backbone recipes/tiny/backbone.py --config recipes/tiny/backbone.yaml $options --vision $out/vision \
    --num_rows 256000 --max_steps 4000
step stage1 recipes/stage1.py --config recipes/tiny/stage1.yaml --model_name_or_path $out/backbone --bf16 false \
    --num_rows 20000 --max_steps 150
step stage2 recipes/stage2.py --config recipes/tiny/stage2.yaml $options --model_name_or_path $out/stage1 \
    --transparent true --num_rows 640000 --max_steps 5000 --warmup_steps 150 --learning_rate 1e-3 \
    --hard_negative_warmup_steps 4500
echo "$(date '+%F %T') finished: $out/stage2"
