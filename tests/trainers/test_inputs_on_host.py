"""Micro-batches stay in host memory, and each is on the device during its own passes only, pixels included."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import ProcessorMixin

from unime import UniMEModel
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, cached_loss
from unime.trainers.gradient_cache import GraphCacheBudget, with_inputs_on


class HostTensor(Tensor):
    """A tensor in a memory of its own: `to` copies it to the device, which is the CPU, and counts the bytes there."""

    device_bytes = peak_bytes = 0

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        copy = self.as_subclass(Tensor).clone()
        HostTensor.device_bytes += copy.nbytes
        HostTensor.peak_bytes = max(HostTensor.peak_bytes, HostTensor.device_bytes)
        weakref.finalize(copy.untyped_storage(), HostTensor.free, copy.nbytes)
        return copy

    @staticmethod
    def free(num_bytes: int) -> None:
        HostTensor.device_bytes -= num_bytes


@pytest.fixture
def host_memory() -> Iterator[type[HostTensor]]:
    HostTensor.device_bytes = HostTensor.peak_bytes = 0
    yield HostTensor


def num_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def test_the_device_holds_the_inputs_of_one_micro_batch(
    host_memory: type[HostTensor],
    make_model: Callable[..., UniMEModel],
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    tmp_path: Path,
):
    args = ContrastiveConfig(
        str(tmp_path),
        per_device_train_batch_size=24,
        per_device_eval_batch_size=24,
        micro_batch_tokens=200,
        max_steps=1,
        eval_strategy="steps",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    adapter = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1)
    trainer = ContrastiveTrainer(make_model(), args, rows, rows, processing_class=processor, peft_config=adapter)
    collate, sizes, passes = trainer.data_collator, [], []

    def collate_to_host(batch: list[dict[str, Any]]) -> dict[str, Any]:
        collated = collate(batch)
        sizes.append([num_bytes(tensors) for tensors in collated["micro_batches"]])
        host = [{name: t.as_subclass(HostTensor) for name, t in m.items()} for m in collated["micro_batches"]]
        return collated | {"micro_batches": host}

    def check_inputs(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        assert not any(isinstance(value, HostTensor) for value in kwargs.values())
        passes.append(1)

    trainer.data_collator = collate_to_host
    trainer.model.register_forward_pre_hook(check_inputs, with_kwargs=True)
    trainer.train()
    training, evaluation = sizes
    assert len(passes) == 2 * len(training) - 1 + len(evaluation)
    gc.collect()
    assert host_memory.device_bytes == 0
    # The graph of the first micro-batch waits for its backward pass, and may keep its inputs.
    assert max(training) <= host_memory.peak_bytes <= training[0] + max(training) < sum(training) / 2


def test_copies_that_a_graph_keeps_count_and_inputs_that_exist_anyway_do_not():
    weight = {device: nn.Parameter(torch.ones(4, device=device)) for device in ("cpu", "meta")}
    inputs = {"x": torch.randn(5, 4)}

    def bytes_counted(device: str) -> int:
        budget = GraphCacheBudget(1, nn.ParameterList([weight[device]]))
        embed = with_inputs_on(torch.device(device), lambda tensors: tensors["x"] * weight[device])
        with budget.counting(inputs):
            result = embed(inputs)
        assert result.requires_grad  # kept until here, and its graph with it
        return round(1e9 - budget.bytes_left)

    assert bytes_counted("cpu") == 0
    assert bytes_counted("meta") == inputs["x"].nbytes


def test_dropout_on_the_device_is_the_same_in_both_passes(monkeypatch: pytest.MonkeyPatch):
    # The micro-batches are on the host, so only `devices` says that the random numbers come from elsewhere.
    generator = torch.Generator().manual_seed(3)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generator.get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: generator.set_state(state) and None)
    weight, drawn = nn.Parameter(torch.ones(4)), []

    def embed(tensors: dict[str, Tensor]) -> Tensor:
        drawn.append(torch.rand(4, generator=generator))
        return tensors["x"] * weight * drawn[-1]

    batches = [{"x": torch.randn(2, 4)} for _ in range(3)]
    loss = cached_loss(embed, batches, lambda e: (e @ e.T).exp().sum(), devices=[torch.device("cuda", 0)])
    loss.backward()
    first, second, third, *again = drawn
    torch.testing.assert_close(again, [second, third], atol=0, rtol=0)


def test_pixels_of_a_batch_have_the_type_of_the_model_and_give_the_same_loss(
    make_model: Callable[..., UniMEModel], processor: ProcessorMixin, rows: list[dict[str, Any]], tmp_path: Path
):
    args = ContrastiveConfig(str(tmp_path), per_device_train_batch_size=6, use_cpu=True, report_to="none")
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    model = make_model().to(torch.bfloat16)
    trainer = ContrastiveTrainer(model, args, rows, processing_class=processor, peft_config=adapter)
    batch = trainer.data_collator(rows[:6])
    pixels = [tensors["pixel_values"] for tensors in batch["micro_batches"] if "pixel_values" in tensors]
    assert {tensor.dtype for tensor in pixels} == {torch.bfloat16}
    trainer.data_collator.prepare.keywords["dtype"] = None
    full = trainer.data_collator(rows[:6])
    assert any(tensor.dtype == torch.float32 for tensors in full["micro_batches"] for tensor in tensors.values())
    assert torch.equal(trainer.compute_loss(trainer.model, batch), trainer.compute_loss(trainer.model, full))
