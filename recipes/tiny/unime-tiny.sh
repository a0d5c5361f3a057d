# Makes checkpoints/tiny-backbone and, from it, checkpoints/unime-tiny, in three hours on two cores. Seed 42.
set -euo pipefail
export OMP_NUM_THREADS=1
out=runs/unime-tiny

python recipes/tiny/vision.py --config recipes/tiny/vision.yaml
torchrun --nproc_per_node 2 recipes/tiny/backbone.py --config recipes/tiny/backbone.yaml \
    --output_dir checkpoints/tiny-backbone
OMP_NUM_THREADS=2 python recipes/stage1.py --config recipes/tiny/stage1.yaml --output_dir $out/stage1 \
    --rows 20000 --max_steps 150

# Stage 2 first takes all negatives; from there on the hard ones and, as a control, all of them again.
stage2="python recipes/stage2.py --config recipes/tiny/stage2.yaml --rows 200000"
all="--hard_after_steps 100000"
longer="--model_name_or_path $out/warm --world_seed 1 --max_steps 600 --warmup_steps 30 --learning_rate 3e-4"
$stage2 --model_name_or_path $out/stage1 --output_dir $out/warm --max_steps 1150 --warmup_steps 100 $all
$stage2 $longer --output_dir $out/stage2 --hard_after_steps 0
$stage2 $longer --output_dir $out/control $all
python recipes/tiny/clip.py --config recipes/tiny/clip.yaml --output_dir $out/clip --rows 200000 --seconds 2760

python recipes/evaluate.py --output_dir $out/evaluation --models "Before=checkpoints/tiny-backbone" \
    "Stage 1=$out/stage1" "Stage 2=$out/stage2" "All negatives=$out/control" "CLIP=$out/clip" --subject "Stage 2"
python recipes/tiny/publish.py --model $out/stage2 --evaluation $out/evaluation \
    --commands recipes/tiny/unime-tiny.sh --output_dir checkpoints/unime-tiny
