"""MMEB-V2's visual documents in miniature: all 24 sets in the published layout, each page a shade of grey."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Value
from PIL import Image

from unime.eval.benchmarks.mmeb_v2_documents import CANDIDATE, QUERY, SETS, tasks
from unime.eval.embedding_cache import EmbeddingCache
from unime.eval.tasks import evaluate


PAGES = 6
Publish = Callable[..., Path]


def page_id(name: str, page: int) -> int | str:
    """Ids as published: file names in VisRAG, numbers elsewhere."""
    return f"paper_{page}.jpg" if name.startswith("VisRAG") else page


def tables(name: str) -> dict[str, dict[str, list]]:
    """Two queries: the order of numbers in a query is the order in which `encode` ranks the pages."""
    kind = str if name.startswith("VisRAG") else int
    return {
        "queries": {
            "query-id": [kind(10), kind(11)],
            "query": ["pages 0 1 2", "pages 2 3 1"],
            "language": ["english", "french"],
        },
        "corpus": {
            "corpus-id": [page_id(name, page) for page in range(PAGES)],
            "image": [Image.new("RGB", (4, 4), (30 * page,) * 3) for page in range(PAGES)],
            "doc-id": ["a report"] * PAGES,
        },
        "qrels": {
            "query-id": [kind(10), kind(11), kind(11), kind(11), kind(11)],
            "corpus-id": [page_id(name, page) for page in (0, 1, 2, 3, 2)],
            "score": [1, 2, 1, 0, 1],  # a judgement of 0 is none, one made twice counts once
        },
    }


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(names: list[str], change: Callable[[dict[str, dict[str, list]]], Any] = dict) -> Path:
        for name in names:
            _, repository, split = SETS[name]
            folder, published, configs = tmp_path / "hub" / repository, tables(name), []
            change(published)
            for config, columns in published.items():
                features = None
                if "image" in columns:
                    key = Value("string") if name.startswith("VisRAG") else Value("int64")
                    features = Features({"corpus-id": key, "image": datasets.Image(), "doc-id": Value("string")})
                (folder / config).mkdir(parents=True, exist_ok=True)
                Dataset.from_dict(columns, features).to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
                configs.append(f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/*\n")
            (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
        return tmp_path / "hub"

    return write


def encode(items):
    """Embed a page as the axis of its grey, a query as its numbers, of which the first weighs most."""
    rows = np.zeros((len(items), PAGES), dtype=np.float32)
    for row, item in zip(rows, items, strict=True):
        if "image" in item:
            row[round(np.asarray(item["image"])[0, 0, 0] / 30)] = 1
        else:
            for place, page in enumerate(re.findall(r"\d+", item["text"])):
                row[int(page)] = 3 - place
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_all_24_sets_run_and_score_graded_ndcg(publish: Publish):
    found = tasks(publish(list(SETS)))
    results, rankings = evaluate(EmbeddingCache(encode), found, model="greys", benchmark="documents", progress=False)
    # The first query finds its page at once. The second sees 2 (1), 3 (nothing), 1 (2), the best order being 2, 1.
    second = (1 / math.log2(2) + 0 / math.log2(3) + 2 / math.log2(4)) / (2 / math.log2(2) + 1 / math.log2(3))
    score = pytest.approx((1 + second) / 2)
    assert len(results["tasks"]) == 24 == len(rankings["retrieval"])
    for task in results["tasks"].values():
        assert (task["metric"], task["ndcg@5"], task["hit@1"], task["candidates"]) == ("ndcg@5", score, 1.0, PAGES)
    assert results["distributions"] == dict.fromkeys(("ViDoRe-V1", "ViDoRe-V2", "VisRAG", "VisDoc-OOD"), score)
    assert results["meta_tasks"] == {"documents": score} and results["overall"] == score
    groups = [group for group, _, _ in SETS.values()]
    assert [groups.count(group) for group in dict.fromkeys(groups)] == [10, 4, 6, 4]


def test_queries_and_pages_carry_the_published_instructions(publish: Publish):
    names = ["VisRAG_PlotQA", "ViDoRe_esg_reports_v2_multilingual"]
    chart, report = tasks(publish(names), names)
    assert chart.queries[1] == {"text": "pages 2 3 1", "instruction": QUERY}
    assert chart.candidates[5]["instruction"] == CANDIDATE and chart.candidates[5]["image"].size == (4, 4)
    assert (report.positives, report.relevance) == ([[0], [1, 2]], [[1.0], [2.0, 1.0]])
    assert len(report.queries) == 2  # every language is asked
    assert len(set(chart.candidates.keys())) == PAGES


def test_what_is_not_as_published_is_refused_in_one_sentence(publish: Publish, tmp_path: Path):
    reason = "unknown subset 'ViDoRe' of MMEB-V2's visual documents: choose from ViDoRe_arxiv"
    with pytest.raises(ValueError, match=reason):
        tasks(subsets=["ViDoRe"])
    with pytest.raises(ValueError, match="ViDoSeek-doc, queries: there is no folder .*copy the dataset VLM2Vec/ViDoS"):
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
            "^MMEB-V2 MMLongBench-page, corpus row 4 has no image: copy the dataset again$",
        ),
        ("qrels", "corpus-id", 1, 77, "^MMEB-V2 MMLongBench-page, qrels row 1: the corpus holds no 77: give corpus"),
        ("qrels", "score", 0, 0, "^MMEB-V2 MMLongBench-page, queries row 0: qrels hold nothing relevant for the que"),
    ],
)
def test_gaps_name_set_and_row(publish: Publish, config: str, column: str, row: int, value: Any, sentence: str):
    def change(published: dict) -> None:
        published[config][column][row] = value

    with pytest.raises(ValueError, match=sentence):
        tasks(publish(["MMLongBench-page"], change), ["MMLongBench-page"])


def test_a_broken_page_is_named_when_it_is_read(publish: Publish):
    def change(published: dict) -> None:
        published["corpus"]["image"][3] = {"bytes": b"no image", "path": None}

    (task,) = tasks(publish(["ViDoRe_docvqa"], change), ["ViDoRe_docvqa"])
    with pytest.raises(ValueError, match="^MMEB-V2 ViDoRe_docvqa, corpus row 3: cannot read the image"):
        task.candidates[3]


def test_an_id_that_comes_twice_is_one_page(publish: Publish):
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
