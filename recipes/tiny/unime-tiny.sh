# Makes checkpoints/tiny-backbone and, from it, checkpoints/unime-tiny, in four hours on two cores. Seed 42.
# The committed ones are of this script, but for the first two commands: they ran at commit ece0af9 (world version 1).
set -euo pipefail
export OMP_NUM_THREADS=1
out=runs/unime-tiny
vision="--config recipes/tiny/vision.yaml"
backbone="--config recipes/tiny/backbone.yaml"

# The tower learns words, the language model learns to say what the tower sees; then each goes on once more.
python recipes/tiny/vision.py $vision
torchrun --nproc_per_node 2 recipes/tiny/backbone.py $backbone --output_dir runs/tiny-backbone
torchrun --nproc_per_node 2 recipes/tiny/vision.py $vision --model_name_or_path runs/tiny-backbone --emoji 0.8 \
    --rows 1600000 --per_device_train_batch_size 128 --learning_rate 7e-4 --warmup_steps 200 --max_steps 5200 \
    --output_dir runs/tiny-vision-2
torchrun --nproc_per_node 2 recipes/tiny/backbone.py $backbone --model_name_or_path runs/tiny-backbone \
    --vision runs/tiny-vision-2 --rows 160000 --seed 43 --learning_rate 7e-4 --warmup_steps 50 --max_steps 1200 \
    --output_dir checkpoints/tiny-backbone

OMP_NUM_THREADS=2 python recipes/stage1.py --config recipes/tiny/stage1.yaml --output_dir $out/stage1 \
    --rows 20000 --max_steps 150
# Stage 2 first takes all negatives; from there on the hard ones and, as a control, all of them again.
stage2="python recipes/stage2.py --config recipes/tiny/stage2.yaml --rows 600000"
all="--hard_after_steps 100000"
longer="--model_name_or_path $out/warm/checkpoint-3000 --world_seed 1 --max_steps 300 --warmup_steps 30"
longer="$longer --learning_rate 3e-4"
$stage2 --model_name_or_path $out/stage1 --output_dir $out/warm --max_steps 3500 --warmup_steps 150 \
    --learning_rate 1e-3 $all
$stage2 $longer --output_dir $out/stage2 --hard_after_steps 0
$stage2 $longer --output_dir $out/control $all
# CLIP goes on once more too, on the same rows, and has the wall time of stages 1 and 2 together.
clip="python recipes/tiny/clip.py --config recipes/tiny/clip.yaml --rows 600000"
$clip --output_dir $out/clip-warm --seconds 4600
$clip --model_name_or_path $out/clip-warm --output_dir $out/clip --world_seed 1 --seconds 660 \
    --learning_rate 3e-4 --warmup_steps 30

python -m unime.eval --output_dir $out/evaluation --models "Before=checkpoints/tiny-backbone" \
    "Stage 1=$out/stage1" "Stage 2=$out/stage2" "All negatives=$out/control" "CLIP=$out/clip" --subject "Stage 2"
python recipes/publish.py --model $out/stage2 --evaluations $out/evaluation --title "Stage 2" \
    --commands recipes/tiny/unime-tiny.sh --notes recipes/tiny/notes.md --output_dir checkpoints/unime-tiny
