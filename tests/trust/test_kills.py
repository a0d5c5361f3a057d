"""Long jobs that are killed at random moments and started again end as if nothing had happened.

Each job is the command that a user types. It runs in a process that a server forks, which has imported the libraries
beforehand: so the random moments fall into the work, not into the imports, and dozens of kills take minutes.
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
PATIENCE = 600  # seconds
KILLS = 8  # of each job; one of each training in the quick suite
# LanceDB is left out: it starts threads, which a fork does not take along.
IMPORTS = [
    "trl",
    "peft",
    "faiss",
    "sentence_transformers",
    "unime.trainers",
    "unime.data.sources",
    "unime.openmoji.dataset",
]
IMPORTS += ["unime.eval.__main__", "unime.index.parquet_shards"]

Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def forks() -> Any:
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:  # the server and what it forks take the variables of this moment
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        context.set_forkserver_preload(IMPORTS)
        first = context.Process(target=os.getpid)
        first.start()
        first.join()  # the imports are done
    return context


@pytest.fixture
def start(forks: Any, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Give a function that starts a script of the project, or a module of it, with words of a command line."""

    def start(what: str, *words: object) -> BaseProcess:
        run, name = (runpy.run_path, str(ROOT / what)) if what.endswith(".py") else (runpy.run_module, what)
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        monkeypatch.chdir(ROOT)
        process = forks.Process(target=run, args=(name,), kwargs={"run_name": "__main__"})
        process.start()
        return process

    return start


@pytest.fixture
def kill(record_property: Callable[[str, object], None], tmp_path: Path) -> Callable[..., None]:
    """Give a function that kills a job at random moments, starts it again, and compares what it has made in the end.

    Its arguments are what starts the job with an output, and what compares an undisturbed output with another one.
    """

    def kill(begin: Callable[[Path], BaseProcess], compare: Callable[[Path, Path], None], times: int = KILLS) -> None:
        undisturbed = tmp_path / "undisturbed"
        began = time.monotonic()
        process = begin(undisturbed)
        process.join(PATIENCE)
        assert process.exitcode == 0
        duration, moments = time.monotonic() - began, random.Random(0)
        kills, finished = 0, 0
        while True:
            killed = tmp_path / f"killed {finished}"
            process = begin(killed)
            process.join(moments.uniform(0, duration) if kills < times else PATIENCE)
            if process.exitcode is None:
                process.kill()
                process.join()
                assert kills < times, f"the job did not end within {PATIENCE} s"
                kills += 1
                continue
            assert process.exitcode == 0, "the same command, started again after a kill, failed"
            compare(undisturbed, killed)
            if kills == times:
                break
            finished += 1  # between kills: the next ones are of a job from scratch
        record_property("kills", kills)

    return kill


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("times", [1, pytest.param(KILLS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_training(
    stage: str, times: int, start: Start, kill: Callable[..., None], tiny_model: Callable[[str], Path], tmp_path: Path
):
    texts = [{"text": f"text number {number}", "teacher": np.eye(32)[number].tolist()} for number in range(32)]
    pairs = [{"query": {"text": f"number {number}"}, "positive": {"text": f"{number}"}} for number in range(32)]
    dataset = lines(tmp_path / "rows.jsonl", texts if stage == "stage1" else pairs)
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
        one, other = (load_file(output / "model.safetensors") for output in (undisturbed, killed))
        assert one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
        states = [json.loads((output / "trainer_state.json").read_text()) for output in (undisturbed, killed)]
        losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in states]
        assert len(losses[0]) == 60 and losses[0] == losses[1]

    kill(begin, compare, times)


@pytest.mark.slow
def test_mining(start: Start, kill: Callable[..., None], tmp_path: Path):
    pairs = [{"query": {"text": f"number {n}"}, "positive": {"text": f"{n} is its name"}} for n in range(3000)]
    settings = ["--config", "recipes/tiny/stage2.yaml", "--dataset", lines(tmp_path / "rows.jsonl", pairs)]
    settings += ["--model", TINY, "--num_negatives", 2, "--relative_margin", 0]

    def compare(undisturbed: Path, killed: Path) -> None:
        for name in ("negatives.jsonl", "report.json"):
            assert (undisturbed / name).read_text() == (killed / name).read_text()
        assert json.loads((killed / "report.json").read_text())["rows.jsonl"]["taken"] > 500

    kill(lambda output: start("recipes/mine.py", *settings, "--output_dir", output), compare)


@pytest.mark.slow
def test_evaluation(start: Start, kill: Callable[..., None]):
    def compare(undisturbed: Path, killed: Path) -> None:
        results = [json.loads((output / "results.json").read_text()) for output in (undisturbed, killed)]
        one, other = (found["unime-tiny"] for found in results)
        for part in ("tasks", "compositional", "overall"):
            assert one[part] == other[part] and one[part]
        assert (undisturbed / "table.md").read_text() == (killed / "table.md").read_text()
        assert (killed / "report.html").read_text().rstrip().endswith("</html>")

    kill(lambda output: start("unime.cli", "eval", "--models", TINY, "--size", 60, "--output_dir", output), compare)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write three thousand texts, of which one cannot be embedded."""
    texts = [{"id": f"{number}", "text": f"number {number} of many"} for number in range(3000)]
    texts[1500]["text"] = " "
    return lines(tmp_path / "corpus.jsonl", texts)


@pytest.mark.slow
def test_embedding_of_a_corpus(start: Start, kill: Callable[..., None], corpus: Path):
    def compare(undisturbed: Path, killed: Path) -> None:
        one, other = (pd.read_parquet(output) for output in (undisturbed, killed))
        assert len(one) == 2999 and one.drop(columns="embedding").equals(other.drop(columns="embedding"))
        assert np.array_equal(np.stack(one["embedding"]), np.stack(other["embedding"]))
        rejected = [output.with_name(f"{output.name}.rejected.jsonl").read_text() for output in (undisturbed, killed)]
        assert rejected[0] == rejected[1] and rejected[0].count("\n") == 1
        assert sorted(os.listdir(undisturbed)) == sorted(os.listdir(killed))  # nothing half-written stays

    kill(lambda output: start("unime.cli", "embed", corpus, output, "--model", TINY), compare)


@pytest.mark.slow
def test_indexing(start: Start, kill: Callable[..., None], corpus: Path):
    def rows(folder: Path) -> dict[str, dict[str, Any]]:
        read = Index.open(folder).table.table.to_arrow().to_pylist()
        assert len({row["id"] for row in read}) == len(read)
        return {row["id"]: row for row in read}

    def compare(undisturbed: Path, killed: Path) -> None:
        one, other = rows(undisturbed), rows(killed)
        vectors = [np.array([found[name].pop("vector") for name in sorted(found)]) for found in (one, other)]
        assert len(one) == 2999 and one == other
        np.testing.assert_allclose(*vectors, atol=1e-6)  # windows begin elsewhere after a kill

    kill(lambda output: start("unime.cli", "index", corpus, output, "--model", TINY), compare)
