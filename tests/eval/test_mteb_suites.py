"""mteb's benchmarks as suites, on mteb's own tasks of made-up data."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest


pytest.importorskip("mteb")

import mteb  # noqa: E402
from mteb.mocks import mock_tasks  # noqa: E402

from unime.eval.encoders.loading import load_encoder  # noqa: E402
from unime.eval.encoders.mteb_encoder import model_meta  # noqa: E402
from unime.eval.mteb_suites import evaluate_benchmark, open_mteb_benchmark  # noqa: E402
from unime.eval.suites import SUITES  # noqa: E402


ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "checkpoints" / "unime-tiny")
command = importlib.import_module("unime.eval.__main__")


@pytest.mark.slow
def test_a_task_is_scored_once_per_model_and_settings(tmp_path: Path):
    sizes = []

    def encode(items) -> np.ndarray:
        sizes.append(len(items))
        return np.array([[len(item["text"]), 1] for item in items], dtype=np.float32)

    benchmark = mteb.Benchmark(name="one task", tasks=[mock_tasks.MockSTSTask()])
    first, again = (evaluate_benchmark(benchmark, encode, "a model", "r1", tmp_path) for _ in range(2))
    count = len(sizes)
    assert count > 0 and first == again and list(first["scores"])[-1] == "Mean (TaskType): STS"
    evaluate_benchmark(benchmark, encode, "a model", "r2", tmp_path)
    assert len(sizes) == 2 * count


@pytest.mark.slow
def test_every_mteb_suite_is_a_benchmark_of_mteb():
    names = {suite.mteb for suite in SUITES.values() if suite.mteb}
    assert names == {"MIEB(lite)", "ViDoRe(v3)", "MTEB(eng, v2)", "JinaVDR"}
    assert all(len(open_mteb_benchmark(name).tasks) >= 10 for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MIEB(lite)", "MTEB(eng, v2)"])
def test_scores_are_those_of_mteb(name: str, tmp_path: Path):
    benchmark = open_mteb_benchmark(name, miniature=True)
    results = evaluate_benchmark(benchmark, load_encoder(TINY).encode, "UniME tiny", "r1", tmp_path)
    other_model = evaluate_benchmark(benchmark, load_encoder(TINY).encode, "the same again", "r1", tmp_path)
    assert other_model["scores"] == results["scores"]  # on the same sample of the data
    own = mteb.evaluate(
        model_meta(TINY, "unime/unime-tiny").load_model("cpu", dtype="float32"),
        open_mteb_benchmark(name, miniature=True).tasks,
        cache=None,
        co2_tracker=False,
    )
    expected = {result.task_name: result.get_score() for result in own.task_results}
    assert {task: scores["main_score"] for task, scores in results["tasks"].items()} == pytest.approx(expected)
    assert results["scores"]["Mean (Task)"] == pytest.approx(np.mean(list(expected.values())))
    assert results["evaluated"] == results["expected"] == {"Mean (Task)": 3, "Mean (TaskType)": 3}


@pytest.mark.slow
def test_one_table_has_own_benchmarks_and_those_of_mteb(tmp_path: Path):
    arguments = ["--models", TINY, "--suite", "compositional", "vidore-v3", "--miniature", "--output", str(tmp_path)]
    command.main(arguments)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["compositional", "vidore-v3"]
    assert results["vidore-v3"]["unime-tiny"]["runs"]["ViDoRe(v3)"]["dtype"] == "float32"
    table = (tmp_path / "table.md").read_text()
    assert "| **SugarCrepe**" in table and "| **Mean (TaskType)**" in table and "| Any2AnyRetrieval" in table
