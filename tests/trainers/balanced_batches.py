"""Train an adapter with batches that are balanced over the processes, and save the results for the test.

torchrun --standalone --nproc_per_node 2 tests/trainers/balanced_batches.py MODEL BACKBONE OUTPUT BATCH_SIZE
"""

import os
import sys

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from torch import distributed

from unime import UniMEModel, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


def make_rows() -> Dataset:
    """Return 24 rows with very different numbers of words, which the column `length` states."""
    words = [1 + i * i // 4 for i in range(24)]
    return Dataset.from_list(
        [
            {
                "query": {"text": f"question {i}" + " long" * number},
                "positive": {"text": f"answer {i}"},
                "negatives": [],
                "task": "task",
                "label": None,
                "length": number,
            }
            for i, number in enumerate(words)
        ]
    )


def main(model_folder: str, backbone: str, output: str, batch_size: int) -> None:
    processor = processor_from_backbone(backbone)

    def make_trainer() -> ContrastiveTrainer:
        args = ContrastiveConfig(
            f"{output}-run",
            per_device_train_batch_size=batch_size,
            max_steps=3,  # the last one in a second epoch
            save_steps=2,
            micro_batch_tokens=200,
            learning_rate=1e-2,
            train_sampling_strategy="batch_rebalance",
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        )
        adapter = LoraConfig(r=2, target_modules=["q_proj"])
        model = UniMEModel.from_pretrained(model_folder)
        return ContrastiveTrainer(model, args, make_rows(), processing_class=processor, peft_config=adapter)

    trainer, parts = make_trainer(), []
    collate = trainer.data_collator

    def recording(rows: list[dict]) -> dict:
        parts.append([row["query"]["text"].count("long") for row in rows])
        return collate(rows)

    trainer.data_collator = recording
    trainer.train()
    resumed = make_trainer()
    resumed.train(resume_from_checkpoint=f"{output}-run/checkpoint-2")
    weights = {name: get_peft_model_state_dict(t.model) for name, t in (("trained", trainer), ("resumed", resumed))}
    torch.save(weights | {"parts": parts[:3]}, f"{output}.{trainer.args.process_index}")
    if distributed.is_initialized():
        distributed.destroy_process_group()
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
