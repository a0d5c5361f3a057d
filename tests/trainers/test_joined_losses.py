import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


NAMES = ["hardest", "symmetric", "random", "soft labels", "soft labels alone"]


pytestmark = pytest.mark.slow  # starts two processes


@pytest.fixture(scope="module")
def runs(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Compute the losses of a batch in one process, and in each of two processes that share it."""
    folder = tmp_path_factory.mktemp("losses")
    script, backbone = str(Path(__file__).parent / "joined_losses.py"), str(tiny_model("llava"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command, name in (([sys.executable], "one"), (launch, "two")):
        subprocess.run([*command, script, backbone, str(folder / name)], env=environment, check=True, timeout=240)
    return [torch.load(folder / name) for name in ("one.0", "two.0", "two.1")]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_compute_the_loss_and_gradient_of_the_joined_batch(name: str, runs: list[dict]):
    (loss, gradient), *others = (run[name] for run in runs)
    assert loss > 0 and gradient.abs().sum() > 0
    for other_loss, other_gradient in others:
        assert other_loss == pytest.approx(loss, abs=1e-12)
        torch.testing.assert_close(other_gradient, gradient, atol=1e-12, rtol=0)
