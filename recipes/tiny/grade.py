"""Score mined negatives of the OpenMoji data by what is drawn, in place of a judge.

    python recipes/mine.py --config recipes/tiny/stage2.yaml --negatives_per_row 0 --model checkpoints/unime-tiny \
        --output_dir runs/mined
    python recipes/tiny/grade.py --config recipes/tiny/stage2.yaml --negatives_per_row 0 \
        --mined_file runs/mined/negatives.jsonl --output_dir runs/graded

The tiny backbone cannot judge (docs/guides/rerank.md), so the studies of judged negatives and soft labels take scores
from the labels and drawings that the data was made of: what is alike has a high score. A caption that describes a part
of a scene is not checked for whether it is true of another scene. The filter, the sampling and the file are those of
`recipes/judge.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from trl import TrlParser

from unime.data.judged import judged_line
from unime.data.mining import read_mined
from unime.data.sources import DataArguments, open_rows
from unime.openmoji.catalogue import catalogue, same_drawing
from unime.openmoji.scenes import Placed, Scene
from unime.openmoji.views import View
from unime.storage.atomic_files import atomic_write


BY_LABEL = ("category", "subcategory", "question")  # tasks whose answer is a word, right or wrong


@dataclass
class ScriptArguments:
    """Where to write, and how many candidates to keep."""

    output_dir: str = field(metadata={"help": "Folder for negatives.jsonl."})
    num_negatives: int = field(default=10, metadata={"help": "Negatives per row; fewer candidates are repeated."})


def grade(row: dict[str, Any], other: dict[str, Any]) -> float:
    """Return how well the positive of another row of the same task meets the query of a row, from 0 to 1.

    1 for a right answer; else 0 where the answer is a word, for single emoji the share of what they have in common
    (emoji, emoji without skin tone, subcategory, category), and for scenes the share of equal objects.
    """
    if row["task"] != other["task"]:
        raise ValueError(f"{row['task']} and {other['task']} have no common grade: mine with --pool task")
    if row["label"] is not None and row["label"] == other["label"]:
        return 1.0
    if row["task"] in BY_LABEL:
        return 0.0
    spec, other_spec = _drawn(row), _drawn(other)
    if spec.startswith("view "):
        return _kinship(View.from_spec(spec).image, View.from_spec(other_spec).image)
    return _overlap(_placed(spec), _placed(other_spec))


def _drawn(row: dict[str, Any]) -> str:
    """Return the spec of the image that a row is about: the positive's, or the query's if the positive is a text."""
    return row["positive"]["image"] or row["query"]["image"]


def _kinship(first: int, second: int) -> float:
    """Return the share of what two emoji have in common."""
    one, other = catalogue()[first], catalogue()[second]
    same = same_drawing()
    equal = [
        same[one.index] == same[other.index],
        same[one.base] == same[other.base],
        one.subcategory == other.subcategory,
        one.category == other.category,
    ]
    return sum(equal) / len(equal)


def _placed(spec: str) -> dict[int, Placed]:
    """Return the objects of a scene or crop by their ids."""
    if spec.startswith("crop "):
        object, colour = map(int, spec.split()[1].split("."))
        return {object: Placed(object, 0, colour)}
    return {placed.object: placed for placed in Scene.from_spec(spec).placed}


def _overlap(first: dict[int, Placed], second: dict[int, Placed]) -> float:
    """Return the share of the objects of both that are in both: a third each for object, cell and colour."""
    common = [(first[object], second[object]) for object in first.keys() & second.keys()]
    points = sum(1 + (one.cell == other.cell) + (one.colour == other.colour) for one, other in common)
    return points / (3 * len(first.keys() | second.keys()))


def main(data: DataArguments, script: ScriptArguments, ignored: Sequence[str] = ()) -> None:
    if data.dataset != "openmoji" or data.negatives_per_row or data.mined_file is None:
        raise ValueError("grade.py scores the mined_file of the openmoji dataset with negatives_per_row 0")
    dataset = cast(Dataset, open_rows(replace(data, mined_file=None)))
    rows = dataset.with_format(None).to_list()
    lines, dropped = [], 0
    for row, (candidates, _) in zip(rows, read_mined(data.mined_file, len(rows)), strict=True):
        scores = [1.0, *(grade(row, rows[number]) for number, _ in candidates)]
        choice, line = judged_line(candidates, scores, 1, script.num_negatives)
        dropped += len(choice.dropped)
        lines.append(json.dumps(line) + "\n")
    output = Path(script.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / "negatives.jsonl") as part:
        part.write_text("".join(lines))
    print(f"{len(lines)} rows; {dropped} right answers among their candidates were dropped")


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ScriptArguments)).parse_args_and_config(return_remaining_strings=True))
