"""Evaluations with a reranker, on scores worked out by hand and through the command."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unime.eval.miniatures.caption_miniature import write_urban1k
from unime.eval.report.paper_scores import Protocol, measured_protocol
from unime.eval.reranking import Reranking
from unime.eval.tasks import CompositionalTask, RetrievalTask, evaluate


ROOT = Path(__file__).resolve().parents[2]
command = importlib.import_module("unime.eval.__main__")

# The reranker's scores of texts. The number in a text is its cosine with the query.
SCORES = {"a 0.9": 0.2, "b 0.8": 0.3, "c 0.7": 1.0, "d 0.1": 1.0}


def encode(items: Sequence[Any]) -> np.ndarray:
    """Return vectors whose cosine with a query is the number at the end of a text."""
    vectors = []
    for item in items:
        cosine = float(item["text"].split()[1]) if " " in item["text"] else 1.0
        vectors.append([cosine, np.sqrt(1 - cosine**2)])
    return np.array(vectors, dtype=np.float32)


def scores(query: Any, candidates: Sequence[Any]) -> list[float]:
    return [SCORES[candidate["text"]] for candidate in candidates]


def texts(*values: str) -> list[dict[str, str]]:
    return [{"text": value} for value in values]


@pytest.mark.parametrize(
    ("depth", "positive", "rank"),
    [(2, 1, 1), (2, 0, 2), (2, 2, 3), (2, 3, 4), (3, 2, 1), (4, 2, 2), (4, 1, 3), (10, 0, 4)],
)
def test_the_best_candidates_are_reranked_and_the_others_keep_their_order(depth: int, positive: int, rank: int):
    # Of depth 3: c (1.0), b (0.3), a (0.2), then d. Of depth 4, d ties with c, and ties count as wrong.
    task = RetrievalTask("t", "retrieval", texts("q0"), texts("a 0.9", "b 0.8", "c 0.7", "d 0.1"), [[positive]])
    results, _ = evaluate(encode, [task], model="m", progress=False, reranking=Reranking(scores, depth))
    assert results["tasks"]["t"]["MRR"] == pytest.approx(1 / rank)


def test_only_the_pool_of_a_query_is_reranked():
    task = RetrievalTask(
        "t", "retrieval", texts("q0"), texts("a 0.9", "b 0.8", "c 0.7", "d 0.1"), [[0]], pools=[[0, 3]]
    )
    results, _ = evaluate(encode, [task], model="m", progress=False, reranking=Reranking(scores, 2))
    assert results["tasks"]["t"]["MRR"] == pytest.approx(1 / 2)


def test_the_reranker_gets_the_frames_of_videos_as_images():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    asked: list[Any] = []
    reranking = Reranking(lambda query, candidates: asked.extend([query, *candidates]) or [1.0, 0.0])
    reranking.rerank(np.ones((1, 2)), [{"video": frames, "text": "a"}], [{"video": frames}, "b"], None)
    assert asked == [{"content": [*frames, "a"], "instruction": None}, {"content": frames, "instruction": None}, "b"]


def test_captions_are_compared_by_the_reranker():
    task = CompositionalTask("swap_obj", texts("q0", "q0"), texts("a 0.9", "c 0.7"), texts("b 0.8", "d 0.1"))
    reranked, _ = evaluate(encode, [], [task], model="m", progress=False, reranking=Reranking(scores))
    alone, _ = evaluate(encode, [], [task], model="m", progress=False)
    # a < b, and c = d, which counts as wrong
    assert reranked["compositional"]["swap_obj"] == 0 and alone["compositional"]["swap_obj"] == 1


def test_a_depth_that_changes_no_order_is_refused():
    with pytest.raises(ValueError, match="depth must be at least 2 to change an order, got 1"):
        Reranking(scores, 1)


def test_the_command_records_the_reranker(tmp_path: Path):
    write_urban1k(tmp_path, {number: f"number {number}\n" for number in range(4)})
    embedder, reranker = (str(ROOT / "checkpoints" / name) for name in ("unime-tiny", "tiny-backbone"))
    for name, options in (("alone", []), ("reranked", ["--rerank", reranker, "--depth", "3"])):
        arguments = ["--models", embedder, "--benchmarks", "urban1k", "--urban1k_folder", str(tmp_path), *options]
        command.main([*arguments, "--output", str(tmp_path / name), "--embedding_cache", str(tmp_path / "embeddings")])
    alone, reranked = (
        json.loads((tmp_path / name / "results.json").read_text())["unime-tiny"] for name in ("alone", "reranked")
    )
    recorded = reranked["run"]["protocol"]["reranker"]
    assert {name: recorded[name] for name in ("method", "depth")} == {"method": "pointwise", "depth": 3}
    assert recorded["model"].endswith("tiny-backbone") and "reranker" not in alone["run"]["protocol"]
    assert reranked["embedded"]["items"] == 0 and reranked["tasks"].keys() == alone["tasks"].keys()
    assert measured_protocol(reranked["run"], "urban1k") == Protocol("own", "own (reranked)")
