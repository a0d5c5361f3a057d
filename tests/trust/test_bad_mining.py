"""Mining with rows that cannot be read or embedded: they are rejected with a reason, and the job continues."""

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

# name -> (change that makes a row bad, or the line itself; reason of the rejection)
BAD = {
    "no JSON": ("{", " is not a JSON object: fix or remove the line"),
    "image missing": ({"positive": {"image": "gone.png"}}, ", positive: cannot read the image "),
    "image broken": ({"query": {"image": "broken.png"}}, ", query: cannot read the image "),
    "negative without content": ({"negatives": [{}]}, ", negative 0: expected 'text' or 'image'"),
    "query equal to its positive": ({"positive": {"text": "a king"}}, ": the query equals its positive"),
    "images beyond what the model takes": ({"positive": {"image": ["0.png"] * 400}}, ", positive: item 0 needs "),
}


@pytest.fixture
def mine(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that mines rows in chunks of three and returns the output folder."""

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


def read_lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_rejected_and_does_not_change_the_mining_of_the_others(
    kind: str, mine: Callable[..., Path], tmp_path
):
    change, reason = BAD[kind]
    row = {"query": {"text": "a king"}, "positive": {"text": "the king"}, "task": "names"}
    bad = change if isinstance(change, str) else row | change
    lines = [*GOOD[:2], bad, bad, bad, bad, *GOOD[2:]]  # the second chunk has only bad rows
    good_rows = [0, 1, *range(6, 12)]
    mined = mine(lines)
    rejected = read_lines(mined / "rejected.jsonl")
    assert [entry["row"] for entry in rejected] == [2, 3, 4, 5]
    assert all(entry["reason"].startswith(f"rows.jsonl, row {entry['row']}{reason}") for entry in rejected)
    negatives = read_lines(mined / "negatives.jsonl")
    assert [negatives[row] for row in range(2, 6)] == [[]] * 4

    reference = mine(GOOD, output="reference")
    assert read_lines(reference / "rejected.jsonl") == []
    expected = [[good_rows[other] for other in others] for others in read_lines(reference / "negatives.jsonl")]
    assert [negatives[row] for row in good_rows] == expected and all(len(others) == 2 for others in expected)

    # Training takes both files; their row numbers count all rows.
    mine(lines)
    files = {"mined_file": str(mined / "negatives.jsonl"), "rejected_file": str(mined / "rejected.jsonl")}
    rows = list(open_rows(DataArguments(str(tmp_path / "rows.jsonl"), **files)))
    assert [row["query"]["text"] for row in rows] == [f"a {name}" for name in NAMES]
    assert [[item["text"] for item in row["negatives"]] for row in rows] == [
        [GOOD[other]["positive"]["text"] for other in others] for others in read_lines(reference / "negatives.jsonl")
    ]


def test_strict_stops_at_the_first_bad_row_and_keeps_the_embeddings(mine: Callable[..., Path], error_message):
    lines = [*GOOD[:5], "{", *GOOD[5:]]
    reason = "rows.jsonl, row 5 is not a JSON object: fix or remove the line"
    assert error_message(lambda: mine(lines, "--strict", "true")) == reason
    folder = mine(lines)
    assert read_lines(folder / "rejected.jsonl") == [{"row": 5, "reason": reason}]
    assert error_message(lambda: mine(lines, "--strict", "true")) == reason  # also when everything is embedded already


def test_a_dataset_of_bad_rows_has_no_negatives(mine: Callable[..., Path]):
    folder = mine(["{"] + [json.dumps({"query": {}, "positive": {}})] * 4)
    assert [entry["row"] for entry in read_lines(folder / "rejected.jsonl")] == [0, 1, 2, 3, 4]
    assert (
        read_lines(folder / "negatives.jsonl") == [[]] * 5 and json.loads((folder / "report.json").read_text()) == {}
    )


def test_every_positive_of_a_row_is_a_candidate_for_the_other_rows_only(mine: Callable[..., Path], tmp_path: Path):
    names = [["Katze", "Kater"], ["Hund", "Rüde"]]
    lines = [
        {"query": {"text": f"animal {row}"}, "positives": [{"text": name} for name in row_names], "task": "names"}
        for row, row_names in enumerate(names)
    ]
    mined = mine(lines)
    negatives = read_lines(mined / "negatives.jsonl")
    assert [sorted(entries, key=str) for entries in negatives] == [[1, [1, 1]], [0, [0, 1]]]
    rows = open_rows(DataArguments(str(tmp_path / "rows.jsonl"), mined_file=str(mined / "negatives.jsonl")))
    assert [{item["text"] for item in row["negatives"]} for row in rows] == [set(names[1]), set(names[0])]
