"""Prepacked weights give the same embeddings, and the model is unchanged afterwards."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import TINY_MODELS
from torch import nn
from transformers import ProcessorMixin

from unime import UniMEModel, cpu_prepacking_unime, modeling_unime, processor_from_backbone
from unime.cpu_prepacking_unime import can_prepack, prepacked_weights


needs_avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="weights are prepacked for AVX-512 only"
)
ITEMS = ["a cat", "a dog and " * 30, {"text": "a bird", "image": Image.new("RGB", (40, 56), "red")}]


@pytest.fixture(scope="module")
def llava(tiny_model: Callable[[str], Path]) -> tuple[UniMEModel, ProcessorMixin]:
    return UniMEModel.from_backbone(tiny_model("llava")).eval(), processor_from_backbone(tiny_model("llava"))


def count_replaced(model: UniMEModel) -> int:
    """Return the number of linear layers with a replaced `forward`."""
    return sum("forward" in vars(module) for module in model.modules() if isinstance(module, nn.Linear))


@needs_avx512
@pytest.mark.parametrize("name", TINY_MODELS)
def test_prepacked_weights_give_the_embeddings_of_plain_weights(
    name: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = UniMEModel.from_backbone(tiny_model(name)), processor_from_backbone(tiny_model(name))
    monkeypatch.setattr(modeling_unime, "prepacked_weights", lambda _: nullcontext())
    plain = model.encode(ITEMS, processor)
    monkeypatch.undo()
    counts = []
    hook = model.register_forward_pre_hook(lambda *_: counts.append(count_replaced(model)))
    monkeypatch.setattr(modeling_unime, "MIN_PREPACKING_TOKENS", 1)
    np.testing.assert_allclose(model.encode(ITEMS, processor), plain, atol=1e-5)
    hook.remove()
    assert set(counts) == {sum(type(module) is nn.Linear for module in model.modules())} and count_replaced(model) == 0


@needs_avx512
def test_weights_are_not_prepacked_for_few_tokens(llava: tuple[UniMEModel, ProcessorMixin]) -> None:
    model, processor = llava
    counts = []
    hook = model.register_forward_pre_hook(lambda *_: counts.append(count_replaced(model)))
    model.encode("a cat", processor)
    assert counts == [0]
    model.encode([f"{count} cats and dogs" for count in range(200)], processor)
    hook.remove()
    assert all(counts[1:]) and len(counts) > 2


@needs_avx512
def test_the_plain_weights_are_restored_after_an_error(llava: tuple[UniMEModel, ProcessorMixin]) -> None:
    model, _ = llava
    with pytest.raises(RuntimeError, match="stop"), prepacked_weights(model):
        assert count_replaced(model)
        raise RuntimeError("stop")
    assert count_replaced(model) == 0


@needs_avx512
def test_a_forward_that_is_already_replaced_is_kept(llava: tuple[UniMEModel, ProcessorMixin]) -> None:
    model, _ = llava
    first, *others = [module for module in model.modules() if type(module) is nn.Linear]
    first.forward = hooked = partial(nn.functional.linear, weight=first.weight, bias=first.bias)
    with prepacked_weights(model):
        assert first.forward is hooked and count_replaced(model) == len(others) + 1
        with prepacked_weights(model):  # such as `encode` in a server that has prepacked the weights
            pass
        assert count_replaced(model) == len(others) + 1
    assert first.forward is hooked and count_replaced(model) == 1
    del first.forward


@needs_avx512
def test_threads_may_share_a_model(llava: tuple[UniMEModel, ProcessorMixin], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = llava
    expected = model.encode(ITEMS, processor)
    monkeypatch.setattr(modeling_unime, "MIN_PREPACKING_TOKENS", 1)
    with ThreadPoolExecutor(4) as threads:
        for embeddings in threads.map(lambda _: model.encode(ITEMS, processor), range(24)):
            np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert count_replaced(model) == 0


@needs_avx512
def test_other_dtypes_compiled_layers_and_large_models_are_not_prepacked(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = UniMEModel.from_backbone(tiny_model("llava"))
    assert can_prepack(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_prepack(model)
    monkeypatch.setattr(cpu_prepacking_unime, "MAX_PREPACKED_BYTES", 10**4)
    assert not can_prepack(model)
    monkeypatch.undo()
    model.backbone.get_decoder().layers[0].compile()
    assert not can_prepack(model)
    half = UniMEModel.from_backbone(tiny_model("llava"), dtype=torch.bfloat16)
    with prepacked_weights(half):
        assert count_replaced(half) == 0


def test_kernels_are_compiled_for_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")  # oneDNN runs on all processors
    layer = nn.Linear(24, 40)
    batches = [torch.randn(2, tokens, 24) for tokens in range(1, 65)]
    with torch.inference_mode():
        expected = [layer(batch) for batch in batches]
        with prepacked_weights(layer), torch.profiler.profile(record_shapes=True) as profile:
            for batch, outputs in zip(batches, expected, strict=True):
                torch.testing.assert_close(layer(batch), outputs, atol=1e-5, rtol=0)
    rows = [event.input_shapes[0] for event in profile.events() if event.name == "mkldnn::_linear_pointwise"]
    assert len(rows) == len(batches) and len({*map(tuple, rows)}) == 4
