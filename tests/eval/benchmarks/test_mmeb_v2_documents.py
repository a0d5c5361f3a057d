"""Miniature visual documents of MMEB-V2: all 24 subsets in the published layout, each page a shade of gray."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from unime.eval.benchmarks.mmeb_v2_documents import CANDIDATE_INSTRUCTION, QUERY_INSTRUCTION, SETS, tasks
from unime.eval.embedding_cache import EmbeddingCache
from unime.eval.miniatures.document_miniature import PAGES, published_tables, write_subset
from unime.eval.tasks import evaluate


Publish = Callable[..., Path]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(names: list[str], change: Callable[[dict[str, dict[str, list]]], Any] = dict) -> Path:
        for name in names:
            columns = published_tables(name)
            change(columns)
            write_subset(tmp_path / "hub", name, columns)
        return tmp_path / "hub"

    return write


def encode(items):
    """Embed a page as the dimension of its gray, a query as its numbers, the first with the largest weight."""
    rows = np.zeros((len(items), PAGES), dtype=np.float32)
    for row, item in zip(rows, items, strict=True):
        if "image" in item:
            row[round(np.asarray(item["image"])[0, 0, 0] / 20)] = 1
        else:
            for place, page in enumerate(re.findall(r"\d+", item["text"])):
                row[int(page)] = 3 - place
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_all_24_subsets_run_and_score_graded_ndcg(publish: Publish):
    opened = tasks(publish(list(SETS)))
    results, rankings = evaluate(EmbeddingCache(encode), opened, model="grays", benchmark="documents", progress=False)
    # The first query ranks its page first. The second ranks relevances 2, 0, 1; the ideal order is 2, 1.
    second = (1 / math.log2(2) + 0 / math.log2(3) + 2 / math.log2(4)) / (2 / math.log2(2) + 1 / math.log2(3))
    score = pytest.approx((1 + second) / 2)
    assert len(results["tasks"]) == 24 == len(rankings["retrieval"])
    for task in results["tasks"].values():
        assert (task["metric"], task["ndcg@5"], task["hit@1"], task["candidates"]) == ("ndcg@5", score, 1.0, PAGES)
    assert results["distributions"] == dict.fromkeys(("ViDoRe-V1", "ViDoRe-V2", "VisRAG", "VisDoc-OOD"), score)
    assert results["meta_tasks"] == {"documents": score} and results["overall"] == score
    groups = [group for group, _, _ in SETS.values()]
    assert [groups.count(group) for group in dict.fromkeys(groups)] == [10, 4, 6, 4]


def test_queries_and_pages_have_the_published_instructions(publish: Publish):
    names = ["VisRAG_PlotQA", "ViDoRe_esg_reports_v2_multilingual"]
    chart, report = tasks(publish(names), names)
    assert chart.queries[1] == {"text": "pages 2 3 1", "instruction": QUERY_INSTRUCTION}
    assert chart.candidates[5]["instruction"] == CANDIDATE_INSTRUCTION and chart.candidates[5]["image"].size == (4, 4)
    assert (report.positives, report.relevance) == ([[0], [1, 2]], [[1.0], [2.0, 1.0]])
    assert len(report.queries) == 2  # all languages are evaluated
    assert len(set(chart.candidates.keys())) == PAGES


def test_a_clone_of_mmeb_v2_is_read(publish: Publish):
    names = ["ViDoRe_tatdqa", "VisRAG_ChartQA"]
    copies = publish(names)
    clone = copies.parent / "MMEB-V2"
    (clone / "visdoc-tasks" / "data").mkdir(parents=True)
    for name in names:
        (copies / SETS[name][1]).rename(clone / "visdoc-tasks" / "data" / Path(SETS[name][1]).name)
    assert [task.name for task in tasks(clone, names)] == names
    with pytest.raises(ValueError, match=r"copy the dataset VLM2Vec/ViDoSeek-page-fixed there, as with `hf download"):
        tasks(clone, ["ViDoSeek-page"])


def test_files_in_another_layout_are_refused_in_one_sentence(publish: Publish, tmp_path: Path):
    reason = "unknown subset 'ViDoRe' of MMEB-V2's visual documents: choose from ViDoRe_arxiv"
    with pytest.raises(ValueError, match=reason):
        tasks(subsets=["ViDoRe"])
    with pytest.raises(
        ValueError, match="ViDoSeek-doc, queries: the folder .* does not exist; copy the dataset VLM2V"
    ):
        tasks(tmp_path, ["ViDoSeek-doc"])

    def rename(published: dict) -> None:
        published["qrels"]["relevance"] = published["qrels"].pop("score")

    names = ["ViDoRe_tatdqa"]
    sentence = (
        "ViDoRe_tatdqa, qrels: .* lacks the column.s. score; found: query-id, corpus-id, relevance. Use the data"
    )
    with pytest.raises(ValueError, match=sentence):
        tasks(publish(names, rename), names)


@pytest.mark.parametrize(
    ("config", "column", "row", "value", "sentence"),
    [
        (
            "corpus",
            "image",
            4,
            None,
            "^MMEB-V2 MMLongBench-page, corpus row 4: there is no image; use the published",
        ),
        ("qrels", "corpus-id", 1, 77, "^MMEB-V2 MMLongBench-page, qrels row 1: the corpus has no page 77; use corpus"),
        ("qrels", "score", 0, 0, "^MMEB-V2 MMLongBench-page, queries row 0: qrels have no relevant page for the que"),
    ],
)
def test_missing_values_are_refused(publish: Publish, config: str, column: str, row: int, value: Any, sentence: str):
    def change(published: dict) -> None:
        published[config][column][row] = value

    with pytest.raises(ValueError, match=sentence):
        tasks(publish(["MMLongBench-page"], change), ["MMLongBench-page"])


def test_the_error_for_a_broken_page_names_its_row(publish: Publish):
    def change(published: dict) -> None:
        published["corpus"]["image"][3] = {"bytes": b"no image", "path": None}

    (task,) = tasks(publish(["ViDoRe_docvqa"], change), ["ViDoRe_docvqa"])
    with pytest.raises(ValueError, match="^MMEB-V2 ViDoRe_docvqa, corpus row 3: cannot read the image"):
        task.candidates[3]


def test_an_id_that_occurs_twice_is_one_page(publish: Publish):
    def change(published: dict) -> None:
        published["corpus"]["corpus-id"][5] = 4

    (task,) = tasks(publish(["ViDoRe_docvqa"], change), ["ViDoRe_docvqa"])
    assert len(task.candidates) == PAGES - 1


def test_a_copy_that_has_changed_is_read_again(publish: Publish):
    def change(published: dict) -> None:
        published["queries"]["query"][0] = "another"

    before = tasks(publish(["ViDoRe_docvqa"]), ["ViDoRe_docvqa"])[0].queries[0]["text"]
    after = tasks(publish(["ViDoRe_docvqa"], change), ["ViDoRe_docvqa"])[0].queries[0]["text"]
    assert (before, after) == ("pages 0 1 2", "another")
