"""Train an adapter with the automatic graph cache in one or two processes, for `test_joined_graph_cache.py`.

    torchrun --standalone --nproc_per_node 2 tests/trainers/joined_graph_cache.py MODEL BACKBONE OUTPUT [SHARDING]

SHARDING is as in `joined_batch.py`.
"""

import os
import sys
from pathlib import Path

import torch
from joined_batch import contrastive_rows, enable_deepspeed_on_the_cpu, enable_fsdp2_on_the_cpu
from peft import LoraConfig, get_peft_model

from unime import UniMEModel, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


def main(model_folder: str, backbone: str, output: Path, sharding: str | None) -> None:
    if sharding in ("zero2", "zero3"):
        enable_deepspeed_on_the_cpu(sharding)
    elif sharding == "fsdp2":
        enable_fsdp2_on_the_cpu()
    args = ContrastiveConfig(
        str(output),
        per_device_train_batch_size=12 // int(os.environ.get("WORLD_SIZE", 1)),
        max_steps=3,
        learning_rate=0.01,
        num_hard_negatives=3,
        train_sampling_strategy="sequential",
        micro_batch_tokens=100,
        graph_cache_gb=float("inf"),
        activation_checkpointing=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = UniMEModel.from_pretrained(model_folder, dtype="float32")
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trainer = ContrastiveTrainer(
        get_peft_model(model, adapter),
        args,
        train_dataset=contrastive_rows(),
        processing_class=processor_from_backbone(backbone),
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "log": [(entry["loss"], entry["grad_norm"]) for entry in logs],
        "kept": [one.kept for one in trainer._automatic_graph_cache.passes],
        "levels": [one.level for one in trainer._automatic_graph_cache.passes],
    }
    torch.save(result, f"{output}.{trainer.args.process_index}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *(sys.argv[4:] or [None]))
