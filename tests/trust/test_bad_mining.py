"""A mining with rows that cannot be read or embedded: they are listed with the reasons, and the job goes on."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from trl import TrlParser

from unime.data.sources import DataArguments, open_rows


ROOT = Path(__file__).resolve().parents[2]
NAMES = ["cat", "dog", "pizza", "violin", "rocket", "apple", "king", "bicycle"]
GOOD = [
    {"query": {"text": f"a {name}"}, "positive": {"text": f"the {name}"}, "task": ["things", "names"][number % 2]}
    for number, name in enumerate(NAMES)
]

# name -> (a row that the job rejects, what is said of it)
BAD = {
    "no JSON": ("{", " is not a JSON object: fix or remove the line"),
    "image missing": ({"positive": {"image": "gone.png"}}, ", positive: cannot read the image "),
    "image broken": ({"query": {"image": "broken.png"}}, ", query: cannot read the image "),
    "negative without content": ({"negatives": [{}]}, ", negative 0: expected 'text' or 'image'"),
    "query its own positive": ({"positive": {"text": "a king"}}, ": the query equals its positive"),
    "images beyond what the model takes": ({"positive": {"image": ["0.png"] * 400}}, ", positive: item 0 needs "),
}


@pytest.fixture
def mine(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that mines lines in chunks of three rows, and returns the folder of what was found."""

    def run(lines: list, *settings: object, output: str = "mined") -> Path:
        Image.new("RGB", (24, 24), "red").save(tmp_path / "0.png")
        (tmp_path / "broken.png").write_bytes(b"no image")
        (tmp_path / "rows.jsonl").write_text(
            "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        )
        spec = importlib.util.spec_from_file_location("mine", ROOT / "recipes" / "mine.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.CHUNK_ROWS = 3
        command = [
            "--dataset",
            tmp_path / "rows.jsonl",
            "--model",
            ROOT / "checkpoints" / "unime-tiny",
            "--num_negatives",
            2,
        ]
        command += ["--output_dir", tmp_path / output, "--relative_margin", "-1", *settings]
        parser = TrlParser((module.DataArguments, module.ScriptArguments))
        module.main(*parser.parse_args_and_config([str(word) for word in command], return_remaining_strings=True))
        return tmp_path / output

    return run


def listed(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_listed_and_the_others_are_mined_as_without_it(kind: str, mine: Callable[..., Path], tmp_path):
    change, reason = BAD[kind]
    row = {"query": {"text": "a king"}, "positive": {"text": "the king"}, "task": "names"}
    bad = change if isinstance(change, str) else row | change
    lines = [*GOOD[:2], bad, bad, bad, bad, *GOOD[2:]]  # the second chunk holds nothing else
    numbers = [0, 1, *range(6, 12)]
    found = mine(lines)
    rejected = listed(found / "rejected.jsonl")
    assert [one["row"] for one in rejected] == [2, 3, 4, 5]
    assert all(one["reason"].startswith(f"rows.jsonl, row {one['row']}{reason}") for one in rejected)
    negatives = listed(found / "negatives.jsonl")
    assert [negatives[row] for row in range(2, 6)] == [[]] * 4

    alone = mine(GOOD, output="alone")
    assert listed(alone / "rejected.jsonl") == []
    expected = [[numbers[other] for other in others] for others in listed(alone / "negatives.jsonl")]
    assert [negatives[row] for row in numbers] == expected and all(len(others) == 2 for others in expected)

    # Training takes both files, of which the numbers count all rows.
    mine(lines)
    files = {"mined_file": str(found / "negatives.jsonl"), "rejected_file": str(found / "rejected.jsonl")}
    rows = list(open_rows(DataArguments(str(tmp_path / "rows.jsonl"), **files)))
    assert [row["query"]["text"] for row in rows] == [f"a {name}" for name in NAMES]
    assert [[item["text"] for item in row["negatives"]] for row in rows] == [
        [GOOD[other]["positive"]["text"] for other in others] for others in listed(alone / "negatives.jsonl")
    ]


def test_strict_stops_at_the_first_bad_row_and_keeps_what_was_embedded(mine: Callable[..., Path], error_message):
    lines = [*GOOD[:5], "{", *GOOD[5:]]
    sentence = "rows.jsonl, row 5 is not a JSON object: fix or remove the line"
    assert error_message(lambda: mine(lines, "--strict", "true")) == sentence
    folder = mine(lines)
    assert listed(folder / "rejected.jsonl") == [{"row": 5, "reason": sentence}]
    assert error_message(lambda: mine(lines, "--strict", "true")) == sentence  # also where all is embedded by now


def test_a_dataset_of_bad_rows_alone_has_no_negatives(mine: Callable[..., Path]):
    folder = mine(["{"] + [json.dumps({"query": {}, "positive": {}})] * 4)
    assert [one["row"] for one in listed(folder / "rejected.jsonl")] == [0, 1, 2, 3, 4]
    assert listed(folder / "negatives.jsonl") == [[]] * 5 and json.loads((folder / "report.json").read_text()) == {}
