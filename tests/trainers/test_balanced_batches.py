"""`batch_rebalance` gives the processes unequal rows of about equal length, and trains on the same joined batches."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from unime import UniMEModel


SCRIPT = str(Path(__file__).parent / "balanced_batches.py")


@pytest.mark.slow
def test_two_processes_with_balanced_parts_train_like_one_process(tiny_model: Callable[[str], Path], tmp_path: Path):
    torch.manual_seed(0)
    UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava"))).save_pretrained(tmp_path / "model")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command, name, batch_size in (([sys.executable], "one", 12), (launch, "two", 6)):
        subprocess.run(
            [*command, SCRIPT, str(tmp_path / "model"), str(tiny_model("llava")), tmp_path / name, str(batch_size)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=240,
            check=True,
        )
    one, first, second = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    for result in (first, second):
        torch.testing.assert_close(result["trained"], one["trained"], atol=1e-6, rtol=0)
        torch.testing.assert_close(result["resumed"], result["trained"], atol=0, rtol=0)
    assert any(len(ours) != 6 for ours in first["parts"])
    for joined, *parts in zip(one["parts"], first["parts"], second["parts"], strict=True):
        assert sorted(parts[0] + parts[1]) == sorted(joined)
        assert max(map(sum, parts)) <= 1.1 * sum(joined) / 2
