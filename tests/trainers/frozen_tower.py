"""Train adapters of the language model for two steps in one or two processes, and save the trained weights.

    torchrun --standalone --nproc_per_node 2 tests/trainers/frozen_tower.py MODEL BACKBONE OUTPUT BATCH_SIZE [SHARDING]

The vision tower is frozen. Two processes with batches of six get one and five micro-batches with images.
"""

import os
import sys
from contextlib import nullcontext

import torch
from joined_batch import enable_deepspeed_on_the_cpu, enable_fsdp2_on_the_cpu
from peft import LoraConfig
from PIL import Image
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from unime import UniMEModel, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


def full_weight(parameter: Parameter, sharding: str | None) -> Tensor:
    """Return a copy of a whole weight; every process must call this."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach().clone()
    if sharding == "zero3":
        from deepspeed.runtime.zero import GatheredParameters

        gathering = GatheredParameters([parameter])
    else:
        gathering = nullcontext()
    with gathering:
        return parameter.detach().clone()


def main(model_folder: str, backbone: str, output: str, batch_size: int, sharding: str | None) -> None:
    if sharding == "zero3":
        enable_deepspeed_on_the_cpu(sharding)
    rows = []
    for i in range(24):
        image = Image.new("RGB", (24, 24), (10 * i, 255 - 10 * i, 80))
        with_image = i % 6 == 0 or i // 6 % 2 == 1 and i % 6 < 5
        query = {"image": image} if with_image else {"text": f"question {i}" + " long" * (i % 3)}
        rows.append({"query": query, "positive": {"text": f"answer {i}"}, "negatives": [], "task": "t", "label": None})
    args = ContrastiveConfig(
        f"{output}-runs",
        per_device_train_batch_size=batch_size,
        max_steps=2,
        learning_rate=1e-2,
        optim="adamw_torch",
        train_sampling_strategy="sequential",
        micro_batch_tokens=1,  # every item is a micro-batch of its own
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    if sharding == "fsdp2":
        enable_fsdp2_on_the_cpu()
    adapter = LoraConfig(
        r=4,
        lora_dropout=0.0,
        target_modules=r".*language_model.*\.[qv]_proj",
        init_lora_weights=False,  # both factors get gradients in the first step
    )
    trainer = ContrastiveTrainer(
        UniMEModel.from_pretrained(model_folder),
        args,
        train_dataset=rows,
        processing_class=processor_from_backbone(backbone),
        peft_config=adapter,
    )
    trainer.train()
    rank = trainer.args.process_index
    batch = trainer.data_collator(rows[rank * batch_size :][:batch_size])
    results = {
        "images": sum("pixel_values" in tensors for tensors in batch["micro_batches"]),
        "loss": [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry],
        "weights": {
            name: full_weight(parameter, sharding)
            for name, parameter in trainer.model.named_parameters()
            if parameter.requires_grad
        },
    }
    torch.save(results, f"{output}.{rank}")
    if distributed.is_initialized():
        distributed.destroy_process_group()
        os._exit(0)  # see `joined_batch.py`


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] if len(sys.argv) > 5 else None)
