"""The same seed gives identical weights in both stages; another seed gives different weights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, ProcessorMixin

from unime import UniMEModel, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, DistillationConfig, DistillationTrainer


ROOT = Path(__file__).resolve().parents[2]
ROWS = 16
SETTINGS = {
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "micro_batch_tokens": 100,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


def image(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def processor(tiny_model: Callable[[str], Path]) -> ProcessorMixin:
    return processor_from_backbone(str(tiny_model("llava")))


@pytest.fixture
def train(
    tiny_model: Callable[[str], Path], processor: ProcessorMixin, tmp_path: Path
) -> Callable[..., dict[str, Tensor]]:
    """Return a function that trains a model with dropout for three steps and returns its weights."""

    def run(stage: str, seed: int, adapter: bool) -> dict[str, Tensor]:
        config = AutoConfig.from_pretrained(tiny_model("llava"))
        config.text_config.attention_dropout = config.vision_config.attention_dropout = 0.3
        torch.manual_seed(0)
        model = UniMEModel.from_backbone(config)
        torch.seed()  # the training must depend on the trainer's own seed only
        options: dict[str, Any] = {"processing_class": processor}
        if adapter:
            options["peft_config"] = LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])
        if stage == "stage1":
            texts = {"text": [f"text {i}" + " more" * (i % 5) for i in range(ROWS)], "teacher": np.eye(ROWS).tolist()}
            args = DistillationConfig(str(tmp_path), seed=seed, **SETTINGS)
            trainer = DistillationTrainer(model, args, Dataset.from_dict(texts), **options)
        else:
            rest = {"negatives": [], "task": "found", "label": None}
            rows = [{"query": {"text": f"number {i}"}, "positive": {"image": image(i)}, **rest} for i in range(ROWS)]
            args = ContrastiveConfig(str(tmp_path), seed=seed, **SETTINGS)
            trainer = ContrastiveTrainer(model, args, train_dataset=rows, **options)
        trainer.train()
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}

    return run


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_same_seed_gives_the_same_weights(train: Callable[..., dict[str, Tensor]], stage: str, adapter: bool):
    first = train(stage, 7, adapter)
    assert equal(train(stage, 7, adapter), first)
    assert not equal(train(stage, 8, adapter), first)


@pytest.mark.slow
@pytest.mark.parametrize("determinism", ["false", "true"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_same_command_gives_the_same_checkpoint(
    tiny_model: Callable[[str], Path], tmp_path: Path, stage: str, determinism: str
):
    for number in range(ROWS):
        image(number).save(tmp_path / f"{number}.png")
    lines = [
        {"text": f"text number {i}", "teacher": np.eye(ROWS)[i].tolist()}
        if stage == "stage1"
        else {"query": {"text": f"number {i}"}, "positive": {"image": f"{i}.png"}}
        for i in range(ROWS)
    ]
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = []
    for number in ("1", "2"):
        command = [ROOT / "recipes" / f"{stage}.py", "--config", ROOT / "recipes" / "tiny" / f"{stage}.yaml"]
        command += [
            "--dataset",
            dataset,
            "--model_name_or_path",
            tiny_model("llava"),
            "--output_dir",
            tmp_path / number,
        ]
        command += ["--max_steps", 3, "--warmup_steps", 1, "--per_device_train_batch_size", 4, "--bf16", "false"]
        command += ["--use_cpu", "true", "--full_determinism", determinism]
        # Different hash seeds order Python's sets differently.
        environment = os.environ | {"PYTHONHASHSEED": number, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        weights.append(load_file(tmp_path / number / "model.safetensors"))
    assert equal(*weights)
