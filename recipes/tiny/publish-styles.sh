# Evaluates a finished run of unime-tiny-styles.sh beside the checkpoint that it started from, and publishes it: weights in
# half precision, card, report. Usage: bash recipes/tiny/publish-styles.sh START RUN PUBLISHED
# Evaluations resume where they were stopped.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
start=$1 run=$2 published=$3
[ -e "$run/cells-3/finished" ] || { echo "$run/cells-3 is not finished: run unime-tiny-styles.sh first" >&2; exit 1; }

publish="python recipes/publish.py --model $run/cells-3 --output_dir $published"
$publish
[ "$(stat -c %s "$published/model.safetensors")" -le 12000000 ] || { echo "the weights are over 12 MB" >&2; exit 1; }
python -m unime.eval --output "$run/evaluation" --highlight "Styles" --models "Stage 2=$start" "Styles=$published"
python recipes/tiny/readme_tables.py --before "$start/results-openmoji.json" --evaluation "$run/evaluation"
python benchmarks/unseen_images.py --model "$published" --output "$run/unseen_images.json"
# Publishing again adds the scores to the card.
$publish --evaluations "$run/evaluation" --title "Styles" --commands recipes/tiny/unime-tiny-styles.sh \
    --notes recipes/tiny/notes-styles.md
