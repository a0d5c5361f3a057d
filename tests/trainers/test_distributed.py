import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from unime import UniMEModel


SCRIPT = str(Path(__file__).parent / "joined_batch.py")


@pytest.fixture(scope="module")
def runs(twin: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run both stages in one process with batches of twelve, and in two with batches of six."""
    folder = tmp_path_factory.mktemp("joined")
    torch.manual_seed(0)
    UniMEModel.from_backbone(AutoConfig.from_pretrained(twin("llava"))).save_pretrained(folder / "model")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    started = [
        subprocess.Popen(
            [*command, SCRIPT, str(folder / "model"), str(twin("llava")), str(folder / output), batch_size],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, output, batch_size in (([sys.executable], "one", "12"), (launch, "two", "6"))
    ]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-4000:]
    return {name: torch.load(folder / name) for name in ("one.0", "two.0", "two.1")}


@pytest.mark.parametrize("stage", ["contrastive", "distillation"])
def test_two_processes_train_as_one_does_with_the_joined_batch(runs: dict[str, dict[str, Any]], stage: str):
    one = runs["one.0"][stage]
    for name in ("two.0", "two.1"):
        two = runs[name][stage]
        torch.testing.assert_close(two["weights"], one["weights"], atol=1e-6, rtol=0)
        for entry_of_two, entry_of_one in zip(two["log"], one["log"], strict=True):
            assert entry_of_two == pytest.approx(entry_of_one, rel=1e-5, abs=1e-5)
        assert two["evaluation"] == pytest.approx(one["evaluation"], rel=1e-5)


@pytest.mark.parametrize("stage", ["contrastive", "distillation"])
def test_gradients_are_reduced_once_per_step(runs: dict[str, dict[str, Any]], stage: str):
    assert runs["two.0"]["world"] == 2
    assert [runs[name][stage]["all_reduces"] for name in ("two.0", "two.1")] == [2, 2]


def test_the_two_processes_had_batches_of_different_kinds(runs: dict[str, dict[str, Any]]):
    assert [runs[name]["contrastive"]["has_pictures"] for name in ("two.0", "two.1")] == [False, True]
