"""The same command resumes a killed training run, which ends as if it had not been interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from torch import equal

from unime.trainers import last_complete_checkpoint


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
STEPS = 6


def start(
    stage: str, processes: int, backbone: Path, dataset: Path, output: Path, streaming: bool = False
) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [RECIPES / f"{stage}.py", "--config", RECIPES / "tiny" / f"{stage}.yaml", "--dataset", dataset]
    command += ["--model_name_or_path", backbone, "--output_dir", output, "--bf16", "false"]
    command += ["--per_device_train_batch_size", 4 // processes, "--max_steps", STEPS, "--save_steps", 1]
    command += ["--warmup_steps", 1, "--logging_steps", 1]
    if streaming:
        command += ["--streaming", "true", "--task_block_size", 1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [str(argument) for argument in command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(training: subprocess.Popen) -> None:
    _, errors = training.communicate(timeout=240)
    assert training.returncode == 0, errors[-4000:]


def kill_while_saving(training: subprocess.Popen, folder: Path) -> None:
    """Kill all processes of a training run as soon as they have made a folder."""
    deadline = time.monotonic() + 240
    while not folder.exists():
        assert training.poll() is None and time.monotonic() < deadline, training.communicate()[1][-4000:]
        time.sleep(0.001)
    launcher = psutil.Process(training.pid)
    for process in [*launcher.children(recursive=True), launcher]:
        process.kill()
    training.communicate()
    assert training.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "processes", "streaming"), [("stage1", 1, False), ("stage2", 2, False), ("stage2", 2, True)]
)
def test_a_training_killed_during_a_save_ends_with_the_same_weights(
    stage: str,
    processes: int,
    streaming: bool,
    tiny_model,
    texts: Path,
    pairs: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
):
    dataset = texts if stage == "stage1" else pairs
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    finish(start(stage, processes, tiny_model("llava"), dataset, uninterrupted, streaming))
    kill_while_saving(
        start(stage, processes, tiny_model("llava"), dataset, killed, streaming), killed / "checkpoint-3"
    )
    record_property("kills", 1)
    assert last_complete_checkpoint(killed) in [str(killed / f"checkpoint-{step}") for step in (2, 3)]
    finish(start(stage, processes, tiny_model("llava"), dataset, killed, streaming))

    expected, weights = (load_file(run / "model.safetensors") for run in (uninterrupted, killed))
    assert weights.keys() == expected.keys() and all(equal(weights[name], expected[name]) for name in expected)
    histories = [
        json.loads((run / "trainer_state.json").read_text())["log_history"] for run in (uninterrupted, killed)
    ]
    losses = [[entry["loss"] for entry in history if "loss" in entry] for history in histories]
    assert len(losses[0]) == STEPS and losses[0] == losses[1]


def test_an_incomplete_checkpoint_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert last_complete_checkpoint(tmp_path / "absent") is None
    for step, state in ((9, "{}"), (10, "{}"), (11, '{"epoch": '), (12, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert f"skipping {tmp_path / 'checkpoint-12'}: saving it was interrupted" in caplog.text
