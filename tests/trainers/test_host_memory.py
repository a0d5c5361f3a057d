"""The batches that a training holds in host memory are as many as `unime plan` counts, and no more."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import ProcessorMixin, TrainerCallback

from unime import UniMEModel
from unime.trainers import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.training_plan import batches_in_host_memory


@pytest.mark.parametrize(("num_workers", "prefetch_factor"), [(0, None), (2, 1), (1, 3)])
def test_batches_in_host_memory_are_those_of_the_formula(
    num_workers: int,
    prefetch_factor: int | None,
    make_model: Callable[..., UniMEModel],
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    tmp_path: Path,
):
    made, held = multiprocessing.Value("i", 0), []

    class CountHeld(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            time.sleep(0.25)  # the workers make as many batches as they may
            held.append(made.value - state.global_step)  # this step is counted after it

    args = ContrastiveConfig(
        str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=3,
        dataloader_num_workers=num_workers,
        dataloader_prefetch_factor=prefetch_factor,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = ContrastiveTrainer(
        make_model(), args, rows, processing_class=processor, peft_config=adapter, callbacks=[CountHeld()]
    )
    collate = trainer.data_collator

    def counting(batch: list[dict[str, Any]]) -> dict[str, Any]:
        with made.get_lock():
            made.value += 1
        return collate(batch)

    trainer.data_collator = counting
    trainer.train()
    assert max(held) == batches_in_host_memory(num_workers, prefetch_factor, pin_memory=False)
