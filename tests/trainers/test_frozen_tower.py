"""With a frozen vision tower, processes with different numbers of images still run its shards together."""

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


SCRIPT = str(Path(__file__).parent / "frozen_tower.py")
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def train(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, list[str], list[str]], list[dict[str, Any]]]:
    """Return a function that runs the script with a launcher and settings; a hang fails by its timeout."""
    folder = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(0)
    UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava"))).save_pretrained(folder / "model")

    def train(name: str, launcher: list[str], settings: list[str]) -> list[dict[str, Any]]:
        arguments = [str(folder / "model"), str(tiny_model("llava")), str(folder / name), *settings]
        # torchrun ends its workers when it gets SIGTERM, but not when it is killed, as `subprocess.run` would.
        process = subprocess.Popen(
            [sys.executable, *launcher, SCRIPT, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, errors = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.communicate()
            raise
        assert process.returncode == 0, errors[-4000:]
        return [torch.load(path) for path in sorted(folder.glob(f"{name}.*"))]

    return train


@pytest.fixture(scope="module")
def one_process(train: Callable[..., list[dict[str, Any]]]) -> dict[str, Any]:
    (result,) = train("one", [], ["12"])
    return result


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp2", "zero3"])
def test_two_processes_with_different_numbers_of_images_train_like_one(
    sharding: str, train: Callable[..., list[dict[str, Any]]], one_process: dict[str, Any]
):
    ranks = train(sharding, LAUNCH, ["6", sharding])
    assert one_process["images"] == 6
    assert [rank["images"] for rank in ranks] == [1, 5]
    for rank in ranks:
        assert rank["loss"] == pytest.approx(one_process["loss"], rel=1e-5)
        torch.testing.assert_close(rank["weights"], one_process["weights"], atol=1e-6, rtol=0)
