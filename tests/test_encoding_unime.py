"""A prefix is read once, texts are packed into one row, and their vectors stay what they were."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import TINY_MODELS
from transformers import AutoConfig, ProcessorMixin

from unime import UniMEModel, processor_from_backbone
from unime.encoding_unime import TEXT_ONLY_DECODER_FAMILIES


INSTRUCTION = "Find an everyday image that shows what the following words say, and nothing besides it:"
OTHER = "Tell in one word what is to be seen in an image of which someone says what comes now, in any language:"
ITEMS = [
    {"text": f"{number} cats " + "and a dog " * (number % 5), "instruction": INSTRUCTION if number % 3 else OTHER}
    for number in range(45)
] + [{"text": "a cat", "image": Image.new("RGB", (40, 56), "red"), "instruction": INSTRUCTION}, "日本"]


@pytest.fixture(scope="module", params=TINY_MODELS)
def loaded(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> tuple[UniMEModel, ProcessorMixin]:
    folder = tiny_model(request.param)
    return UniMEModel.from_backbone(folder).eval(), processor_from_backbone(folder)


@contextmanager
def passes(model: UniMEModel) -> Iterator[list[tuple[int, int]]]:
    """Give (rows, tokens read before) of what the decoder reads by itself: prefixes, and texts after them."""
    found = []

    def note(_: torch.nn.Module, __: tuple, inputs: dict) -> None:
        if inputs.get("past_key_values") is not None:
            found.append((len(inputs["input_ids"]), inputs["past_key_values"].get_seq_length()))

    hook = model.backbone.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    yield found
    hook.remove()


def test_every_family_that_shares_prefixes_is_tested_here(tiny_model: Callable[[str], Path]) -> None:
    assert {
        AutoConfig.from_pretrained(tiny_model(name)).model_type for name in TINY_MODELS
    } == TEXT_ONLY_DECODER_FAMILIES


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vectors_are_those_of_texts_read_whole(loaded: tuple[UniMEModel, ProcessorMixin], attention: str) -> None:
    model, processor = loaded
    model.set_attn_implementation(attention)
    alone = np.stack([model.encode(item, processor) for item in ITEMS])
    with passes(model) as found:
        together = model.encode(ITEMS, processor, micro_batch_tokens=100)
    assert [rows for rows, before in found if not before] == [1, 1]  # of each instruction, though both make several
    after = [rows for rows, before in found if before >= 15]
    assert sum(after) == 45 and len(after) > 4 and len(found) == 2 + len(after)
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 200, 10**4])
def test_packed_texts_do_not_see_each_other(
    loaded: tuple[UniMEModel, ProcessorMixin], attention: str, micro_batch_tokens: int
) -> None:
    model, processor = loaded
    model.set_attn_implementation(attention)
    together = model.encode(ITEMS, processor, micro_batch_tokens=micro_batch_tokens, packed=True)
    np.testing.assert_allclose(together, model.encode(ITEMS, processor), atol=1e-5)
    model.set_attn_implementation("sdpa")


def test_after_a_prefix_too_a_micro_batch_is_halved_where_memory_lacks(
    loaded: tuple[UniMEModel, ProcessorMixin], caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = loaded
    texts = ITEMS[:45]
    expected = model.encode(texts, processor)

    def allocate(_: torch.nn.Module, __: tuple, inputs: dict) -> None:
        if inputs["input_ids"].numel() > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    hook = model.backbone.get_decoder().register_forward_pre_hook(allocate, with_kwargs=True)
    with caplog.at_level(logging.WARNING), passes(model) as read:
        found = model.encode(texts, processor, micro_batch_tokens=10**4)
    hook.remove()
    assert "splitting them in halves" in caplog.text
    assert [rows for rows, before in read if not before] == [1, 1]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_another_family_reads_all_of_every_text(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = UniMEModel.from_backbone(tiny_model("llava")), processor_from_backbone(tiny_model("llava"))
    assert model.supports_text_only_decoder
    shared = model.encode(ITEMS, processor)
    monkeypatch.setattr("unime.modeling_unime.TEXT_ONLY_DECODER_FAMILIES", frozenset())
    with passes(model) as found:
        np.testing.assert_allclose(model.encode(ITEMS, processor), shared, atol=1e-5)
    assert not found and not model.supports_text_only_decoder
    with pytest.raises(ValueError, match="packed=True is exact for .*'llava': leave packed out"):
        model.encode(ITEMS, processor, packed=True)
