"""MRMR on small files in the published layout."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from unime.eval.benchmarks import mrmr
from unime.eval.miniatures.hub_files import write_hub_dataset
from unime.eval.miniatures.mrmr_miniature import DOCUMENTS, write_mrmr
from unime.eval.tasks import RetrievalTask, evaluate


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mrmr(tmp_path_factory.mktemp("mrmr"))


def number_of(part: str | Image.Image) -> int | None:
    if isinstance(part, str):
        digits = re.findall(r"number (\d+)", part)
        return int(digits[0]) if digits else None
    return round(np.asarray(part).mean() / 20)


def encode(items):
    """Embed an item as the first number in its parts."""
    numbers = [next(filter(lambda one: one is not None, map(number_of, item["content"]))) for item in items]
    return np.eye(DOCUMENTS, dtype=np.float32)[numbers]


def parts(task: RetrievalTask, query: int) -> list:
    return [part if isinstance(part, str) else number_of(part) for part in task.queries[query]["content"]]


def test_disciplines_and_contradictions_are_tasks(source: Path):
    tasks = mrmr.tasks(source)
    assert [(task.name, task.main_metric) for task in tasks] == [
        ("mrmr_knowledge_Art", "ndcg@10"),
        ("mrmr_knowledge_Science", "ndcg@10"),
        ("mrmr_theorem_Math", "ndcg@10"),
        ("mrmr_theorem_Physics", "ndcg@10"),
        ("mrmr_design", "ndcg@10"),
        ("mrmr_traffic", "ndcg@10"),
        ("mrmr_negation", "hit@1"),
    ]
    results, _ = evaluate(encode, tasks, model="numbers", progress=False)
    assert list(results["distributions"]) == ["Knowledge", "Theorem", "Contradiction"]
    scores = results["tasks"]
    assert [scores[name][scores[name]["metric"]] for name in ("mrmr_design", "mrmr_theorem_Math")] == [1.0, 1.0]
    # Of two positives one is found first; the other is tied with six others, so that it is last of eight.
    two = (1 + 1 / np.log2(9)) / (1 + 1 / np.log2(3))
    assert scores["mrmr_knowledge_Science"]["ndcg@10"] == pytest.approx(two) == scores["mrmr_traffic"]["ndcg@10"]
    assert scores["mrmr_knowledge_Science"]["queries"] == 1  # the query without a judgment is left out


def test_a_query_is_compared_with_its_own_captions_only(source: Path):
    (task,) = mrmr.tasks(source, ["negation"])
    assert task.pools == [[0, 1, 2, 3], [4, 5, 6, 7]] and task.positives == [[1], [6]]
    assert task.chance == 0.25
    assert parts(task, 1) == [6] and task.queries[0]["instruction"].startswith("Given an image caption, retrieve")


def test_images_are_read_where_their_marks_stand(source: Path):
    art, science = mrmr.tasks(source, ["knowledge"])
    assert parts(art, 0) == ["Which one is", 1, ", and what is not", 2, "?"]
    assert parts(science, 0) == ["What follows from number 3?"]
    document = art.candidates[3]
    assert [part if isinstance(part, str) else number_of(part) for part in document["content"]] == [
        "See", 3, "of number 3.",
    ]  # fmt: skip
    assert "instruction" not in document and art.candidates[2]["content"] == ["About number 2."]
    (math, _) = mrmr.tasks(source, ["theorem"])
    assert parts(math, 0) == [2, "How is it computed?"]
    (design,) = mrmr.tasks(source, ["design"])
    assert parts(design, 0) == ["Is", 1, "as it must be?"]
    assert len(set(art.queries.keys() + science.queries.keys() + math.queries.keys())) == 3


def test_images_without_marks_come_first(source: Path):
    assert mrmr._content(0, "text", ["image"]) == [{"type": "image", "image": (0, "image")}, "text"]
    # `image` repeats the numbered images.
    numbered = [{"type": "image", "image": (4, f"image {number}")} for number in (1, 2)]
    assert mrmr._content(4, "", ["image", "image 1", "image 2"]) == numbered
    assert mrmr._content(4, "see <image 1>", ["image", "image 1", "image 2"]) == [numbered[1], "see", numbered[0]]
    # A mark without an image is text.
    assert mrmr._content(0, "<image 1> or <image 2>", ["image 1"]) == [
        {"type": "image", "image": (0, "image 1")}, "or", "<image 2>",
    ]  # fmt: skip


def test_datasets_of_another_form_are_refused(source: Path, tmp_path: Path):
    copy = tmp_path / "MRMRbenchmark" / "design"
    for tables, message in (
        ({"qrels": [{"query-id": "validation_0", "score": 1}]}, "qrels: lacks the column.s. corpus-id; use the data"),
        ({"qrels": [{"query-id": "a", "corpus-id": "b", "score": 1}]}, "qrels row 0: the corpus has no document 'b'"),
        (
            {"qrels": [{"query-id": "a", "corpus-id": "doc_1", "score": 1}]},
            "design: no query has a judgment; use",
        ),
        ({"corpus": [{"id": "doc_0", "text": None}, {"id": "doc_1", "text": "a"}]}, "corpus row 0: there is neither"),
    ):
        shutil.copytree(source / "MRMRbenchmark" / "design", copy)
        readme = (copy / "README.md").read_text()
        for config in tables:
            shutil.rmtree(copy / config)
        write_hub_dataset(copy, {config: Dataset.from_list(rows) for config, rows in tables.items()})
        (copy / "README.md").write_text(readme)
        with pytest.raises(ValueError, match=message):
            mrmr.tasks(tmp_path, ["design"])
        shutil.rmtree(copy)
    with pytest.raises(ValueError, match="MRMR design: the folder .*MRMRbenchmark/design does not exist; copy the"):
        mrmr.tasks(tmp_path, ["design"])
