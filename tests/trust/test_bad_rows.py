"""Every kind of bad row and dataset in training: a one-sentence error that names it, or a defined result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value, config
from PIL import Image
from typer.testing import CliRunner

from unime.cli.main import app
from unime.data.sources import DataArguments, open_rows, open_texts


ErrorMessage = Callable[..., str]

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "tiny" / "stage2.yaml"
GOOD = {"query": {"text": "a cat"}, "positive": {"image": "0.png", "text": "Katze"}}
SEVERAL = {"query": {"text": "a cat"}, "positives": [{"text": "Katze"}, {"text": "b"}], "negatives": [{"text": "c"}]}
NOT_AN_OBJECT = " is not a JSON object: fix or remove the line"
NOT_AN_ITEM = "expected an item such as {'text': ...}, got "

# name -> (row, or line of the file; error message after "rows.jsonl, row 1")
ROWS: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "broken JSON": (b'{"query": {"tex', NOT_AN_OBJECT),
    "JSON list": (b"[1, 2]", NOT_AN_OBJECT),
    "JSON number": (b"3", NOT_AN_OBJECT),
    "bytes that are not UTF-8": (b'{"query": {"text": "\xe4"}, "positive": {"text": "b"}}', NOT_AN_OBJECT),
    "bytes of nothing": (b"\0" * 9, NOT_AN_OBJECT),
    "JSON 100,000 deep": (b"[" * 100_000, NOT_AN_OBJECT),
    "query missing": ({"positive": {"text": "b"}}, ": it has no 'query' (or 'anchor'); its columns are positive: "),
    "query null": (GOOD | {"query": None}, ": it has no 'query' (or 'anchor'); its columns are positive: "),
    "query a number": (GOOD | {"query": 3}, f", query: {NOT_AN_ITEM}int: fix the row"),
    "query a list of numbers": (GOOD | {"query": [3]}, ", query: "),
    "query the path of no file": (GOOD | {"query": "gone.png"}, ", query: cannot read the image "),
    "positive missing": ({"query": {"text": "a"}}, ": it has no 'positive' (or 'positives'); its columns are query: "),
    "positive a number": (GOOD | {"positive": 3}, f", positive: {NOT_AN_ITEM}int: fix the row"),
    "positive and positives": (
        GOOD | {"positives": [{"text": "b"}]},
        ": it has both 'positive' and 'positives': remove one of them",
    ),
    "positives empty": (SEVERAL | {"positives": []}, ": 'positives' must be a list of at least one item, got []"),
    "positives an item": (
        SEVERAL | {"positives": {"text": "b"}},
        ": 'positives' must be a list of at least one item, got {'text': 'b'}",
    ),
    "positives with a null": (
        SEVERAL | {"positives": [{"text": "b"}, None]},
        f", positive 1: {NOT_AN_ITEM}NoneType: fix the row",
    ),
    "scores a number": (
        SEVERAL | {"scores": 1},
        ": 'scores' has int: give one score for each of the 2 positive(s), then for each of the 1 negatives",
    ),
    "scores of the positives alone": (
        SEVERAL | {"scores": [1, 1]},
        ": 'scores' has 2 scores: give one score for each",
    ),
    "score a text": (SEVERAL | {"scores": [1, "1", 0]}, ": score 1 must be a finite number, got '1'; only negatives"),
    "score not finite": (SEVERAL | {"scores": [1, 1, 1e999]}, ": score 2 must be a finite number, got inf"),
    "score a truth value": (SEVERAL | {"scores": [1, 1, True]}, ": score 2 must be a finite number, got True"),
    "positive not judged": (SEVERAL | {"scores": [1, None, 0]}, ": score 1 must be a finite number, got None"),
    "item without content": (GOOD | {"query": {}}, ", query: expected 'text' or 'image'"),
    "item with an instruction alone": (
        GOOD | {"query": {"instruction": "Find:"}},
        ", query: expected 'text' or 'image'",
    ),
    "item of nulls": (GOOD | {"query": {"text": None, "image": None}}, ", query: expected 'text' or 'image'"),
    "item with an unknown key": (
        GOOD | {"query": {"text": "a", "instructions": "Find:"}},
        ", query: unknown item key 'instructions'; valid keys are text, image, content, instruction: rename or",
    ),
    "text a number": (GOOD | {"query": {"text": 3}}, ", query: 'text' must be a str, got int"),
    "text a list": (GOOD | {"query": {"text": ["a"]}}, ", query: 'text' must be a str, got list"),
    "text a lone surrogate": (GOOD | {"query": {"text": "a\ud800"}}, ", query: 'text' is not valid Unicode"),
    "instruction a number": (
        GOOD | {"query": {"text": "a", "instruction": 3}},
        ", query: 'instruction' must be a str, got int",
    ),
    "image a number": (GOOD | {"query": {"image": 3}}, ", query: 'image' must be a path or a list of them, got int"),
    "image a nested list": (
        GOOD | {"query": {"image": [["0.png"]]}},
        ", query: 'image' must be a path or a list of them, got list",
    ),
    "image missing": (GOOD | {"positive": {"image": "gone.png"}}, ", positive: cannot read the image "),
    "second image missing": (
        GOOD | {"query": {"image": ["0.png", "gone.png"]}},
        ", query: cannot read the image ",
    ),
    "content a string": (
        GOOD | {"query": {"content": "a"}},
        ", query: 'content' must be a list of texts and images, got str",
    ),
    "content empty": (GOOD | {"query": {"content": []}}, ", query: 'content' is empty: it needs a text or an image"),
    "content with a number": (
        GOOD | {"query": {"content": ["a", 3]}},
        ", query: 'image' must be a path or a list of them, got int",
    ),
    "content with an item": (
        GOOD | {"query": {"content": ["a", {"image": "0.png"}]}},
        ", query: a part of 'content' must be a text, an image, {'type': 'text', 'text': ...}, {'type': 'image', ",
    ),
    "content beside a text": (
        GOOD | {"query": {"content": ["a"], "text": "a"}},
        ", query: 'content' replaces 'text' and 'image'",
    ),
    "content with a missing image": (
        GOOD | {"query": {"content": ["a", {"type": "image", "image": "gone.png"}]}},
        ", query: cannot read the image ",
    ),
    "negatives a string": (GOOD | {"negatives": "b"}, ": 'negatives' must be a list of items, got str: fix the row"),
    "negatives an item": (
        GOOD | {"negatives": {"text": "b"}},
        ": 'negatives' must be a list of items, got dict: fix the row",
    ),
    "negatives a number": (GOOD | {"negatives": 0}, ": 'negatives' must be a list of items, got int: fix the row"),
    "negatives of numbers": (GOOD | {"negatives": [3]}, f", negative 0: {NOT_AN_ITEM}int: fix the row"),
    "negatives with a null": (
        GOOD | {"negatives": [{"text": "b"}, None]},
        f", negative 1: {NOT_AN_ITEM}NoneType: fix the row",
    ),
    "negative without content": (GOOD | {"negatives": [{}]}, ", negative 0: expected 'text' or 'image'"),
    "negative image missing": (
        GOOD | {"negatives": [{"image": "gone.png"}]},
        ", negative 0: cannot read the image ",
    ),
    "label a list": (GOOD | {"label": ["cat"]}, ": 'label' must be a string, got list: fix the row"),
    "label an object": (GOOD | {"label": {"name": "cat"}}, ": 'label' must be a string, got dict: fix the row"),
    "label a fraction": (GOOD | {"label": 0.5}, ": 'label' must be a string, got float: fix the row"),
    "task a list": (GOOD | {"task": ["names"]}, ": 'task' must be a string, got list: fix the row"),
}


def write_rows(folder: Path, *rows: dict[str, Any] | bytes) -> Path:
    """Write rows, and an image that they may refer to."""
    Image.new("RGB", (24, 24), "red").save(folder / "0.png")
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / "rows.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("streaming", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("kind", ROWS)
def test_reading_a_bad_row_raises_an_error_that_names_it(
    kind: str, streaming: bool, tmp_path: Path, error_message: ErrorMessage
):
    bad, reason = ROWS[kind]
    dataset = open_rows(DataArguments(str(write_rows(tmp_path, GOOD, bad, GOOD)), streaming=streaming))
    assert error_message(lambda: list(dataset)).startswith(f"rows.jsonl, row 1{reason}")
    if not streaming:
        assert [dataset[row]["where"] for row in (0, 2)] == ["rows.jsonl, row 0", "rows.jsonl, row 2"]


@pytest.mark.parametrize("kind", [*ROWS, "query equal to its positive"])
def test_a_bad_row_is_listed_by_check_data_and_left_out_of_training(kind: str, tmp_path: Path):
    same = {"query": {"text": "a cat"}, "positive": {"text": "a cat"}}
    bad, reason = ROWS.get(kind, (same, ": the query equals its positive; fix or remove the row"))
    path, rejected_file = (
        write_rows(tmp_path, GOOD, bad, GOOD | {"query": {"text": "a dog"}}),
        tmp_path / "rejected.jsonl",
    )
    command = ["check-data", RECIPE, "--dataset", path, "--workers", 0, "--rejected-file", rejected_file]
    checked = CliRunner().invoke(app, [str(word) for word in command])
    assert checked.exit_code == 1, checked.output
    problem, count = checked.stdout.splitlines()
    assert problem.startswith(f"rows.jsonl, row 1{reason}") and count == "1 of 3 rows are bad"
    assert [json.loads(line) for line in rejected_file.read_text().splitlines()] == [{"row": 1, "reason": problem}]
    remaining = open_rows(DataArguments(str(path), rejected_file=str(rejected_file)))
    assert [row["query"]["text"] for row in remaining] == ["a cat", "a dog"]
    assert len(remaining.with_format(None)["task"][:]) == 2  # task blocks need the column


@pytest.mark.parametrize("streaming", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"query": {"text": "2020-01-01"}}, {"query": {"text": "2020-01-01"}}),
        ({"query": {"text": "1"}}, {"query": {"text": "1"}}),
        ({"query": {"text": "a", "instruction": None, "image": None}}, {"query": {"text": "a"}}),
        ({"negatives": None}, {"negatives": []}),
        ({"negatives": [{"text": "b"}, {"text": "b"}]}, {"negatives": [{"text": "b"}] * 2}),
        ({"label": 3}, {"label": "3"}),
        ({"label": ""}, {"label": ""}),
        ({"task": None}, {"task": "rows.jsonl"}),
        ({"task": 7}, {"task": "7"}),
        ({"where": "elsewhere", "source": [1, {}]}, {"where": "rows.jsonl, row 1"}),
        ({"query": {"text": "x" * 1_000_000}}, {"query": {"text": "x" * 1_000_000}}),
        ({"query": {"text": "שלום 🐈 \u2028 \x85 \r\n"}}, {"query": {"text": "שלום 🐈 \u2028 \x85 \r\n"}}),
    ],
    ids=[
        "text like a date", "text like a number", "nulls for missing parts", "no negatives", "a negative twice",
        "label a number", "empty label", "no task", "task a number", "columns of the user", "a million characters",
        "line separators in a text",
    ],
)  # fmt: skip
def test_an_unusual_row_is_read_as_written(
    row: dict[str, Any], expected: dict[str, Any], streaming: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = write_rows(tmp_path, GOOD, GOOD | row)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))  # as some Windows editors save it
    by_place = {row["where"]: row for row in open_rows(DataArguments(str(path), streaming=streaming))}
    read = by_place["rows.jsonl, row 1"]
    assert {key: read[key] for key in expected} == expected and by_place["rows.jsonl, row 0"]["query"] == GOOD["query"]
    assert ("stage 2 does not use the columns where, source" in caplog.text) == ("source" in row)


@pytest.mark.parametrize("streaming", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "rows.jsonl is empty: give a JSON object on each line"),
        (b"\n\n", "missing: query, positive; found: none. Rename or map the columns first"),
        (b"PAR1\0\xff", "missing: query, positive; found: none. Rename or map the columns first"),
        (b'{"text": "a"}\n', "missing: query, positive; found: text. Rename or map the columns first"),
        (b'{"query": {"text": "a"}}\n', "missing: positive; found: query. Rename or map the columns first"),
        (None, "there is no dataset file {path}: give a JSONL file of rows, or 'openmoji'"),
    ],
    ids=["empty", "blank", "binary", "of stage 1", "a column missing", "absent"],
)
def test_a_file_without_rows_is_refused_when_it_is_opened(
    content: bytes | None, reason: str, streaming: bool, tmp_path: Path, error_message: ErrorMessage
):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    kind = ValueError if content is not None else FileNotFoundError
    message = error_message(lambda: open_rows(DataArguments(str(path), streaming=streaming)), kind)
    assert message.endswith(reason.format(path=path))


TEXTS: dict[str, tuple[Any, str]] = {
    "text null": ({"text": None}, "'text' must be a string, got NoneType: fix or remove the row"),
    "text missing": ({}, "'text' must be a string, got NoneType: fix or remove the row"),
    "text a number": ({"text": 3}, "'text' must be a string, got int: fix or remove the row"),
    "text a list": ({"text": ["a"]}, "'text' must be a string, got list: fix or remove the row"),
    "text a lone surrogate": ({"text": "a\ud800"}, "'text' is not valid Unicode at character 1"),
    "teacher null": ({"text": "b", "teacher": None}, "its teacher embedding is not a list of finite numbers"),
    "teacher a number": ({"text": "b", "teacher": 3}, "its teacher embedding is not a list of finite numbers"),
    "teacher of strings": ({"text": "b", "teacher": ["x"]}, "its teacher embedding is not a list of finite numbers"),
    "teacher empty": ({"text": "b", "teacher": []}, "its teacher embedding is not a list of finite numbers"),
    "teacher NaN": (
        {"text": "b", "teacher": [1, float("nan")]},
        "its teacher embedding is not a list of finite",
    ),
    "teacher infinite": ({"text": "b", "teacher": [1, float("inf")]}, "its teacher embedding is not a list of finite"),
    "teacher nested": ({"text": "b", "teacher": [[1, 2]]}, "its teacher embedding is not a list of finite numbers"),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["file", "stream"])
@pytest.mark.parametrize("kind", TEXTS)
def test_the_error_of_a_bad_text_of_stage_1_names_it(
    kind: str, streaming: bool, tmp_path: Path, error_message: ErrorMessage
):
    bad, reason = TEXTS[kind]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"text": "a", "teacher": [1, 2]}, bad)))
    message = error_message(lambda: list(open_texts(DataArguments(str(path), streaming=streaming))))
    assert message.startswith(f"texts.jsonl, row 1: {reason}")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataArguments]:
    """Return a function that writes a dataset in the layout of the Hub and returns settings that read it."""
    # `datasets` sleeps for five seconds after a stream, to let its threads end.
    monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)

    def write(
        columns: dict[str, list], column_map: dict[str, Any], features: Features | None = None, **more: Any
    ) -> Any:
        (tmp_path / "hub").mkdir()
        Dataset.from_dict(columns, features).to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
        return DataArguments(dataset=str(tmp_path / "hub"), columns=column_map, **more)

    return write


PAIR = {"query.text": "a", "positive.text": "b"}


@pytest.mark.parametrize(
    ("columns", "read", "reason"),
    [
        ({"a": ["x", None], "b": ["y", "z"]}, PAIR, "hub, row 1, query: expected 'text' or 'image'"),
        ({"a": ["x", "y"], "b": [1, 2]}, PAIR, "hub, row 0, positive: 'text' must be a str, got int"),
        (
            {"a": ["x"], "b": ["y"], "n": [["u", "v"]], "i": [["0.png"]]},
            PAIR | {"negative.text": "n", "negative.image": "i"},
            "hub, row 0: its negatives are 2 of text and 1 of image: give equally many",
        ),
        ({"a": ["x"], "b": ["y"], "n": [["u", None]]}, PAIR | {"negative.text": "n"}, "hub, row 0, negative 1: "),
        ({"a": ["x"], "b": ["y"], "l": [[1]]}, PAIR | {"label": "l"}, "hub, row 0: 'label' must be a string"),
        ({"a": ["x"]}, PAIR, "missing: b; found: a. Rename or map the columns first"),
        ({"a": ["x"], "b": ["y"]}, {"query.text": "a"}, "has no column for the positive: give positive.text"),
        ({"a": ["x"], "b": ["y"]}, PAIR | {"candidate.text": "b"}, "unknown key candidate.text in `columns`; valid"),
        ({"a": ["x"], "b": ["y"]}, PAIR | {"query.text": ["a", "b"]}, "`columns` gives query.text several columns"),
    ],
    ids=[
        "text null", "text of numbers", "negatives of unequal number", "a negative null", "label a list",
        "column missing", "no positive", "unknown part", "several columns",
    ],
)  # fmt: skip
def test_the_error_of_a_bad_table_names_it(
    columns: dict[str, list], read: dict[str, Any], reason: str, table: Callable, error_message: ErrorMessage
):
    data = table(columns, read)
    assert reason in error_message(lambda: list(open_rows(data)))


def test_the_error_of_a_bad_row_in_a_streamed_table_names_it(table: Callable, error_message: ErrorMessage):
    stream = open_rows(table({"a": ["x", None], "b": ["y", "z"]}, PAIR, streaming=True))
    assert error_message(lambda: list(stream)).startswith("hub, row 1, query: expected 'text' or 'image'")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"split": "test"}, "hub cannot be read as a table (Unknown split"),
        ({"config_name": "french"}, "hub cannot be read as a table (BuilderConfig 'french' not found"),
        (
            {"instructions": {"target": "Find:"}},
            "unknown key 'target' in `instructions`; valid keys are query, positive",
        ),
        (
            {"streaming": True, "mined_file": "x"},
            "a dataset with mined_file cannot be streamed: set streaming to false",
        ),
        (
            {"streaming": True, "rejected_file": "x"},
            "a dataset with rejected_file cannot be streamed: set streaming to",
        ),
    ],
    ids=["split", "configuration", "side", "mined stream", "rejected stream"],
)
def test_the_error_of_a_wrong_table_setting_names_it(
    more: dict[str, Any], reason: str, table: Callable, error_message: ErrorMessage
):
    assert reason in error_message(lambda: open_rows(table({"a": ["x"], "b": ["y"]}, PAIR, **more)))


def test_the_error_of_a_damaged_table_names_it(table: Callable, error_message: ErrorMessage):
    data = table({"a": ["x"], "b": ["y"]}, PAIR)
    file = Path(data.dataset, "train-00000-of-00001.parquet")
    file.write_bytes(file.read_bytes()[:-9])  # as after an interrupted download
    assert f"{data.dataset} cannot be read as a table (" in error_message(lambda: open_rows(data))


def test_the_error_of_an_empty_table_names_it(table: Callable, error_message: ErrorMessage):
    data = table({"a": [], "b": []}, PAIR, Features({"a": Value("string"), "b": Value("string")}))
    assert f"{data.dataset} cannot be read as a table (" in error_message(lambda: open_rows(data))


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_source_columns_may_have_the_names_of_row_columns_and_be_read_twice(streaming: bool, table: Callable):
    columns = {"where": ["in Rome"], "task": ["a task"], "kind": [1]}
    features = Features({"where": Value("string"), "task": Value("string"), "kind": ClassLabel(names=["cat", "dog"])})
    read = {"query.text": "where", "positive.text": "task", "task": "kind", "label": "kind"}
    (row,) = open_rows(table(columns, read, features, streaming=streaming))
    assert (row["query"]["text"], row["positives"][0]["text"]) == ("in Rome", "a task")
    assert (row["task"], row["label"], row["where"]) == ("1", "1", "hub, row 0")


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
@pytest.mark.parametrize(
    ("texts", "reason"),
    [(["a", None], "row 1: 'text' must be a string, got NoneType"), ([1, 2], "row 0: 'text' must")],
)
def test_the_error_of_a_column_without_texts_names_the_row(
    texts: list[Any], reason: str, streaming: bool, table: Callable, error_message: ErrorMessage
):
    data = table({"sentence": texts}, {"text": "sentence"}, streaming=streaming)
    assert f"hub, {reason}" in error_message(lambda: list(open_texts(data)))
