"""Training with image augmentations: exact under gradient caching, and the same again after resuming."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from transformers import ProcessorMixin

from unime.data.image_augmentation import IMAGE_AUGMENTATIONS
from unime.data.rows import change_images
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


def train(
    folder: Path,
    make_model: Callable,
    rows: list,
    processor: ProcessorMixin,
    resume: str | None = None,
    **options: Any,
) -> dict[str, torch.Tensor]:
    args = ContrastiveConfig(
        str(folder),
        per_device_train_batch_size=8,
        **{"max_steps": 2, "micro_batch_tokens": 100, "save_strategy": "no"} | options,
        learning_rate=1e-2,
        optim="adamw_torch",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    adapter = LoraConfig(r=2, target_modules="all-linear")
    trainer = ContrastiveTrainer(
        make_model(), args, train_dataset=rows, processing_class=processor, peft_config=adapter
    )
    trainer.train(resume_from_checkpoint=resume)
    return {name: value.clone() for name, value in get_peft_model_state_dict(trainer.model).items()}


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max((first[name] - second[name]).abs().max().item() for name in first)


def test_augmented_images_are_the_same_in_both_passes_and_after_resuming(
    make_model: Callable, rows: list[dict[str, Any]], processor: ProcessorMixin, tmp_path: Path
):
    def run(name: str, **options: Any) -> dict[str, torch.Tensor]:
        return train(tmp_path / name, make_model, rows, processor, **options)

    # Opaque parts on transparency, which all kinds change.
    def cut_out(image: Image.Image) -> Image.Image:
        canvas = Image.new("RGBA", (image.width + 10, image.height + 10))
        canvas.paste(image, (5, 5))
        return canvas

    rows = [row | {side: change_images(row[side], cut_out) for side in ("query", "positive")} for row in rows]
    augmented = {"image_augmentations": list(IMAGE_AUGMENTATIONS)}
    cached = run("cached", **augmented, save_strategy="steps", save_steps=1)
    kept = run("kept", **augmented, micro_batch_tokens=100_000, graph_cache_gb=1.0)
    assert difference(cached, kept) < 1e-5
    assert difference(cached, run("plain")) > 1e-4
    resumed = run("resumed", **augmented, resume=str(tmp_path / "cached" / "checkpoint-1"))
    assert difference(cached, resumed) == 0


def test_another_collator_is_refused(
    make_model: Callable, rows: list[dict[str, Any]], processor: ProcessorMixin, tmp_path: Path
):
    args = ContrastiveConfig(str(tmp_path), image_augmentations=["size"], use_cpu=True, report_to="none")
    trainer = ContrastiveTrainer(make_model(), args, train_dataset=rows, data_collator=list)
    with pytest.raises(ValueError, match="image_augmentations needs a ContrastiveCollator, not type"):
        trainer.train()
