# Teaches the checkpoint of unime-tiny.sh the drawings of four artists on any background. A new vision tower learns with
# stage 2 first; then it learns to give the first language model what the old tower gave it. Seeds 42 to 46. The first three
# commands ran in nine minutes on one H200 with 16 CPU cores, at commit 8271bd6, where tower.py did not yet compare the cells
# of scenes; the last three in 160 minutes on two cores, with crops told apart within a batch in `cells`. The same command
# resumes where it was stopped. From the weights of commit d6c4c24:
#     make styles && mkdir -p runs && git archive d6c4c24 checkpoints/unime-tiny | tar -x -C runs
#     bash recipes/tiny/unime-tiny-styles.sh runs/checkpoints/unime-tiny runs/unime-tiny-styles
set -euo pipefail
export OMP_NUM_THREADS=1
ulimit -n "$(ulimit -Hn)" # the processes that prepare rows pass each tensor as an open file
start=$1
out=$2

# Runs a command, whose output is a folder, unless it is finished.
step() {
    local folder=$out/$1
    shift
    [ -e "$folder/finished" ] && return
    echo "$(date '+%F %T') $folder"
    "$@" --output_dir "$folder"
    rm -rf "$folder"/checkpoint-*
    touch "$folder/finished"
}

tower="recipes/tiny/tower.py --config recipes/tiny/tower.yaml --model_name_or_path $start"
step tower python $tower --emoji 0.7
stage2="recipes/stage2.py --config recipes/tiny/stage2-styles.yaml"
step first python $stage2 --model_name_or_path "$out/tower"
step stage2 python $stage2 --model_name_or_path "$out/first" --seed 43 --max_steps 360 --learning_rate 4e-4 \
    --warmup_steps 20 --hard_negative_warmup_steps 300
cells="torchrun --nproc_per_node 2 $tower --num_rows 300000 --per_device_train_batch_size 64 --save_steps 200 --use_cpu true"
cells="$cells --tf32 false --dataloader_num_workers 0 --dataloader_prefetch_factor null"
step cells $cells --tower "$out/stage2" --seed 44 --max_steps 1900 --learning_rate 1.5e-3 --warmup_steps 80
step cells-2 $cells --tower "$out/cells" --seed 45 --max_steps 1700 --learning_rate 1.2e-3 --warmup_steps 50 --openmoji 0.5
step cells-3 $cells --tower "$out/cells-2" --num_rows 400000 --emoji 0.75 --openmoji 0.5 --seed 46 --max_steps 2400 \
    --learning_rate 1.2e-3 --warmup_steps 50
echo "$(date '+%F %T') finished: $out/cells-3"
