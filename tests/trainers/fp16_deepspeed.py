"""Train in fp16 with DeepSpeed's loss scaling in one CPU process, and save what the engine did.

torchrun --standalone --nproc_per_node 1 tests/trainers/fp16_deepspeed.py MODEL BACKBONE OUTPUT SHARDING
"""

import os
import sys

import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from joined_batch import contrastive_rows, enable_deepspeed_on_the_cpu
from torch import distributed

from unime import UniMEModel, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


def main(model_folder: str, backbone: str, output: str, sharding: str) -> None:
    enable_deepspeed_on_the_cpu(sharding)
    os.environ["ACCELERATE_MIXED_PRECISION"] = "fp16"
    CPU_Accelerator.is_fp16_supported = lambda self: True  # slow rather than impossible
    args = ContrastiveConfig(
        f"{output}-runs",
        per_device_train_batch_size=6,
        max_steps=12,
        learning_rate=1e-3,
        fp16=True,
        micro_batch_tokens=100,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = ContrastiveTrainer(
        UniMEModel.from_pretrained(model_folder),
        args,
        train_dataset=contrastive_rows(),
        processing_class=processor_from_backbone(backbone),
    )
    trainer.train()
    engine = trainer.model_wrapped
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    results = {
        "norms": [entry["grad_norm"] for entry in logs],
        "losses": [entry["loss"] for entry in logs],
        "skipped_steps": engine.skipped_steps,
        "scale": engine.optimizer.loss_scaler.cur_scale,
        "dtype": engine.module.dtype,
    }
    torch.save(results, output)
    distributed.destroy_process_group()
    os._exit(0)  # see `joined_batch.py`


if __name__ == "__main__":
    main(*sys.argv[1:])
