# Evaluates a finished run of unime-tiny-styles.sh and publishes it: weights in half precision, card, tables, report.
# Usage: bash recipes/tiny/publish-styles.sh [folder of the run] [folder of the published checkpoint] [more options of unime.eval]
# Evaluations resume where they were stopped. "--readme README.md" of the last command puts the tables into the README.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
run=${1:-runs/unime-tiny-styles}
published=${2:-$run/published}
shift $(( $# < 2 ? $# : 2 ))
[ -e "$run/stage2/finished" ] || { echo "$run/stage2 is not finished: run recipes/tiny/unime-tiny-styles.sh $run first" >&2; exit 1; }

publish="python recipes/publish.py --model $run/stage2 --output_dir $published"
$publish
[ "$(stat -c %s "$published/model.safetensors")" -le 12000000 ] || { echo "the weights are over 12 MB" >&2; exit 1; }
python -m unime.eval --output "$run/evaluation" --highlight "Stage 2" --models \
    "Before=checkpoints/tiny-backbone" "New tower=$run/tower" "Stage 2=$published" "$@"
python benchmarks/unseen_images.py --model "$published" --output "$run/unseen_images.json"
# Publishing again adds the scores to the card.
$publish --evaluations "$run/evaluation" --title "Stage 2" --commands recipes/tiny/unime-tiny-styles.sh \
    --notes recipes/tiny/notes-styles.md
python recipes/tiny/readme_tables.py --evaluation "$run/evaluation" --unseen "$run/unseen_images.json"
