"""Rows for the tests of the reranker, and trainings of two steps in one or two processes.

torchrun --standalone --nproc_per_node 2 tests/rerank_runs.py MODEL OUTPUT BATCH_SIZE [fsdp2]
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from PIL import Image
from torch import distributed

from unime.reranker import load_reranker
from unime.trainers import RerankConfig, RerankTrainer, train_reranker


def rerank_rows(num_rows: int = 8, num_negatives: int = 4) -> list[dict[str, Any]]:
    """Return rows whose candidates are texts, and whose queries are texts or images; scores are a judge's."""
    rows = []
    for row in range(num_rows):
        names = [f"answer {row}", *(f"answer {row + other} of another" for other in range(1, num_negatives + 1))]
        image = Image.new("RGB", (24, 24), (30 * row % 256, 90, 200))
        query = {"image": image} if row % 2 else {"text": f"who is {row}?"}
        rows.append(
            {
                "query": query,
                "positive": {"text": names[0]},
                "negatives": [{"text": name} for name in names[1:]],
                "scores": [0.9, *(0.1 * (other % 3) for other in range(num_negatives))],
            }
        )
    return rows


def make_trainer(model: str, output: Path, batch_size: int, **options: Any) -> RerankTrainer:
    """Return a trainer of an adapter in all linear layers, as the recipes make one."""
    loaded, processor = load_reranker(model, dtype="float32")
    settings = {"max_steps": 2, "learning_rate": 1e-2, "weight_decay": 0.1, "save_steps": 1, "seed": 3}
    settings["adam_epsilon"] = 1e-4  # otherwise a weight without gradient but for rounding moves by the learning rate
    args = RerankConfig(
        str(output),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        train_sampling_strategy="sequential",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **settings | options,
    )
    rows = rerank_rows()
    adapter = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear")
    return RerankTrainer(loaded, args, rows, rows[:5], processing_class=processor, peft_config=adapter)


def main(model: str, output: Path, batch_size: int, sharding: str = "") -> None:
    if sharding:
        sys.path.insert(0, str(Path(__file__).parent / "trainers"))
        from joined_batch import enable_fsdp2_on_the_cpu

        enable_fsdp2_on_the_cpu()
    for objective in ("both", "ranking"):
        folder = output / objective
        trainer = make_trainer(model, folder, batch_size, objective=objective, logging_steps=1)
        train_reranker(trainer, model, dtype="float32")
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        losses.append(trainer.evaluate()["eval_loss"])
        if trainer.is_world_process_zero():
            (folder / "losses.json").write_text(json.dumps(losses))
    if distributed.is_initialized():
        distributed.destroy_process_group()
        os._exit(0)  # a library's thread once aborted a process during the interpreter's shutdown


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
