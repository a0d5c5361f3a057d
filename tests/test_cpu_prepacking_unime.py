"""Packed weights give the same vectors, and nothing of them is left behind."""

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


pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="weights are packed for AVX-512 only"
)
ITEMS = ["a cat", "a dog and " * 30, {"text": "a bird", "image": Image.new("RGB", (40, 56), "red")}]


@pytest.fixture(scope="module")
def llava(tiny_model: Callable[[str], Path]) -> tuple[UniMEModel, ProcessorMixin]:
    return UniMEModel.from_backbone(tiny_model("llava")).eval(), processor_from_backbone(tiny_model("llava"))


def replaced(model: UniMEModel) -> int:
    """The number of linear layers that are not as `torch.nn` has them."""
    return sum("forward" in vars(module) for module in model.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize("name", TINY_MODELS)
def test_vectors_are_those_of_plain_weights(
    name: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = UniMEModel.from_backbone(tiny_model(name)), processor_from_backbone(tiny_model(name))
    monkeypatch.setattr(modeling_unime, "prepacked_weights", lambda _: nullcontext())
    plain = model.encode(ITEMS, processor)
    monkeypatch.undo()
    found = []
    hook = model.register_forward_pre_hook(lambda *_: found.append(replaced(model)))
    monkeypatch.setattr(modeling_unime, "MIN_PREPACKING_TOKENS", 1)
    np.testing.assert_allclose(model.encode(ITEMS, processor), plain, atol=1e-5)
    hook.remove()
    assert set(found) == {sum(type(module) is nn.Linear for module in model.modules())} and replaced(model) == 0


def test_few_tokens_are_not_worth_it(llava: tuple[UniMEModel, ProcessorMixin]) -> None:
    model, processor = llava
    found = []
    hook = model.register_forward_pre_hook(lambda *_: found.append(replaced(model)))
    model.encode("a cat", processor)
    assert found == [0]
    model.encode([f"{number} cats and dogs" for number in range(200)], processor)
    hook.remove()
    assert all(found[1:]) and len(found) > 2


def test_weights_are_plain_again_after_an_error(llava: tuple[UniMEModel, ProcessorMixin]) -> None:
    model, _ = llava
    with pytest.raises(RuntimeError, match="stop"), prepacked_weights(model):
        assert replaced(model)
        raise RuntimeError("stop")
    assert replaced(model) == 0


def test_what_another_has_replaced_stays(llava: tuple[UniMEModel, ProcessorMixin]) -> None:
    model, _ = llava
    first, *others = [module for module in model.modules() if type(module) is nn.Linear]
    first.forward = hooked = partial(nn.functional.linear, weight=first.weight, bias=first.bias)
    with prepacked_weights(model):
        assert first.forward is hooked and replaced(model) == len(others) + 1
        with prepacked_weights(model):  # as `encode` in a process whose server has packed them
            pass
        assert replaced(model) == len(others) + 1
    assert first.forward is hooked and replaced(model) == 1
    del first.forward


def test_threads_may_embed_with_one_model(
    llava: tuple[UniMEModel, ProcessorMixin], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = llava
    expected = model.encode(ITEMS, processor)
    monkeypatch.setattr(modeling_unime, "MIN_PREPACKING_TOKENS", 1)
    with ThreadPoolExecutor(4) as threads:
        for vectors in threads.map(lambda _: model.encode(ITEMS, processor), range(24)):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert replaced(model) == 0


def test_other_numbers_compiled_layers_and_large_models_stay_as_they_are(
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
        assert replaced(half) == 0
