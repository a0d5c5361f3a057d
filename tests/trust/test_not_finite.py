"""A loss, gradient or weight that is not finite stops training; the error names the rows, and saved files stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, ProcessorMixin, TrainerCallback, TrainerState

from unime import UniMEModel, processor_from_backbone
from unime.trainers import (
    ContrastiveConfig,
    ContrastiveTrainer,
    DistillationConfig,
    DistillationTrainer,
    last_complete_checkpoint,
)


POISON = "☠"  # makes an item not finite; its last byte is a token that no other text has


@pytest.fixture(scope="module")
def processor(tiny_model: Callable[[str], Path]) -> ProcessorMixin:
    return processor_from_backbone(str(tiny_model("llava")))


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> UniMEModel:
    torch.manual_seed(0)
    return UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "micro_batch_tokens": 100,  # two or three of these items
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }


def rows(*bad: int) -> list[dict[str, Any]]:
    """Return twelve rows; those with the given indices are poisoned."""
    rows = []
    for number in range(12):
        query = {"text": f"question {number}" + f" {POISON}" * (number in bad)}
        row = {"query": query, "positive": {"text": f"answer {number}"}, "negatives": []}
        rows.append(row | {"task": "names", "label": None, "where": f"pairs.jsonl, row {number}"})
    return rows


def poison(model: UniMEModel, processor: ProcessorMixin, backwards: bool) -> None:
    """Make the embedding of the poison token not finite, in the forward pass or in the backward pass only."""
    token = processor.tokenizer(POISON, add_special_tokens=False)["input_ids"][-1]

    def add_poison(module: nn.Module, ids: tuple[Tensor], embedded: Tensor) -> Tensor:
        poisoned = ids[0] == token
        output = embedded.clone()
        # The slope of the square root is infinite at 0, and 0 times infinity is NaN.
        output[poisoned] = embedded[poisoned] + torch.sqrt(0 * embedded[poisoned]) if backwards else torch.nan
        return output

    model.get_input_embeddings().register_forward_hook(add_poison)


def steps_before(trainer: ContrastiveTrainer, bad: int) -> int:
    """Return the number of batches before the one with a row."""
    provenance = [batch["provenance"] for batch in trainer.get_train_dataloader()]
    return next(step for step, names in enumerate(provenance) if f"pairs.jsonl, row {bad}, query" in names)


@pytest.mark.parametrize("graph_cache_gb", [0, 1e-6, 1])
@pytest.mark.parametrize("backwards", [False, True], ids=["loss", "gradient"])
def test_training_stops_before_the_step_and_the_error_names_the_row(
    model: UniMEModel, processor: ProcessorMixin, settings: dict[str, Any], backwards: bool, graph_cache_gb: float
):
    def trainer(seed: int) -> ContrastiveTrainer:
        args = ContrastiveConfig(**settings, data_seed=seed, seed=seed, graph_cache_gb=graph_cache_gb)
        return ContrastiveTrainer(model, args, train_dataset=rows(9), processing_class=processor)

    seed = next(seed for seed in range(20) if steps_before(trainer(seed), 9) == 2)
    poison(model, processor, backwards)
    broken = trainer(seed)
    with pytest.raises(ValueError) as error:
        broken.train()
    message = str(error.value)
    assert "\n" not in message and "the last checkpoint are unchanged; fix or remove these rows" in message
    assert message.startswith(f"step 3: the {'norm of the gradient' if backwards else 'loss'} is nan for the items ")
    items = message.partition("for the items ")[2].partition(":")[0].split("; ")
    assert "pairs.jsonl, row 9, query" in items
    # A loss can be traced to the item, a gradient only to its micro-batch.
    assert len(items) <= (3 if backwards else 1)
    assert all(weight.isfinite().all() for weight in broken.model.parameters())
    last = last_complete_checkpoint(settings["output_dir"])
    assert last.endswith("checkpoint-2")
    saved = UniMEModel.from_pretrained(last).state_dict()  # equal to the weights: the third step was not taken
    torch.testing.assert_close(
        saved, {name: value for name, value in broken.model.state_dict().items()}, atol=0, rtol=0
    )


def train_in_fp16(trainer: ContrastiveTrainer, scale: float) -> list[float]:
    """Train with a gradient scaler, which accelerate makes on accelerators only; return the norms of the gradients."""
    accelerator = trainer.accelerator
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    try:
        trainer.train()
    finally:
        accelerator.state._mixed_precision = "no"  # all accelerators of a process share it
    return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]


def test_fp16_training_skips_the_steps_in_which_its_loss_scale_overflows(
    model: UniMEModel, processor: ProcessorMixin, settings: dict[str, Any]
):
    args = ContrastiveConfig(**settings | {"logging_steps": 1, "max_steps": 12})
    trainer = ContrastiveTrainer(model, args, train_dataset=rows(), processing_class=processor)
    finite = torch.tensor(train_in_fp16(trainer, scale=2.0**20)).isfinite().tolist()
    assert not finite[0] and finite[-1]
    assert trainer.accelerator.scaler.get_scale() == 2.0 ** (20 - finite.count(False)) > 1
    assert all(entry["loss"] < 10 for entry in trainer.state.log_history if "loss" in entry)


def test_fp16_training_stops_if_a_gradient_is_not_finite_at_any_loss_scale(
    model: UniMEModel, processor: ProcessorMixin, settings: dict[str, Any]
):
    poison(model, processor, backwards=True)
    args = ContrastiveConfig(**settings | {"per_device_train_batch_size": 12})
    trainer = ContrastiveTrainer(model, args, train_dataset=rows(9), processing_class=processor)
    with pytest.raises(ValueError, match=r"^step 4: the norm of the gradient is nan for the items .*row 9, query"):
        train_in_fp16(trainer, scale=8.0)


def test_a_long_list_of_rows_is_shortened(model: UniMEModel, processor: ProcessorMixin, settings: dict[str, Any]):
    poison(model, processor, backwards=False)
    args = ContrastiveConfig(**settings | {"per_device_train_batch_size": 12})
    trainer = ContrastiveTrainer(model, args, train_dataset=rows(*range(12)), processing_class=processor)
    with pytest.raises(
        ValueError, match=r"^step 1: the loss is nan for the items .*query; .* and 7 more: the weights"
    ):
        trainer.train()
    assert last_complete_checkpoint(settings["output_dir"]) is None


def test_the_error_names_a_text_of_stage_1(model: UniMEModel, processor: ProcessorMixin, settings: dict[str, Any]):
    poison(model, processor, backwards=False)
    texts = {"text": [f"text {number}" for number in range(3)] + [f"bad {POISON}"], "teacher": torch.eye(4).tolist()}
    args = DistillationConfig(**settings)
    trainer = DistillationTrainer(model, args, Dataset.from_dict(texts), processing_class=processor)
    with pytest.raises(ValueError, match=f"^step 1: the loss is nan for the items the text 'bad {POISON}': "):
        trainer.train()


@pytest.mark.parametrize("final", [False, True], ids=["checkpoint", "final"])
def test_weights_that_are_not_finite_are_not_saved(
    model: UniMEModel, processor: ProcessorMixin, settings: dict[str, Any], final: bool
):
    class Diverge(TrainerCallback):
        """Make the weights infinite after the third step, as a far too high learning rate may."""

        def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    model.get_input_embeddings().weight.fill_(torch.inf)

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path(settings["output_dir"]).rglob("*") if path.is_file()}

    args = ContrastiveConfig(**settings | {"max_steps": 2, "save_total_limit": 1})
    first = ContrastiveTrainer(model, args, train_dataset=rows(), processing_class=processor)
    first.train()
    first.save_model()
    before = content()
    assert last_complete_checkpoint(settings["output_dir"]).endswith("checkpoint-2")

    args = ContrastiveConfig(**settings | {"max_steps": 3, "save_strategy": "no" if final else "steps"})
    second = ContrastiveTrainer(model, args, rows(), processing_class=processor, callbacks=[Diverge()])
    with pytest.raises(ValueError, match="^the weight .* is not finite after step 3: nothing was saved and the last"):
        second.train(resume_from_checkpoint=last_complete_checkpoint(settings["output_dir"]))
        second.save_model()
    assert content() == before
