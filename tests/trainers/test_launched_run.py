"""Adapters and full weights, trained with AdamW by two processes: saved, merged, resumed, and the best model.

On a CPU, accelerate is patched to shard by FSDP2 (`enable_fsdp2_on_the_cpu`); DeepSpeed runs as it is.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unime import load_model
from unime.trainers import load_adapter


pytestmark = pytest.mark.slow
SCRIPT = str(Path(__file__).parent / "launched_run.py")
LAUNCHERS = {
    "plain": ["qlora"],
    "fsdp2": ["full", "lora", "qlora-bf16"],
    "fsdp2-full-state": ["lora"],
    "zero2": ["full", "lora"],
    "zero3": ["full", "lora-bf16"],
}
RUNS = [(launcher, tuning) for launcher, tunings in LAUNCHERS.items() for tuning in tunings]
ADAPTERS = [(launcher, tuning) for launcher, tuning in RUNS if "lora" in tuning]


@pytest.fixture(scope="module")
def output(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run everything with every launcher in two processes, and return the folder of their output folders."""
    folder = tmp_path_factory.mktemp("launched")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    for launcher, tunings in LAUNCHERS.items():
        run = subprocess.run(
            [*launch, str(tiny_model("llava")), str(folder / launcher), launcher, *tunings],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, f"{launcher}: {run.stderr[-4000:]}"
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the trained weights of a run: the adapter, or the whole model."""
    adapter = folder / "adapter" / "adapter_model.safetensors"
    return load_file(adapter if adapter.exists() else folder / "model.safetensors")


@pytest.mark.parametrize(("launcher", "tuning"), RUNS)
def test_resumed_training_ends_with_the_same_weights(output: Path, launcher: str, tuning: str):
    run = output / launcher
    torch.testing.assert_close(weights(run / f"{tuning}-resumed"), weights(run / tuning), atol=0, rtol=0)


@pytest.mark.parametrize(("launcher", "tuning"), RUNS)
def test_the_best_model_is_loaded_at_the_end_and_saved(output: Path, launcher: str, tuning: str):
    run = output / launcher
    results = torch.load(run / f"{tuning}-best" / "results.pt")
    assert results["best_step"] == 1 and results["loss_at_end"] == pytest.approx(results["losses"][0], rel=1e-6)
    last, best = weights(run / tuning), weights(run / f"{tuning}-best")
    assert last.keys() == best.keys() and any((last[name] != best[name]).any() for name in last)


@pytest.mark.parametrize(("launcher", "tuning"), ADAPTERS)
def test_the_trained_adapter_is_saved_and_merged(
    output: Path, tiny_model: Callable[[str], Path], launcher: str, tuning: str
):
    run = output / launcher / tuning
    trained = weights(run)
    assert any(name.endswith("lora_B.weight") and weight.any() for name, weight in trained.items())
    base, processor = load_model(str(tiny_model("llava")), dtype=torch.float32)
    adapted = load_adapter(base, run / "adapter").get_base_model()
    texts = ["a text", "another text"]
    merged, _ = load_model(str(run), dtype=torch.float32)
    tolerance = 2e-2 if tuning.endswith("bf16") else 1e-5
    np.testing.assert_allclose(merged.encode(texts), adapted.encode(texts, processor), atol=tolerance)
