"""Train an adapter with the automatic graph cache in one or two processes, for `test_joined_graph_cache.py`.

    torchrun --standalone --nproc_per_node 2 tests/trainers/joined_graph_cache.py MODEL BACKBONE OUTPUT OPTIONS

OPTIONS is JSON: `sharding` as in `joined_batch.py`; `memory`, for each process, in relation to what a step takes that
keeps one graph (by default all memory of the machine); anything else are training arguments.
"""

import json
import math
import os
import sys
from pathlib import Path

import torch
from joined_batch import contrastive_rows, enable_deepspeed_on_the_cpu, enable_fsdp2_on_the_cpu
from peft import LoraConfig, get_peft_model

from unime import UniMEModel, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.automatic_graph_cache import HostMemory
from unime.trainers.distributed import is_sharded


class SmallMemory(HostMemory):
    """A memory that is so many times as large as the largest peak.

    Args:
        times (`float`): How many times.
    """

    def __init__(self, times: float):
        super().__init__()
        self._times = times

    def available(self) -> float:
        """Return the bytes that tensors may take in addition."""
        return self._times * self.peak()


def main(model_folder: str, backbone: str, output: Path, options: str) -> None:
    settings = json.loads(options)
    sharding, memory = settings.pop("sharding", None), settings.pop("memory", None)
    if sharding in ("zero2", "zero3"):
        enable_deepspeed_on_the_cpu(sharding)
    args = ContrastiveConfig(
        str(output),
        per_device_train_batch_size=12 // int(os.environ.get("WORLD_SIZE", 1)),
        max_steps=3,
        learning_rate=0.01,
        num_hard_negatives=3,
        train_sampling_strategy="sequential",
        micro_batch_tokens=100,
        activation_checkpointing=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **{"graph_cache_gb": math.inf} | settings,
    )
    if sharding == "fsdp2":  # the arguments reset the state of accelerate
        enable_fsdp2_on_the_cpu()
    model = UniMEModel.from_pretrained(model_folder, dtype="float32")
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    trainer = ContrastiveTrainer(
        get_peft_model(model, adapter),
        args,
        train_dataset=contrastive_rows(),
        processing_class=processor_from_backbone(backbone),
    )
    if memory is not None:
        trainer._memory = SmallMemory(memory[args.process_index])
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    cache = trainer._automatic_graph_cache
    result = {
        "sharded": is_sharded(trainer.model),
        "log": [(entry["loss"], entry["grad_norm"]) for entry in logs],
        "passes": [] if cache is None else [(one.kept, one.level) for one in cache.passes],
    }
    torch.save(result, f"{output}.{trainer.args.process_index}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
