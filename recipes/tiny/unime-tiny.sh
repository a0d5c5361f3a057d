# Makes checkpoints/unime-tiny from checkpoints/tiny-backbone: half an hour on two cores, one for each training. Seed 42.
set -euo pipefail
export OMP_NUM_THREADS=1
out=runs/unime-tiny

python recipes/stage1.py --config recipes/tiny/stage1.yaml --output_dir $out/stage1 --rows 20000 --max_steps 150
python recipes/stage2.py --config recipes/tiny/stage2.yaml --output_dir $out/stage2 \
    --model_name_or_path $out/stage1 --rows 200000 --max_steps 520 --warmup_steps 50 &
python recipes/tiny/clip.py --config recipes/tiny/clip.yaml --output_dir $out/clip --rows 200000 --seconds 1400 &
wait

python recipes/evaluate.py --output_dir $out/evaluation --models \
    "Before=checkpoints/tiny-backbone" "Stage 1=$out/stage1" "Stage 2=$out/stage2" "CLIP=$out/clip"
python recipes/tiny/publish.py --model $out/stage2 --evaluation $out/evaluation \
    --commands recipes/tiny/unime-tiny.sh --output_dir checkpoints/unime-tiny
