"""Long jobs that are killed at random moments and restarted end with the same result as an undisturbed job.

Each job is the command that a user types. It runs in a process forked from a server that has already imported the
libraries, so that the random moments fall into the work and not into the imports, and dozens of kills take minutes.
"""

import json
import multiprocessing
import os
import random
import runpy
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from torch import equal

from unime.index.index import Index


ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "checkpoints" / "unime-tiny")
MAX_JOB_SECONDS = 600
KILLS = 8  # per job
# Not LanceDB: it starts threads, which a fork does not copy.
IMPORTS = [
    "trl",
    "peft",
    "faiss",
    "sentence_transformers",
    "unime.trainers",
    "unime.data.sources",
    "unime.openmoji.dataset",
]
IMPORTS += ["unime.eval.encoders.loading", "unime.eval.report.html_report", "unime.index.parquet_shards"]

Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def fork_server() -> Any:
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:  # the server and its forks inherit these variables
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        context.set_forkserver_preload(IMPORTS)
        first = context.Process(target=os.getpid)
        first.start()
        first.join(MAX_JOB_SECONDS)  # wait for the imports
        assert first.exitcode is not None, "the server did not import its libraries"
    return context


@pytest.fixture
def start(fork_server: Any, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Return a function that starts a script or module of the project with command-line arguments."""

    def start(target: str, *arguments: object) -> BaseProcess:
        run, name = (runpy.run_path, str(ROOT / target)) if target.endswith(".py") else (runpy.run_module, target)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.chdir(ROOT)
        process = fork_server.Process(target=run, args=(name,), kwargs={"run_name": "__main__"})
        process.start()
        return process

    return start


@pytest.fixture
def kill(record_property: Callable[[str, object], None], tmp_path: Path) -> Callable[..., None]:
    """Return a function that kills a job at random moments, restarts it until it ends, and compares its output.

    Its arguments are a function that starts the job with an output path, and one that compares the undisturbed output
    with the other one.
    """

    def kill(begin: Callable[[Path], BaseProcess], compare: Callable[[Path, Path], None]) -> None:
        undisturbed = tmp_path / "undisturbed"
        start_time = time.monotonic()
        process = begin(undisturbed)
        process.join(MAX_JOB_SECONDS)
        assert process.exitcode == 0
        duration, randomness = time.monotonic() - start_time, random.Random(0)
        kills, finished = 0, 0
        while True:
            killed = tmp_path / f"killed {finished}"
            process = begin(killed)
            process.join(randomness.uniform(0, duration) if kills < KILLS else MAX_JOB_SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()
                assert kills < KILLS, f"the job did not end within {MAX_JOB_SECONDS} s"
                kills += 1
                continue
            assert process.exitcode == 0, "the same command failed when restarted after a kill"
            compare(undisturbed, killed)
            if kills == KILLS:
                break
            finished += 1  # the next kills hit a job from scratch
        record_property("kills", kills)

    return kill


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_killed_training_ends_with_the_same_weights(
    stage: str, start: Start, kill: Callable[..., None], tiny_model: Callable[[str], Path], tmp_path: Path
):
    texts = [{"text": f"text number {number}", "teacher": np.eye(32)[number].tolist()} for number in range(32)]
    pairs = [{"query": {"text": f"number {number}"}, "positive": {"text": f"{number}"}} for number in range(32)]
    dataset = write_lines(tmp_path / "rows.jsonl", texts if stage == "stage1" else pairs)
    settings = [
        "--dataset",
        dataset,
        "--model_name_or_path",
        tiny_model("llava"),
        "--bf16",
        "false",
        "--warmup_steps",
        1,
    ]
    settings += ["--per_device_train_batch_size", 8, "--max_steps", 60, "--save_steps", 1, "--save_total_limit", 2]
    settings += ["--logging_steps", 1]

    def begin(output: Path) -> BaseProcess:
        config = ROOT / "recipes" / "tiny" / f"{stage}.yaml"
        return start(f"recipes/{stage}.py", "--config", config, *settings, "--output_dir", output)

    def compare(undisturbed: Path, killed: Path) -> None:
        expected, weights = (load_file(output / "model.safetensors") for output in (undisturbed, killed))
        assert weights.keys() == expected.keys() and all(equal(weights[name], expected[name]) for name in expected)
        states = [json.loads((output / "trainer_state.json").read_text()) for output in (undisturbed, killed)]
        losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in states]
        assert len(losses[0]) == 60 and losses[0] == losses[1]

    kill(begin, compare)


@pytest.mark.slow
def test_a_killed_mining_job_ends_with_the_same_negatives(start: Start, kill: Callable[..., None], tmp_path: Path):
    pairs = [{"query": {"text": f"number {n}"}, "positive": {"text": f"{n} is its name"}} for n in range(3000)]
    settings = ["--config", "recipes/tiny/stage2.yaml", "--dataset", write_lines(tmp_path / "rows.jsonl", pairs)]
    settings += ["--model", TINY, "--num_negatives", 2, "--relative_margin", 0]

    def compare(undisturbed: Path, killed: Path) -> None:
        for name in ("negatives.jsonl", "report.json"):
            assert (undisturbed / name).read_text() == (killed / name).read_text()
        assert json.loads((killed / "report.json").read_text())["rows.jsonl"]["taken"] > 500

    kill(lambda output: start("recipes/mine.py", *settings, "--output_dir", output), compare)


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_same_results(start: Start, kill: Callable[..., None]):
    def compare(undisturbed: Path, killed: Path) -> None:
        results = [json.loads((output / "results.json").read_text()) for output in (undisturbed, killed)]
        expected, scores = (result["unime-tiny"] for result in results)
        for part in ("tasks", "compositional", "overall"):
            assert scores[part] == expected[part] and scores[part]
        assert (undisturbed / "table.md").read_text() == (killed / "table.md").read_text()
        assert (killed / "report.html").read_text().rstrip().endswith("</html>")

    kill(lambda output: start("unime.cli", "eval", "--models", TINY, "--size", 60, "--output_dir", output), compare)


@pytest.mark.slow
def test_a_killed_suite_ends_with_the_same_results(start: Start, kill: Callable[..., None]):
    def compare(undisturbed: Path, killed: Path) -> None:
        results = [json.loads((output / "results.json").read_text()) for output in (undisturbed, killed)]
        for suite in ("retrieval", "compositional", "text"):
            expected, scores = (result[suite]["unime-tiny"] for result in results)
            assert scores["scores"] == expected["scores"] and scores["evaluated"] == scores["expected"]
            assert all(scores[part] == expected[part] for part in ("tasks", "compositional"))
        assert (undisturbed / "table.md").read_text() == (killed / "table.md").read_text()

    settings = ["--models", TINY, "--suite", "retrieval", "compositional", "text", "--miniature", "--output"]
    kill(lambda output: start("unime.cli", "eval", *settings, output), compare)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write 3000 texts; one of them cannot be embedded."""
    texts = [{"id": f"{number}", "text": f"number {number} of many"} for number in range(3000)]
    texts[1500]["text"] = " "
    return write_lines(tmp_path / "corpus.jsonl", texts)


@pytest.mark.slow
def test_a_killed_embedding_job_ends_with_the_same_embeddings(start: Start, kill: Callable[..., None], corpus: Path):
    def compare(undisturbed: Path, killed: Path) -> None:
        expected, table = (pd.read_parquet(output) for output in (undisturbed, killed))
        assert len(table) == 2999 and table.drop(columns="embedding").equals(expected.drop(columns="embedding"))
        assert np.array_equal(np.stack(table["embedding"]), np.stack(expected["embedding"]))
        rejected = [output.with_name(f"{output.name}.rejected.jsonl").read_text() for output in (undisturbed, killed)]
        assert rejected[0] == rejected[1] and rejected[0].count("\n") == 1
        assert sorted(os.listdir(undisturbed)) == sorted(os.listdir(killed))  # no half-written file is left

    kill(lambda output: start("unime.cli", "embed", corpus, output, "--model", TINY), compare)


@pytest.mark.slow
def test_a_killed_indexing_job_ends_with_the_same_index(start: Start, kill: Callable[..., None], corpus: Path):
    def rows(folder: Path) -> dict[str, dict[str, Any]]:
        read = Index.open(folder).table.table.to_arrow().to_pylist()
        assert len({row["id"] for row in read}) == len(read)
        return {row["id"]: row for row in read}

    def compare(undisturbed: Path, killed: Path) -> None:
        expected, restarted = rows(undisturbed), rows(killed)
        vectors = [
            np.array([rows_by_id[name].pop("vector") for name in sorted(rows_by_id)])
            for rows_by_id in (expected, restarted)
        ]
        assert len(restarted) == 2999 and restarted == expected
        np.testing.assert_allclose(*vectors, atol=1e-6)  # a restarted job has other windows

    kill(lambda output: start("unime.cli", "index", corpus, output, "--model", TINY), compare)
