"""Checkpoints pushed during training: what the Hub receives, and what never leaves the machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub, local_hub
from transformers import AutoConfig

from unime import UniMEModel, load_model
from unime.trainers import load_adapter


pytestmark = pytest.mark.slow
TOKEN = "hf_SecretTokenOfTheUser"
TRAINING = """
import sys
from peft import LoraConfig
from unime import UniMEModel, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer

model, backbone, adapter, settings = sys.argv[1], sys.argv[2], sys.argv[3] == "adapter", eval(sys.argv[4])
rows = [
    {"query": {"text": f"q {i}"}, "positive": {"text": f"a {i}"}, "negatives": [], "task": "", "label": None}
    for i in range(8)
]
args = ContrastiveConfig(
    "run", per_device_train_batch_size=4, max_steps=2, save_steps=1, use_cpu=True, report_to="none", **settings
)
ContrastiveTrainer(
    UniMEModel.from_pretrained(model), args, train_dataset=rows, processing_class=processor_from_backbone(backbone),
    peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if adapter else None,
).train()
"""


@pytest.fixture
def pushed(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., LocalHub]:
    """Return a function that trains with `push_to_hub` and returns the Hub that received the checkpoints."""
    torch.manual_seed(0)
    UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava"))).save_pretrained(tmp_path / "model")

    def train(kind: str, **settings: object) -> LocalHub:
        with local_hub() as hub:
            settings = {"push_to_hub": True, "hub_model_id": "someone/model", "hub_token": TOKEN} | settings
            command = [sys.executable, "-c", TRAINING, tmp_path / "model", tiny_model("llava"), kind, repr(settings)]
            environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HOME": str(tmp_path)}
            process = subprocess.run(
                [str(part) for part in command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert process.returncode == 0, process.stderr[-4000:]
            return hub

    return train


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_checkpoints_are_pushed_without_the_token_and_paths(
    kind: str, pushed: Callable[..., LocalHub], tiny_model: Callable[[str], Path], tmp_path: Path
):
    hub = pushed(
        kind, hub_strategy="all_checkpoints", hub_private_repo=True, hub_always_push=True, hub_revision="main"
    )
    assert hub.repositories["someone/model"]["visibility"] == "private"
    assert hub.tokens == {f"Bearer {TOKEN}"} and {branch for _, branch, _ in hub.commits} == {"main"}
    assert [m for m, _, _ in hub.commits if m == "Training in progress, step 1"]
    files: dict[str, bytes] = {}
    for _, _, commit in hub.commits:
        for path, content in commit.items():
            assert TOKEN.encode() not in content, path
            assert str(tmp_path).encode() not in content, path
        files |= commit
    assert {"checkpoint-1/optimizer.pt", "checkpoint-1/trainer_state.json", "checkpoint-2/optimizer.pt"} <= set(files)

    clone = tmp_path / "clone"
    for path, content in files.items():
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_bytes(content)
    trained = json.loads((clone / "checkpoint-2" / "trainer_state.json").read_text())
    assert trained["global_step"] == 2
    if kind == "adapter":
        load_adapter(UniMEModel.from_pretrained(tmp_path / "model"), clone)
    else:
        model, processor = load_model(str(clone))
        assert model.encode("a text", processor).shape == (32,)


def test_only_the_last_checkpoint_is_kept_on_request(pushed: Callable[..., LocalHub]):
    hub = pushed("adapter", hub_strategy="checkpoint", hub_always_push=True)
    paths = {path for _, _, commit in hub.commits for path in commit}
    assert "last-checkpoint/optimizer.pt" in paths and not [path for path in paths if path.startswith("checkpoint-")]
