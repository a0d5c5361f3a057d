# Teaches the checkpoint that unime-tiny.sh publishes the drawings of four artists on any background: a new vision tower, then
# stage 2, then more of it. Seeds 42 and 43. Its commands ran on one H200 with 16 CPU cores in nine minutes. The same command
# resumes where it was stopped. From the weights of commit d6c4c24:
#     make styles && git archive d6c4c24 checkpoints/unime-tiny | tar -x -C runs
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

step tower python recipes/tiny/tower.py --config recipes/tiny/tower.yaml --model_name_or_path "$start"
stage2="recipes/stage2.py --config recipes/tiny/stage2-styles.yaml"
step first python $stage2 --model_name_or_path "$out/tower"
step stage2 python $stage2 --model_name_or_path "$out/first" --seed 43 --max_steps 360 --learning_rate 4e-4 \
    --warmup_steps 20 --hard_negative_warmup_steps 300
echo "$(date '+%F %T') finished: $out/stage2"
