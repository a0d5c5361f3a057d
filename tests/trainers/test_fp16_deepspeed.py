"""DeepSpeed lowers its loss scale when it overflows, and training goes on."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from unime import UniMEModel


SCRIPT = str(Path(__file__).parent / "fp16_deepspeed.py")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_fp16_training_skips_the_steps_in_which_the_engine_overflows(
    sharding: str, tiny_model: Callable[[str], Path], tmp_path: Path
):
    torch.manual_seed(0)
    UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava"))).save_pretrained(tmp_path / "model")
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", SCRIPT]
        + [str(tmp_path / "model"), str(tiny_model("llava")), str(tmp_path / "result"), sharding],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    result = torch.load(tmp_path / "result")
    finite = torch.tensor(result["norms"]).isfinite().tolist()
    assert result["dtype"] == torch.float16
    assert not finite[0] and any(finite)
    assert finite.count(False) == result["skipped_steps"]
    assert 1 < result["scale"] < 2**16
    assert result["losses"][-1] < result["losses"][0] + 5 and torch.tensor(result["losses"]).isfinite().all()
