"""Two processes with the automatic graph cache train an adapter like one process, with every kind of sharding."""

import json
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


def train(model: Path, backbone: Path, output: Path, processes: int = 2, **options: Any) -> list[dict[str, Any]]:
    """Return the result of each process."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
    subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(model), str(backbone), str(output), json.dumps(options)],
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
def plain(model: Path, tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    """Return the result of one process that keeps one graph only."""
    return train(model, tiny_model("llava"), model / "plain", processes=1, graph_cache_gb=0)[0]


def check(results: list[dict[str, Any]], plain: dict[str, Any]) -> None:
    for result in results:
        for values, expected in zip(result["log"], plain["log"], strict=True):
            assert values == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sharding", [None, "fsdp2", "zero2", "zero3"])
def test_two_processes_keep_graphs_and_train_like_one(
    model: Path, tiny_model: Callable[[str], Path], plain: dict[str, Any], sharding: str | None
):
    results = train(model, tiny_model("llava"), model / f"two-{sharding}", sharding=sharding)
    check(results, plain)
    assert {result["sharded"] for result in results} == {sharding == "fsdp2"}
    for result in results:
        assert len(result["passes"]) > 1 and all(kept for kept, _ in result["passes"])
        levels = {level for _, level in result["passes"]}
        assert len(levels) == 1 and min(levels) > 0


@pytest.mark.parametrize("options", [{}, {"sharding": "fsdp2"}, {"packed": True}])
def test_processes_with_different_memory_train_like_one(
    model: Path, tiny_model: Callable[[str], Path], plain: dict[str, Any], options: dict[str, Any]
):
    output = model / "-".join(["mixed", *map(str, options.values())])
    results = train(model, tiny_model("llava"), output, memory=[1.3, 2.5], **options)
    check(results, plain)
    assert {result["sharded"] for result in results} == {"sharding" in options}
    first, second = (result["passes"] for result in results)
    if "sharding" in options:  # both in the smaller memory, as they run their layers together
        assert first == second
    else:
        assert sum(level for _, level in first) < sum(level for _, level in second)
    assert {kept for kept, _ in first} == {True, False} or len({level for _, level in first}) > 1


@pytest.mark.parametrize("options", [{"packed": True}, {"torch_compile": True, "torch_compile_backend": "eager"}])
def test_packed_and_compiled_layers_keep_graphs_and_train_like_others(
    model: Path, tiny_model: Callable[[str], Path], plain: dict[str, Any], options: dict[str, Any]
):
    output = model / "-".join(["one", *options])
    (result,) = train(model, tiny_model("llava"), output, processes=1, memory=[2.5], **options)
    check([result], plain)
    assert sum(kept for kept, _ in result["passes"]) > 1
