"""Bad evaluation data: a score over fewer rows would be another score, so there is one sentence and no result."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from unime.eval.benchmarks import caption_retrieval, mmeb, sugarcrepe, text_similarity
from unime.eval.metrics import spearman
from unime.eval.tasks import CompositionalTask, RetrievalTask, SimilarityTask, evaluate


ErrorMessage = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one image."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "images" / "0.png")
    return tmp_path


def publish(folder: Path, rows: Sequence[dict[str, Any]], config: str = "") -> str:
    """Write a dataset in the layout of the Hub, with one configuration."""
    (folder / config).mkdir(exist_ok=True)
    Dataset.from_list(list(rows)).to_parquet(folder / config / "test-00000-of-00001.parquet")
    path = f"{config}/test-*" if config else "test-*"
    name = config or "default"
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {name}\n  data_files:\n  - split: test\n    path: {path}\n---\n"
    )
    return str(folder)


MMEB = {"qry_text": "q", "qry_img_path": "images/0.png", "tgt_text": ["a", "b"], "tgt_img_path": ["", ""]}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([MMEB | {"qry_text": None}, MMEB], "MMEB CIRR, row 0: qry_text lacks a text: use the dataset as published"),
        ([MMEB, MMEB | {"tgt_text": None}], "MMEB CIRR, row 1: tgt_text lacks a list of texts: use the dataset as"),
        ([MMEB | {"tgt_text": ["a", None]}], "MMEB CIRR, row 0: tgt_text lacks a list of texts: use the dataset as"),
        ([MMEB | {"tgt_text": "ab"}], "MMEB CIRR: column tgt_text holds string, not a list of texts: use the"),
        ([MMEB | {"qry_text": 3}], "MMEB CIRR: column qry_text holds int64, not a text: use the dataset as published"),
        ([MMEB | {"tgt_text": [1, 2]}], "MMEB CIRR: column tgt_text holds list<item: int64>, not a list of texts"),
        ([MMEB | {"tgt_img_path": None}, MMEB], "MMEB CIRR, row 0: expected equally many candidate texts and images"),
        ([MMEB | {"tgt_text": ["a"]}], "images and at least one, got 1 texts and 2 images"),
        ([MMEB, MMEB | {"tgt_text": [], "tgt_img_path": []}], "MMEB CIRR, row 1: expected equally many"),
        ([MMEB, MMEB | {"qry_text": "", "qry_img_path": ""}], "query 1 of task 'CIRR': expected 'text' or 'image'"),
        ([MMEB | {"tgt_text": ["", "b"]}], "candidate 0 of task 'CIRR': expected 'text' or 'image'"),
        ([MMEB | {"qry_img_path": "images/1.png"}], "MMEB CIRR, row 0: the image "),
        ([MMEB | {"tgt_img_path": ["images/1.png", ""]}], "MMEB CIRR, candidate 0: the image "),
        ([{"qry_text": "q"}], "lacks the column(s) qry_img_path, tgt_text, tgt_img_path; found: qry_text. Use the"),
        ([], "cannot be read as a table ("),
    ],
    ids=[
        "query null", "candidates null", "candidate null", "candidates one string", "query a number",
        "candidates numbers", "paths null", "unequal lists", "no candidates", "query empty", "candidate empty",
        "image missing", "image of a candidate missing", "columns missing", "no rows",
    ],
)  # fmt: skip
def test_the_error_names_a_bad_row_of_mmeb(rows: list[dict], reason: str, folder: Path, error_message: ErrorMessage):
    place = publish(folder, rows, "CIRR")
    assert reason in error_message(lambda: mmeb.tasks(place, folder, ["CIRR"]))


def encoded(folder: Path) -> dict[str, Any]:
    return {"bytes": (folder / "images" / "0.png").read_bytes(), "path": None}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([{}, {"text": None}], "flickr30k, row 1: text lacks a list of texts: use the dataset as published"),
        ([{"text": ["a", None]}], "flickr30k, row 0: text lacks a list of texts: use the dataset as published"),
        (
            [{"text": "abcde"}],
            "flickr30k: column text holds string, not a list of texts: use the dataset as published",
        ),
        ([{"text": [1]}], "flickr30k: column text holds list<item: int64>, not a list of texts: use the"),
        ([{}, {"text": []}], "query 1 of task 'flickr30k_i2t' has the positives []; give at least one"),
        (
            [{"image": 3}],
            "flickr30k, row 0: expected images in the column image, got Value('int64'); use the published dataset",
        ),
        ([], "cannot be read as a table ("),
    ],
    ids=[
        "captions null",
        "caption null",
        "caption alone",
        "captions numbers",
        "no captions",
        "no images",
        "no rows",
    ],
)
def test_the_error_names_a_bad_row_of_captions(
    changes: list[dict], reason: str, folder: Path, error_message: ErrorMessage
):
    rows = [{"image": encoded(folder), "text": ["a", "b"]} | change for change in changes]
    assert reason in error_message(lambda: caption_retrieval.flickr30k(publish(folder, rows)))


@pytest.mark.parametrize("place", ["first", "second"])
def test_the_error_for_a_missing_image_names_the_row(place: str, folder: Path, error_message: ErrorMessage):
    rows = [{"image": encoded(folder), "text": ["a"]}] * 2
    rows.insert(0 if place == "first" else 1, {"image": None, "text": ["a"]})
    message = error_message(lambda: caption_retrieval.flickr30k(publish(folder, rows)))
    assert message == f"flickr30k, row {0 if place == 'first' else 1}: there is no image; use the published dataset"


TURNS = {"image": "0.png", "conversations": [{"value": "?"}, {"value": "a caption"}]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "sharegpt4v: there is no file {path}: use the file as published"),
        ("[{", "sharegpt4v: {path} is not valid JSON ("),
        ("", "sharegpt4v: {path} is not valid JSON ("),
        ('"\udce4"', "sharegpt4v: {path} is not valid JSON ("),
        ("{}", "sharegpt4v: {path} holds a dict, not a list: use the file as published"),
        ([TURNS, {"image": "0.png"}], "sharegpt4v, row 1: expected an object with an image, and a"),
        ([TURNS | {"image": None}], "sharegpt4v, row 0: expected an object with an image, and a"),
        ([TURNS | {"conversations": [{"value": "?"}]}], "sharegpt4v, row 0: expected an object with an image, and a"),
        ([TURNS | {"conversations": "abc"}], "sharegpt4v, row 0: expected an object with an image, and a"),
        ([3], "sharegpt4v, row 0: expected an object with an image, and a caption as the second"),
        ([TURNS | {"image": "1.png"}], "sharegpt4v, row 0: the image "),
        ([], "task 'sharegpt4v_t2i' has 0 queries and 0 lists of positives"),
    ],
    ids=[
        "no file", "cut short", "empty file", "no UTF-8", "an object", "no conversations", "image null", "one turn",
        "conversations a string", "a number", "image missing", "no rows",
    ],
)  # fmt: skip
def test_the_error_names_a_bad_file_or_row_of_long_captions(
    content: Any, reason: str, folder: Path, error_message: ErrorMessage
):
    path = folder / "captions.json"
    if content is not None:
        written = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(written.encode("utf-8", "surrogateescape"))
    assert reason.format(path=path) in error_message(lambda: caption_retrieval.sharegpt4v(path, folder / "images"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "urban1k: the image 0.jpg has no caption {path}; unpack the dataset again"),
        (b"", "urban1k: the caption {path} is empty; unpack the dataset again"),
        (b"\xe4\n", "query 0 of task 'urban1k_t2i': 'text' is not valid Unicode"),
    ],
    ids=["missing", "empty", "no UTF-8"],
)
def test_the_error_names_a_bad_caption_of_urban1k(
    content: bytes | None, reason: str, tmp_path: Path, error_message: ErrorMessage
):
    for part in ("image", "caption"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "image" / "0.jpg")
    path = tmp_path / "caption" / "0.txt"
    if content is not None:
        path.write_bytes(content)
    assert reason.format(path=path) in error_message(lambda: caption_retrieval.urban1k(tmp_path))


SUGARCREPE = {"filename": "0.png", "caption": "a", "negative_caption": "b"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the file {path} does not exist; give the folder data/ of the SugarCrepe"),
        ("{", "SugarCrepe: {path} is not valid JSON ("),
        ("[]", "SugarCrepe: {path} holds a list, not a dict: use the file as published"),
        ({"7": {"filename": "0.png", "caption": "a"}}, "replace_obj.json, row 7: missing negative_caption"),
        ({"7": SUGARCREPE | {"caption": None}}, "replace_obj.json, row 7: missing caption"),
        ({"7": SUGARCREPE | {"caption": 3}}, "replace_obj.json, row 7: missing caption"),
        ({"7": [1]}, "replace_obj.json, row 7: missing filename, caption, negative_caption"),
        ({"7": SUGARCREPE | {"filename": "1.png"}}, "replace_obj.json, row 7: the image "),
        ({"7": SUGARCREPE | {"caption": "a\ud800"}}, "caption 0 of task 'replace_obj': 'text' is not valid Unicode"),
        ({}, "task 'replace_obj' has 0 images, 0 captions and 0 negatives; give equally many of each, and at least"),
    ],
    ids=[
        "no file", "cut short", "a list", "key missing", "caption null", "caption a number", "row a list",
        "image missing", "lone surrogate", "no rows",
    ],
)  # fmt: skip
def test_the_error_names_a_bad_file_or_row_of_sugarcrepe(
    content: Any, reason: str, folder: Path, error_message: ErrorMessage
):
    assert sugarcrepe.KINDS[0] == "replace_obj"
    path = folder / "replace_obj.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert reason.format(path=path) in error_message(lambda: sugarcrepe.tasks(folder, folder / "images"))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([("a", "b", 1.0), ("a", "b", float("nan"))], "pair 1 of task 'SICK-R' has the similarity nan; give a finite"),
        ([("a", "b", None), ("a", "b", 1.0)], "pair 0 of task 'SICK-R' has the similarity None; give a finite number"),
        ([("a", "b", "1"), ("a", "b", "2")], "pair 0 of task 'SICK-R' has the similarity '1'; give a finite number"),
        ([("a", "b", 1.0), ("a", "b", 1.0)], "all similarities of task 'SICK-R' are 1.0, so there is no order"),
        ([("a", "b", 1.0)], "has 1 and 1 items and 1 similarities; give equally many of each, and at least two"),
        ([("a", "b", 1.0), (None, "b", 2.0)], "SICK-R, row 1: sentence1 lacks a text: use the dataset as"),
        (
            [("a", 1, 1.0), ("b", 2, 2.0)],
            "SICK-R: column sentence2 holds int64, not a text: use the dataset as published",
        ),
    ],
    ids=["NaN", "null", "scores of strings", "all equal", "one pair", "text null", "text a number"],
)
def test_the_error_names_a_bad_pair_of_similarities(
    rows: list[tuple], reason: str, tmp_path: Path, error_message: ErrorMessage
):
    (tmp_path / "sickr-sts").mkdir()
    publish(tmp_path / "sickr-sts", [dict(zip(("sentence1", "sentence2", "score"), row, strict=True)) for row in rows])
    assert reason in error_message(lambda: text_similarity.sts(str(tmp_path), ["SICK-R"]))


def axes(items: Sequence[Any]) -> np.ndarray:
    return np.eye(8, dtype=np.float32)[: len(items)]


ITEMS = [{"text": "a"}, {"text": "b"}]
SEARCH = {"name": "x", "meta_task": "vqa", "queries": ITEMS[:1], "candidates": ITEMS, "positives": [[0]]}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: RetrievalTask(**SEARCH | {"candidates": []}), "has the positives [0]; give at least one, all among"),
        (lambda: RetrievalTask(**SEARCH | {"positives": [[-1]]}), "has the positives [-1]; give at least one"),
        (lambda: RetrievalTask(**SEARCH, pools=[[0, 7]]), "has the pool [0, 7]; use candidate indices from 0 to 1"),
        (lambda: RetrievalTask(**SEARCH, pools=[[0, -1]]), "has the pool [0, -1]; use candidate indices from 0 to 1"),
        (lambda: RetrievalTask(**SEARCH, relevance=[[1.0, 2.0]]), "needs exactly one relevance per positive of each"),
        (lambda: RetrievalTask(**SEARCH | {"queries": [{}]}), "query 0 of task 'x': expected 'text' or 'image'"),
        (lambda: RetrievalTask(**SEARCH | {"queries": [None]}), "query 0 of task 'x': expected a str, a PIL image"),
        (lambda: RetrievalTask(**SEARCH | {"candidates": ["a", 3]}), "candidate 1 of task 'x': expected a str"),
        (lambda: RetrievalTask(**SEARCH | {"candidates": ["a", {"image": "0.png"}]}), "candidate 1 of task 'x': "),
        (lambda: SimilarityTask("x", ITEMS, [{"text": "a"}, {"text": 3}], [1, 2]), "second 1 of task 'x': 'text'"),
        (lambda: CompositionalTask("x_y", ITEMS[:1], [{}], ITEMS[:1]), "caption 0 of task 'x_y': expected 'text' or"),
        (
            lambda: evaluate(axes, [RetrievalTask(**SEARCH), RetrievalTask(**SEARCH)], model="m", progress=False),
            "two tasks are named 'x'; give each a unique name",
        ),
        (
            lambda: evaluate(lambda items: np.ones(3), [RetrievalTask(**SEARCH)], model="m", progress=False),
            "expected embeddings of shape (1, D) from encode, got (3,)",
        ),
    ],
    ids=[
        "no candidates", "positive before the first", "pool beyond", "pool before the first", "relevance",
        "query empty", "query null", "candidate a number", "candidate a path", "pair a number", "caption empty",
        "one name twice", "embeddings without rows",
    ],
)  # fmt: skip
def test_the_error_names_an_inconsistent_task(make: Callable[[], Any], reason: str, error_message: ErrorMessage):
    assert reason in error_message(make)


def test_a_duplicate_candidate_counts_once(folder: Path):
    place = publish(folder, [MMEB | {"tgt_text": ["a", "a"]}, MMEB], "CIRR")
    (task,) = mmeb.tasks(place, folder, ["CIRR"])
    assert len(task.candidates) == 2 and task.pools == [[0, 0], [0, 1]]
    results, _ = evaluate(lambda items: np.ones((len(items), 1), np.float32), [task], model="same", progress=False)
    assert results["overall"] == 0.5  # the first query has no negative


def test_a_constant_embedding_has_a_spearman_correlation_of_zero():
    task = SimilarityTask("x", ITEMS, ITEMS, [1.0, 2.0])
    results, _ = evaluate(lambda items: np.ones((len(items), 1), np.float32), [task], model="same", progress=False)
    assert results["overall"] == spearman([3, 3], [1, 2]) == 0.0
