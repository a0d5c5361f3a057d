"""The work that training counts: tokens, images, embeddings and floating-point operations."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, ProcessorMixin

from unime import UniMEModel
from unime.batching_unime import micro_batches
from unime.trainers import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.throughput import ModelFlops, Throughput


def measured_flops(model: UniMEModel, tensors: dict[str, torch.Tensor]) -> int:
    """Return the operations of the matrix products of both passes, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        model(**tensors).last_hidden_state.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for op, count in counts.items() if str(op).split(".")[-1] in ("mm", "addmm"))


def batch_of(processor: ProcessorMixin, items: list[Any]) -> dict[str, torch.Tensor]:
    ((_, tensors),) = micro_batches(processor, items)
    return dict(tensors)


def test_full_fine_tuning_takes_six_operations_per_weight_and_token(make_model: Callable, processor: ProcessorMixin):
    model = make_model()
    tensors = batch_of(processor, [{"text": "one text, so that there is no padding"}])
    weights = sum(
        module.weight.numel()
        for module in model.backbone.get_decoder().modules()
        if isinstance(module, torch.nn.Linear)
    )
    flops = ModelFlops(model)
    assert flops.per_token == 6 * weights
    assert (
        flops.of_batch([tensors])
        == 6 * weights * int(tensors["attention_mask"].sum())
        == measured_flops(model, tensors)
    )


@pytest.mark.parametrize("targets", ["language_model", "vision_tower"])
def test_frozen_weights_take_no_operations_for_their_own_gradient(
    targets: str, tiny_model: Callable[[str], Path], processor: ProcessorMixin, make_image: Callable
):
    config = AutoConfig.from_pretrained(tiny_model("llava"))
    config.vision_feature_layer = -1  # by default LLaVA does not use the last of the two layers
    model = UniMEModel.from_backbone(config)
    full = ModelFlops(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=rf".*{targets}.*(q_proj|v_proj|fc1|up_proj)"))
    tensors = batch_of(processor, [{"image": make_image(0)}])
    flops = ModelFlops(model)
    # Torch skips the gradient of the first layer's inputs, one of two layers, and CLIP adds a class token.
    assert measured_flops(adapted, tensors) == pytest.approx(flops.of_batch([tensors]), rel=0.1)
    assert flops.of_batch([tensors]) < 0.7 * full.of_batch([tensors])
    assert flops.per_token < 0.8 * full.per_token
    assert (flops.per_patch < 0.4 * full.per_patch) == (targets == "language_model")  # no backward pass at all


def test_quantized_or_not_the_weights_count_by_their_shape(make_model: Callable):
    plain, packed = make_model(), make_model()
    for module in packed.modules():
        if isinstance(module, torch.nn.Linear):  # 4-bit weights are packed into fewer numbers
            module.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    assert ModelFlops(packed).per_token == ModelFlops(plain).per_token > 0


def test_training_counts_tokens_images_embeddings_and_operations(
    make_model: Callable, processor: ProcessorMixin, rows: list[dict[str, Any]], tmp_path: Path
):
    def train(mode: str) -> ContrastiveTrainer:
        args = ContrastiveConfig(
            str(tmp_path),
            per_device_train_batch_size=12,
            max_steps=2,
            logging_steps=1,
            micro_batch_tokens=100,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            train_sampling_strategy="sequential",
            include_num_input_tokens_seen=mode,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = ContrastiveTrainer(
            make_model(), args, train_dataset=rows, eval_dataset=rows, processing_class=processor
        )
        trainer.train()
        return trainer

    trainer, padded = train("non_padding"), train("all")
    batches = [trainer.data_collator(part) for part in (rows[:12], rows[12:])]
    masks = [tensors["attention_mask"] for batch in batches for tensors in batch["micro_batches"]]
    assert trainer.state.num_input_tokens_seen == sum(int(mask.sum()) for mask in masks)
    assert padded.state.num_input_tokens_seen == sum(mask.numel() for mask in masks)
    flops = sum(ModelFlops(trainer.model).of_batch(batch["micro_batches"]) for batch in batches)
    assert trainer.state.total_flos == flops > 0
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, batch in zip(entries, batches, strict=True):
        rates = [entry[f"{name}_per_second"] for name in ("tokens", "images", "embeddings")]
        tokens = sum(int(tensors["attention_mask"].sum()) for tensors in batch["micro_batches"])
        # One step took one time: the rates are in the proportion of the counts.
        assert rates[0] / rates[2] == pytest.approx(tokens / len(batch["order"]))
        assert rates[1] / rates[2] == pytest.approx(batch["num_images"] / len(batch["order"]))
        assert batch["num_images"] > 0


def test_the_rates_do_not_count_the_time_of_evaluation_and_saving():
    throughput = Throughput()
    throughput.add(
        {"micro_batches": [{"attention_mask": torch.ones(2, 5)}], "order": torch.arange(2), "num_images": 1}
    )
    with throughput.paused():
        time.sleep(0.5)
    rates = throughput.rates(torch.device("cpu"))
    assert rates["tokens_per_second"] > 10 / 0.5
    assert rates["tokens_per_second"] == pytest.approx(10 * rates["images_per_second"])
    assert throughput.rates(torch.device("cpu"))["embeddings_per_second"] == 0
