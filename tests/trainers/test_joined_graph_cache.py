"""Two processes with the automatic graph cache train an adapter like one process, with every kind of sharding."""

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


pytestmark = pytest.mark.slow  # a run takes half a minute to a minute and a half

SCRIPT = Path(__file__).with_name("joined_graph_cache.py")


def train(model: Path, backbone: Path, output: Path, *sharding: str, processes: int = 2) -> list[dict[str, Any]]:
    """Return the result of each process."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
    subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(model), str(backbone), str(output), *sharding],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return [torch.load(f"{output}.{rank}") for rank in range(processes)]


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joined")
    torch.manual_seed(0)
    UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava"))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one(model: Path, tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    return train(model, tiny_model("llava"), model / "one", processes=1)[0]


@pytest.mark.parametrize("sharding", [(), ("fsdp2",), ("zero2",), ("zero3",)], ids=str)
def test_two_processes_keep_graphs_and_train_like_one(
    model: Path, tiny_model: Callable[[str], Path], one: dict[str, Any], sharding: tuple[str, ...]
):
    for result in train(model, tiny_model("llava"), model / "-".join(["two", *sharding]), *sharding):
        assert len(result["kept"]) > 1 and all(result["kept"])
        assert len(set(result["levels"])) == 1 and result["levels"][0] > 0
        for values, expected in zip(result["log"], one["log"], strict=True):
            assert values == pytest.approx(expected, rel=1e-5)
