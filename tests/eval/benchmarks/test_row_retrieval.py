"""Evaluation on rows of your own: the tasks, and their metrics on numbers worked by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unime.eval.__main__ import main
from unime.eval.benchmarks import BenchmarkArguments, open_benchmark
from unime.eval.benchmarks.row_retrieval import tasks
from unime.eval.embedding_cache import EmbeddingCache
from unime.eval.tasks import evaluate
from unime.processing_unime import to_item_dict


ROOT = Path(__file__).resolve().parents[3]
COLORS = ("red", "green", "blue", "yellow")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes tiles and a JSONL file beside them."""
    for color in COLORS:
        Image.new("RGB", (8, 6), color).save(tmp_path / f"{color}.png")

    def lines(*values: Any, name: str = "test.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in values))
        return str(tmp_path / name)

    return lines


def by_color(items: Sequence[Any]) -> np.ndarray:
    """Embed a tile by its color, and a text by the color that it ends with."""
    vectors = []
    for item in items:
        parts = to_item_dict(item)
        images = parts["images"] or [Image.new("RGB", (1, 1), parts["text"].split()[-1])]
        vectors.append([1, *(value / 255 for value in images[0].getpixel((0, 0)))])
    array = np.float32(vectors)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def scores_of(path: str, **options: Any) -> dict[str, dict[str, Any]]:
    return evaluate(by_color, tasks(path, **options), model="colors", progress=False)[0]["tasks"]


def test_the_candidates_are_all_positives_and_negatives(write: Callable):
    red = {"query": "a tile of red", "positive": "red.png"}
    green = {"query": "a tile of green", "positives": ["green.png", "red.png"], "negatives": ["blue.png"]}
    (task,) = tasks(write(red, green))
    assert (task.name, task.meta_task, len(task.queries), len(task.candidates)) == ("test.jsonl", "retrieval", 2, 3)
    assert task.positives == [[0], [0, 1]] and task.pools is None
    assert [to_item_dict(item)["images"][0].getpixel((0, 0)) for item in task.candidates] == [
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
    ]


def test_scores_worked_out_by_hand(write: Callable):
    # "red" finds red; "green" has red as its only positive, which is second after green and before blue.
    red = {"query": "a tile of red", "positive": "red.png", "negatives": ["green.png"]}
    wrong = {"query": "a tile of green", "positive": "blue.png"}
    scores = scores_of(write(red, wrong))["test.jsonl"]
    assert scores["hit@1"] == scores["R@1"] == 0.5 and scores["R@5"] == 1
    assert scores["candidates"] == 3
    assert scores["MRR"] == pytest.approx((1 + 1 / 2) / 2, abs=0.1)


def test_rows_of_one_query_and_rows_of_one_label_share_their_right_answers(write: Callable):
    rows = [{"query": "a tile of red", "positive": "blue.png"}, {"query": "a tile of red", "positive": "red.png"}]
    (task,) = tasks(write(*rows))
    assert len(task.queries) == 1 and task.positives == [[0, 1]]
    labelled = [{**row, "query": f"{number} {row['query']}", "label": "x"} for number, row in enumerate(rows)]
    (task,) = tasks(write(*labelled))
    assert task.positives == [[0, 1], [0, 1]]
    in_two_tasks = [{**row, "task": str(number)} for number, row in enumerate(labelled)]
    assert [task.positives for task in tasks(write(*in_two_tasks))] == [[[0]], [[1]]]


def test_a_query_is_no_candidate_of_itself(write: Callable):
    caption, image = "a tile of red", {"image": "red.png", "instruction": "Describe the image."}
    (task,) = tasks(write({"query": caption, "positive": image}, {"query": {"image": "red.png"}, "positive": caption}))
    assert task.positives == [[0], [1]] and task.pools == [[0], [1]]


def test_more_candidates_make_it_harder(write: Callable):
    path = write({"query": "a tile of green", "positive": "blue.png"})
    assert scores_of(path)["test.jsonl"]["hit@1"] == 1
    more = write("a wall of green", {"image": "yellow.png"}, name="more.jsonl")
    scores = scores_of(path, candidates=more)["test.jsonl"]
    assert scores["hit@1"] == 0 and scores["candidates"] == 3


def test_image_folders_with_captions_and_with_classes(tmp_path: Path):
    for color in COLORS:
        (tmp_path / "classes" / color).mkdir(parents=True)
        (tmp_path / "captions").mkdir(exist_ok=True)
        for folder, name in (
            ("captions", f"{color}.png"),
            (f"classes/{color}", "0.png"),
            (f"classes/{color}", "1.png"),
        ):
            shade = 0 if name != "1.png" else 1
            tile = Image.new("RGB", (8, 6), color)
            tile.putpixel((7, 5), (shade, shade, shade))
            tile.save(tmp_path / folder / name)
    lines = [json.dumps({"file_name": f"{color}.png", "caption": f"a tile of {color}"}) for color in COLORS]
    (tmp_path / "captions" / "metadata.jsonl").write_text("\n".join(lines))
    captions = scores_of(str(tmp_path / "captions"))["captions"]
    assert (captions["hit@1"], captions["queries"], captions["candidates"]) == (1, 4, 4)
    classes = scores_of(str(tmp_path / "classes"))["classes"]
    assert (classes["hit@1"], classes["queries"], classes["candidates"]) == (1, 8, 4)


def test_embeddings_are_cached_by_content(write: Callable, tmp_path: Path):
    path = write(*({"query": f"a tile of {color}", "positive": f"{color}.png"} for color in COLORS))
    for expected in (8, 0):
        cache = EmbeddingCache(by_color, tmp_path / "cache")
        evaluate(cache, tasks(path), model="colors", progress=False)
        assert cache.embedded_items == expected
    Image.new("RGB", (8, 6), "black").save(tmp_path / "red.png")
    cache = EmbeddingCache(by_color, tmp_path / "cache")
    evaluate(cache, tasks(path), model="colors", progress=False)
    assert cache.embedded_items == 1


def test_errors_name_the_place(write: Callable, tmp_path: Path):
    with pytest.raises(ValueError, match="benchmark 'rows' needs your data: give --rows"):
        open_benchmark("rows", BenchmarkArguments())
    with pytest.raises(FileNotFoundError, match="there is no file of candidates"):
        tasks(write({"query": "a", "positive": "b"}), candidates=str(tmp_path / "no.jsonl"))
    (tmp_path / "broken.jsonl").write_text('"a"\nnot json\n')
    with pytest.raises(ValueError, match="broken.jsonl, line 2 is not JSON"):
        tasks(write({"query": "a", "positive": "b"}), candidates=str(tmp_path / "broken.jsonl"))
    with pytest.raises(ValueError, match="test.jsonl, row 1, positive: cannot read the image .*no.png"):
        tasks(write({"query": "a", "positive": "b"}, {"query": "a", "positive": "no.png"}))


def test_the_command_writes_results_and_a_report(write: Callable, tmp_path: Path):
    path = write(*({"query": f"a tile of {color}", "positive": f"{color}.png"} for color in COLORS))
    model = f"--model={ROOT / 'checkpoints' / 'unime-tiny'}"
    main([model, "--benchmark", "rows", "--rows", path, "--output", str(tmp_path / "out")])
    results = json.loads((tmp_path / "out" / "results.json").read_text())["unime-tiny"]
    assert results["benchmark"] == "rows"
    assert results["tasks"]["test.jsonl"]["queries"] == 4
    assert {"hit@1", "R@5", "MRR", "ndcg@10"} <= results["tasks"]["test.jsonl"].keys()
    report = (tmp_path / "out" / "report.html").read_text()
    assert "a tile of yellow" in report and report.count("data:image/png") >= 4
