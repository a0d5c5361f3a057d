"""M-BEIR on small files in the published layout."""

import json
from pathlib import Path

import numpy as np
import pytest

from unime.eval.benchmarks import m_beir
from unime.eval.benchmarks.m_beir import SETS
from unime.eval.miniatures.m_beir_miniature import CANDIDATES, write_lines, write_m_beir
from unime.eval.tasks import evaluate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_m_beir(tmp_path)


def encode(items):
    """Embed an item as the number in its text, or of its image."""
    numbers = []
    for item in items:
        digits = [word for word in item.get("text", "").replace(".", " ").replace("?", " ").split() if word.isdigit()]
        numbers.append(int(digits[0]) if digits else round(np.asarray(item["image"]).mean() / 20))
    return np.eye(CANDIDATES, dtype=np.float32)[numbers]


def test_sixteen_tasks_with_their_own_candidates(folder: Path):
    tasks = m_beir.tasks(folder)
    assert [task.name for task in tasks] == list(SETS) and len(SETS) == 16
    assert [task.positives for task in tasks] == [[[1, 2], [4]]] * 16
    results, _ = evaluate(encode, tasks, model="numbers", progress=False)
    assert results["overall"] == 1.0
    metrics = {name: scores["metric"] for name, scores in results["tasks"].items()}
    assert {name for name, metric in metrics.items() if metric == "R@10"} == {
        "fashion200k_task0", "fashion200k_task3", "fashioniq_task7",
    }  # fmt: skip
    assert results["tasks"]["cirr_task7"]["metric"] == "R@5"
    # Of twelve candidates, five are looked at; one query has two positives.
    two = 1 - 10 * 9 * 8 * 7 * 6 / (12 * 11 * 10 * 9 * 8)
    assert results["tasks"]["cirr_task7"]["chance"] == pytest.approx((two + 5 / 12) / 2)


def test_items_are_read_as_by_uniir(folder: Path):
    (task,) = m_beir.tasks(folder, ["webqa_task2"])
    assert task.queries[0] == {"text": "which is number 1?", "instruction": "Find what webqa asks for."}
    assert task.candidates[3]["text"] == "Number 3." and task.candidates[3]["image"].size == (4, 4)
    (task,) = m_beir.tasks(folder, ["nights_task4"])
    assert sorted(task.queries[0]) == ["image", "instruction"] and sorted(task.candidates[0]) == ["image"]
    path = folder / "query" / "test" / "mbeir_webqa_task1_test.jsonl"
    texts = ['"a quoted\r question"', "no mark at the end", ""]
    write_lines(path, (json.dumps({"qid": "2:1000", "query_txt": text}) for text in texts[:2]))
    (task,) = m_beir.tasks(folder, ["webqa_task1"])
    assert [query["text"] for query in task.queries] == ['"a quoted question.', "no mark at the end."]


def test_ties_and_other_ranks_count_against_the_model(folder: Path):
    (task,) = m_beir.tasks(folder, ["cirr_task7"])
    results, _ = evaluate(lambda items: np.ones((len(items), 1)), [task], model="one", progress=False)
    assert results["tasks"]["cirr_task7"]["R@5"] == 0.0  # behind ten negatives and more
    (task,) = m_beir.tasks(folder, ["fashioniq_task7"])
    ranked = np.zeros((len(task.candidates), 2), dtype=np.float32)
    ranked[:, 0] = np.linspace(1, 0.5, len(task.candidates))
    ranked[:, 1] = np.sqrt(1 - ranked[:, 0] ** 2)
    query = np.array([[1, 0]], dtype=np.float32)

    def encode_in_order(items):
        is_query = "instruction" in items[0]
        return np.repeat(query, len(items), axis=0) if is_query else ranked[: len(items)]

    results, _ = evaluate(encode_in_order, [task], model="in order", progress=False)
    scores = results["tasks"]["fashioniq_task7"]
    assert [scores[f"R@{k}"] for k in (1, 5, 10)] == [0.0, 1.0, 1.0]  # the best positives are at places 2 and 5


@pytest.mark.parametrize(
    ("path", "lines", "message"),
    [
        ("qrels/test/mbeir_webqa_task1_test_qrels.txt", ["2:1000 0 2:1 1"], "line 1: expected query, 0, candidate"),
        (
            "qrels/test/mbeir_webqa_task1_test_qrels.txt",
            ["2:1000 0 2:1 0 1"],
            "2:1000 has no positive in mbeir_web",
        ),
        ("query/test/mbeir_webqa_task1_test.jsonl", ["{}"], "line 1: missing qid; use the files as published"),
        ("query/test/mbeir_webqa_task1_test.jsonl", ['{"qid": "3:1"}'], "has no instruction for 3, text, text"),
        ("cand_pool/local/mbeir_webqa_task1_cand_pool.jsonl", ['{"did": "2:1"}'], "neither text nor image"),
        (
            "cand_pool/local/mbeir_webqa_task1_cand_pool.jsonl",
            ['{"did": "2:1", "img_path": "mbeir_images/no.jpg"}'] * 2,
            "candidate 0: the image .*no.jpg does not exist; unpack mbeir_images.tar.gz",
        ),
    ],
)
def test_files_of_another_form_are_refused(folder: Path, path: str, lines: list[str], message: str):
    write_lines(folder / path, lines)
    if "no.jpg" in lines[0]:
        write_lines(folder / "qrels/test/mbeir_webqa_task1_test_qrels.txt", ["2:1000 0 2:1 1 1", "2:1001 0 2:1 1 1"])
    with pytest.raises(ValueError, match=message):
        m_beir.tasks(folder, ["webqa_task1"])


def test_a_missing_file_and_an_unknown_subset_are_named(folder: Path):
    (folder / "cand_pool" / "local" / "mbeir_mscoco_task0_test_cand_pool.jsonl").unlink()
    with pytest.raises(ValueError, match="no file .*mbeir_mscoco_task0_test_cand_pool.jsonl; give the clone"):
        m_beir.tasks(folder, ["mscoco_task0"])
    with pytest.raises(ValueError, match="unknown subset 'coco' of M-BEIR: choose from visualnews_task0"):
        m_beir.tasks(folder, ["coco"])
