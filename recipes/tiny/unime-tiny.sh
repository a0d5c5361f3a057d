# Trains checkpoints/tiny-backbone and the first unime-tiny, a LLaVA, in ten and a half hours on two cores. Seed 42.
# unime-tiny-styles.sh then makes checkpoints/unime-tiny from it.
# The committed checkpoints come from earlier versions of this script: the first two commands ran at commit ece0af9, the
# next two at 8de7f47 (the tower was not trained on positions), the third vision.py at d70cc4a (empty cells had positions
# too), the first 800 steps of stage 2 at d9bb782 (arrangements described by positions only), `warm` before the relation
# tasks, CLIP before both, and everything before `longer3` without the tasks on people.
set -euo pipefail
export OMP_NUM_THREADS=1
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 # stop glibc from returning memory to the kernel
out=runs/unime-tiny
two="torchrun --nproc_per_node 2"
vision="$two recipes/tiny/vision.py --config recipes/tiny/vision.yaml --num_rows 1600000 --per_device_train_batch_size 128"
backbone="$two recipes/tiny/backbone.py --config recipes/tiny/backbone.yaml"

# The vision tower learns words, then the language model learns to describe what the tower sees; then both continue in turn.
python recipes/tiny/vision.py --config recipes/tiny/vision.yaml
$backbone --output_dir runs/tiny-backbone
$vision --model_name_or_path runs/tiny-backbone --emoji 0.8 --learning_rate 7e-4 --warmup_steps 200 --max_steps 5200 \
    --output_dir runs/tiny-vision-2
longer="--num_rows 160000 --learning_rate 7e-4 --warmup_steps 50"
$backbone --model_name_or_path runs/tiny-backbone --vision runs/tiny-vision-2 $longer --seed 43 --max_steps 1200 \
    --output_dir runs/tiny-backbone-2
$vision --model_name_or_path runs/tiny-backbone-2 --emoji 0.75 --seed 43 --learning_rate 7e-4 --warmup_steps 200 \
    --max_steps 4600 --output_dir runs/tiny-vision-3
$backbone --model_name_or_path runs/tiny-backbone-2 --vision runs/tiny-vision-3 $longer --seed 44 --max_steps 1200 \
    --output_dir runs/tiny-backbone-3
$vision --model_name_or_path runs/tiny-backbone-3 --emoji 0.7 --seed 44 --learning_rate 5e-4 --warmup_steps 200 \
    --max_steps 1700 --output_dir runs/tiny-vision-4
$backbone --model_name_or_path runs/tiny-backbone-3 --vision runs/tiny-vision-4 $longer --seed 45 --max_steps 800 \
    --output_dir checkpoints/tiny-backbone

OMP_NUM_THREADS=2 python recipes/stage1.py --config recipes/tiny/stage1.yaml --output_dir $out/stage1 \
    --num_rows 20000 --max_steps 150
# Stage 2 starts with all negatives; the last steps use the hardest negatives or, as a control, all of them.
stage2="recipes/stage2.py --config recipes/tiny/stage2.yaml"
all="--hard_negative_warmup_steps 100000"
$two $stage2 --num_rows 350000 --per_device_train_batch_size 64 --model_name_or_path $out/stage1 --output_dir $out/first \
    --max_steps 2700 --warmup_steps 150 --learning_rate 1e-3 $all --save_steps 200 # stopped after checkpoint-800
$two $stage2 --num_rows 260000 --per_device_train_batch_size 64 --model_name_or_path $out/first/checkpoint-800 \
    --output_dir $out/warm --dataset_seed 2 --max_steps 1950 --warmup_steps 50 --learning_rate 1e-3 $all
python $stage2 --num_rows 300000 --model_name_or_path $out/warm --output_dir $out/longer --dataset_seed 3 --max_steps 3800 \
    --warmup_steps 50 --learning_rate 8e-4 $all
python $stage2 --num_rows 300000 --model_name_or_path $out/longer --output_dir $out/longer2 --dataset_seed 4 --max_steps 3900 \
    --warmup_steps 50 --learning_rate 8e-4 $all
python $stage2 --num_rows 300000 --model_name_or_path $out/longer2 --output_dir $out/longer3 --dataset_seed 5 --max_steps 3900 \
    --warmup_steps 50 --learning_rate 8e-4 $all
last="--num_rows 80000 --model_name_or_path $out/longer3 --dataset_seed 1 --max_steps 300 --warmup_steps 20"
last="$last --learning_rate 1.5e-4" # 5e-4 for 400 steps lost 1.5 points on the mean of all tasks, with both choices
python $stage2 $last --output_dir $out/stage2 --hard_negative_warmup_steps 0
python $stage2 $last --output_dir $out/control $all
# CLIP, on one core.
clip="python recipes/tiny/clip.py --config recipes/tiny/clip.yaml"
$clip --num_rows 600000 --output_dir $out/clip-1 --seconds 4600
$clip --num_rows 600000 --model_name_or_path $out/clip-1 --output_dir $out/clip-2 --dataset_seed 1 --seconds 660 \
    --learning_rate 3e-4 --warmup_steps 30
$clip --num_rows 80000 --model_name_or_path $out/clip-2 --output_dir $out/clip --dataset_seed 1 --seconds 330 \
    --learning_rate 3e-4 --warmup_steps 30

# Evaluate the published half-precision checkpoint, then publish again to add the scores to its card.
publish="python recipes/publish.py --model $out/stage2 --output_dir $out/published"
$publish
python -m unime.eval --output $out/evaluation --models "Before=checkpoints/tiny-backbone" "Stage 1=$out/stage1" \
    "Stage 2=$out/published" "All negatives=$out/control" "CLIP=$out/clip" --highlight "Stage 2"
$publish --evaluations $out/evaluation --title "Stage 2" --commands recipes/tiny/unime-tiny.sh \
    --notes recipes/tiny/notes.md
