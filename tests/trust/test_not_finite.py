"""A loss, a gradient or a weight that is not finite stops a training: its rows are named, the last save stays."""

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


POISON = "☠"  # what spoils an item of a test; its last byte is a token that no other text has


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
        "micro_batch_tokens": 100,  # two or three items of these
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }


def rows(*bad: int) -> list[dict[str, Any]]:
    """Twelve rows, of which some are poisoned."""
    rows = []
    for number in range(12):
        query = {"text": f"question {number}" + f" {POISON}" * (number in bad)}
        row = {"query": query, "positive": {"text": f"answer {number}"}, "negatives": []}
        rows.append(row | {"task": "names", "label": None, "where": f"pairs.jsonl, row {number}"})
    return rows


def poison(model: UniMEModel, processor: ProcessorMixin, backwards: bool) -> None:
    """Break the embedding of a token, on the way forward or only on the way back."""
    token = processor.tokenizer(POISON, add_special_tokens=False)["input_ids"][-1]

    def spoil(module: nn.Module, ids: tuple[Tensor], embedded: Tensor) -> Tensor:
        hit = ids[0] == token
        spoilt = embedded.clone()
        # The slope of the square root is infinite at 0, and 0 times that is no number.
        spoilt[hit] = embedded[hit] + torch.sqrt(0 * embedded[hit]) if backwards else torch.nan
        return spoilt

    model.get_input_embeddings().register_forward_hook(spoil)


def steps_before(trainer: ContrastiveTrainer, bad: int) -> int:
    """How many batches come before that with a row; a row alone decides in which batch it is."""
    provenance = [batch["provenance"] for batch in trainer.get_train_dataloader()]
    return next(step for step, names in enumerate(provenance) if f"pairs.jsonl, row {bad}, query" in names)


@pytest.mark.parametrize("graph_cache_gb", [0, 1e-6, 1])
@pytest.mark.parametrize("backwards", [False, True], ids=["loss", "gradient"])
def test_training_stops_before_the_step_and_names_the_row(
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
    said = str(error.value)
    assert "\n" not in said and "the last checkpoint stays; mend or remove these rows" in said
    assert said.startswith(f"step 3: the {'norm of the gradient' if backwards else 'loss'} is nan, with the items ")
    items = said.partition("with the items ")[2].partition(":")[0].split("; ")
    assert "pairs.jsonl, row 9, query" in items
    # The loss is spoilt by the one item; a gradient by the micro-batch that it is in.
    assert len(items) <= (3 if backwards else 1)
    assert all(weight.isfinite().all() for weight in broken.model.parameters())
    kept = last_complete_checkpoint(settings["output_dir"])
    assert kept.endswith("checkpoint-2")
    saved = UniMEModel.from_pretrained(kept).state_dict()  # as the weights are: the third step was not taken
    torch.testing.assert_close(
        saved, {name: value for name, value in broken.model.state_dict().items()}, atol=0, rtol=0
    )


def test_the_rows_of_a_long_list_are_counted(model: UniMEModel, processor: ProcessorMixin, settings: dict[str, Any]):
    poison(model, processor, backwards=False)
    args = ContrastiveConfig(**settings | {"per_device_train_batch_size": 12})
    trainer = ContrastiveTrainer(model, args, train_dataset=rows(*range(12)), processing_class=processor)
    with pytest.raises(
        ValueError, match=r"^step 1: the loss is nan, with the items .*query; .* and 7 more: the weights"
    ):
        trainer.train()
    assert last_complete_checkpoint(settings["output_dir"]) is None


def test_a_text_of_stage_1_is_named(model: UniMEModel, processor: ProcessorMixin, settings: dict[str, Any]):
    poison(model, processor, backwards=False)
    texts = {"text": [f"text {number}" for number in range(3)] + [f"bad {POISON}"], "teacher": torch.eye(4).tolist()}
    args = DistillationConfig(**settings)
    trainer = DistillationTrainer(model, args, Dataset.from_dict(texts), processing_class=processor)
    with pytest.raises(ValueError, match=f"^step 1: the loss is nan, with the items the text 'bad {POISON}': "):
        trainer.train()


@pytest.mark.parametrize("final", [False, True], ids=["checkpoint", "final"])
def test_weights_that_a_step_spoilt_are_not_saved(
    model: UniMEModel, processor: ProcessorMixin, settings: dict[str, Any], final: bool
):
    class Spoil(TrainerCallback):
        """Does after the third step what a far too high learning rate may do."""

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
    second = ContrastiveTrainer(model, args, rows(), processing_class=processor, callbacks=[Spoil()])
    with pytest.raises(ValueError, match="^after step 3 the weight .* is not finite: nothing is saved and the last"):
        second.train(resume_from_checkpoint=last_complete_checkpoint(settings["output_dir"]))
        second.save_model()
    assert content() == before
