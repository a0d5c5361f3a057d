"""Train adapters or full weights in one process or several, and save, merge, resume and load the best model.

    torchrun --standalone --nproc_per_node 2 tests/trainers/launched_run.py BACKBONE OUTPUT LAUNCHER TUNING...

LAUNCHER is "plain" (one process, or DDP), the name of a file in `recipes/accelerate` without its suffix, or
"fsdp2-full-state" (unsharded checkpoints). TUNING is "full", "lora" or "qlora", perhaps followed by "-bf16"; each is a
run of its own. `test_launched_run.py` checks the results.
"""

import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from joined_batch import contrastive_rows, enable_deepspeed_on_the_cpu, enable_fsdp2_on_the_cpu
from peft import LoraConfig
from torch import distributed
from transformers import BitsAndBytesConfig

from unime import load_model
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, train_and_save


STEPS = 3
BATCH_SIZE = 12  # over all processes
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_step",
    "greater_is_better": False,
}


class FirstIsBest(ContrastiveTrainer):
    """A trainer whose best model is the first that is evaluated, and not the last."""

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        return super().evaluate(*args, **kwargs) | {"eval_step": self.state.global_step}


def make_trainer(backbone: str, output: Path, launcher: str, tuning: str, **options: object) -> ContrastiveTrainer:
    """Return a trainer as the recipes make one: AdamW with weight decay, adapters in all linear layers, NF4."""
    AcceleratorState._reset_state()  # the run before may have had another precision
    if launcher.startswith("zero"):
        enable_deepspeed_on_the_cpu(launcher)
    bf16 = tuning.endswith("-bf16")
    batch_size = BATCH_SIZE // int(os.environ.get("WORLD_SIZE", 1))
    args = ContrastiveConfig(
        str(output),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        max_steps=STEPS,
        learning_rate=1e-2,
        weight_decay=0.1,
        train_sampling_strategy="sequential",
        micro_batch_tokens=100,
        num_hard_negatives=3,
        save_steps=1,
        bf16=bf16,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **options,
    )
    if launcher.startswith("fsdp2"):
        state_dict_type = "FULL_STATE_DICT" if launcher == "fsdp2-full-state" else "SHARDED_STATE_DICT"
        enable_fsdp2_on_the_cpu("bf16" if bf16 else "no", fsdp_state_dict_type=state_dict_type)
    dtype = torch.bfloat16 if bf16 else torch.float32
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    model, processor = load_model(
        backbone, dtype=dtype, quantization_config=quantization if tuning.startswith("qlora") else None
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    # A step of texts before one with images: the vision tower has no optimizer state in the first checkpoint.
    rows = sorted(contrastive_rows(), key=lambda row: "image" in row["query"])
    return FirstIsBest(
        model,
        args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=processor,
        peft_config=None if tuning.startswith("full") else lora,
    )


def main(backbone: str, output: Path, launcher: str, tunings: list[str]) -> None:
    for tuning in tunings:
        saved, resumed, best = (output / f"{tuning}{suffix}" for suffix in ("", "-resumed", "-best"))
        trainer = make_trainer(backbone, saved, launcher, tuning)
        train_and_save(trainer, backbone)
        trainer.accelerator.wait_for_everyone()

        trainer = make_trainer(backbone, resumed, launcher, tuning)
        trainer.train(resume_from_checkpoint=str(saved / "checkpoint-1"))
        trainer.save_model(str(resumed / "adapter") if "lora" in tuning else None)
        trainer.accelerator.wait_for_everyone()

        trainer = make_trainer(backbone, best, launcher, tuning, **BEST)
        trainer.train()
        trainer.save_model(str(best / "adapter") if "lora" in tuning else None)
        results = {
            "best_step": trainer.state.best_global_step,
            "losses": [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
            "loss_at_end": trainer.evaluate()["eval_loss"],
        }
        if trainer.is_world_process_zero():
            torch.save(results, best / "results.pt")
    if distributed.is_initialized():
        distributed.destroy_process_group()
        # All results are on disk. A library's thread once aborted a process during the interpreter's shutdown.
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
