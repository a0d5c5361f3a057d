"""Evaluate an adapter in one or two processes, and save the metrics for `test_evaluation.py`.

    torchrun --standalone --nproc_per_node 2 tests/trainers/joined_evaluation.py MODEL BACKBONE OUTPUT SHARDING

SHARDING is the name of a file in `recipes/accelerate`, without its suffix; `ddp` shards nothing.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from joined_batch import contrastive_rows, distillation_rows, enable_deepspeed_on_the_cpu, enable_fsdp2_on_the_cpu
from peft import LoraConfig
from torch import distributed

from unime import UniMEModel, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, DistillationConfig, DistillationTrainer


JOINED_BATCH_ROWS = 4
ONE_ROW = {
    "query": {"text": "a question"},
    "positive": {"text": "its answer"},
    "negatives": [{"text": "no answer"}],
    "task": "task",
    "label": None,
}


class WatchedContrastiveTrainer(ContrastiveTrainer):
    """A trainer that keeps where the rows of each evaluation batch come from."""

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        """Record the texts of the rows and compute the loss."""
        if not self.model.training:
            self.batches.append(inputs["provenance"][: int(inputs["num_rows"])])
        return super().compute_loss(model, inputs, **kwargs)


def main(model_folder: str, backbone: str, output: Path, sharding: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if sharding.startswith("zero"):
        enable_deepspeed_on_the_cpu(sharding)
    common = {
        "per_device_train_batch_size": 12 // processes,
        "per_device_eval_batch_size": JOINED_BATCH_ROWS // processes,
        "max_steps": 1,
        "learning_rate": 0.01,
        "train_sampling_strategy": "sequential",
        "micro_batch_tokens": 100,
        "save_strategy": "no",
        "dataloader_num_workers": 1,
        "include_num_input_tokens_seen": "non_padding",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    # Contrastive rows 0 to 5 and 12 to 17 have no images, so that the processes have batches of different kinds.
    named = [row | {"where": f"row {index}"} for index, row in enumerate(contrastive_rows())]
    pets, tools = named[:7], named[4:14]
    sets = {"pets": pets, "tools": IterableDataset.from_generator(lambda: iter(tools)), "single": [ONE_ROW]}
    texts = {"texts": Dataset.from_list(distillation_rows()[:7])}
    stages = {
        "contrastive": (WatchedContrastiveTrainer, ContrastiveConfig, named, sets),
        "distillation": (DistillationTrainer, DistillationConfig, distillation_rows(), texts),
    }
    results = {}
    for name, (trainer_class, config_class, rows, eval_dataset) in stages.items():
        args = config_class(f"{output}-{name}", **common)
        if sharding == "fsdp2":
            enable_fsdp2_on_the_cpu()
        trainer = trainer_class(
            UniMEModel.from_pretrained(model_folder),
            args,
            train_dataset=rows,
            eval_dataset=eval_dataset,
            processing_class=processor_from_backbone(backbone),
            peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        )
        trainer.batches = []
        trainer.train()
        results[f"{name} work"] = trainer.state.num_input_tokens_seen, trainer.state.total_flos
        metrics = trainer.evaluate()
        speeds = ("runtime", "per_second", "preparation_time", "tokens_seen")
        results[name] = {key: value for key, value in metrics.items() if not key.endswith(speeds)}
        results[f"{name} batches"] = trainer.batches
    torch.save(results, f"{output}.{trainer.args.process_index}")
    if distributed.is_initialized():
        distributed.destroy_process_group()
        os._exit(0)  # all results are on disk


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
