"""Threads, shared prefixes and packing give the same embeddings, and each prefix is computed once."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import TINY_MODELS
from transformers import AutoConfig, BatchFeature, ProcessorMixin

from unime import UniMEModel, encoding_unime, processor_from_backbone
from unime.batching_unime import MicroBatch, plan_micro_batches
from unime.encoding_unime import TEXT_ONLY_DECODER_FAMILIES, embed_micro_batches
from unime.processing_unime import normalize_item


INSTRUCTION = "Find an everyday image that shows what the following words describe, and nothing else:"
OTHER_INSTRUCTION = "Name in one word what can be seen in an image that the following text describes, in any language:"
ITEMS = [
    {"text": f"{i} cats " + "and a dog " * (i % 5), "instruction": INSTRUCTION if i % 3 else OTHER_INSTRUCTION}
    for i in range(45)
] + [{"text": "a cat", "image": Image.new("RGB", (40, 56), "red"), "instruction": INSTRUCTION}, "日本"]


FAMILIES = [*TINY_MODELS, "fast_vlm"]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> tuple[UniMEModel, ProcessorMixin]:
    folder = tiny_model(request.param)
    return UniMEModel.from_backbone(folder).eval(), processor_from_backbone(folder)


@contextmanager
def record_decoder_passes(model: UniMEModel) -> Iterator[list[tuple[int, int]]]:
    """Record (rows, cached tokens) of each pass of the decoder alone: prefixes, and texts that follow a prefix."""
    passes = []

    def record(_: torch.nn.Module, __: tuple, inputs: dict) -> None:
        if inputs.get("past_key_values") is not None:
            passes.append((len(inputs["input_ids"]), inputs["past_key_values"].get_seq_length()))

    hook = model.backbone.get_decoder().register_forward_pre_hook(record, with_kwargs=True)
    yield passes
    hook.remove()


def test_every_family_that_shares_prefixes_is_tested(tiny_model: Callable[[str], Path]) -> None:
    assert {AutoConfig.from_pretrained(tiny_model(name)).model_type for name in FAMILIES} == TEXT_ONLY_DECODER_FAMILIES


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_shared_prefixes_give_the_embeddings_of_whole_texts(
    loaded: tuple[UniMEModel, ProcessorMixin], attention: str
) -> None:
    model, processor = loaded
    model.backbone.get_decoder().set_attn_implementation(attention)
    expected = np.stack([model.encode(item, processor) for item in ITEMS])
    with record_decoder_passes(model) as passes:
        embeddings = model.encode(ITEMS, processor, micro_batch_tokens=100)
    assert [rows for rows, cached in passes if not cached] == [1, 1]  # one per instruction, though both have several
    after_prefix = [rows for rows, cached in passes if cached >= 15]
    assert sum(after_prefix) == 45 and len(after_prefix) > 4 and len(passes) == 2 + len(after_prefix)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 200, 10**4])
def test_packed_texts_do_not_attend_to_each_other(
    loaded: tuple[UniMEModel, ProcessorMixin], attention: str, micro_batch_tokens: int
) -> None:
    model, processor = loaded
    model.backbone.get_decoder().set_attn_implementation(attention)
    embeddings = model.encode(ITEMS, processor, micro_batch_tokens=micro_batch_tokens, packed=True)
    np.testing.assert_allclose(embeddings, model.encode(ITEMS, processor), atol=1e-5)
    model.backbone.get_decoder().set_attn_implementation("sdpa")


def test_a_micro_batch_after_a_prefix_is_halved_when_memory_runs_out(
    loaded: tuple[UniMEModel, ProcessorMixin], caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = loaded
    texts = ITEMS[:45]
    expected = model.encode(texts, processor)

    def fail_on_large_inputs(_: torch.nn.Module, __: tuple, inputs: dict) -> None:
        if inputs["input_ids"].numel() > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    hook = model.backbone.get_decoder().register_forward_pre_hook(fail_on_large_inputs, with_kwargs=True)
    with caplog.at_level(logging.WARNING), record_decoder_passes(model) as passes:
        embeddings = model.encode(texts, processor, micro_batch_tokens=10**4)
    hook.remove()
    assert "splitting them in halves" in caplog.text
    assert [rows for rows, cached in passes if not cached] == [1, 1]
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_an_item_beyond_the_original_length_does_not_change_shorter_ones(
    tiny_model: Callable[[str], Path], packed: bool
) -> None:
    folder = tiny_model("phi3-v")  # which rotates all rows of a batch otherwise if one has more than 512 positions
    model, processor = UniMEModel.from_backbone(folder).eval(), processor_from_backbone(folder)
    texts = [f"{number} cats and {'a dog ' * length}" for length in (60, 90, 300) for number in range(4)]
    items = [{"text": text, "instruction": INSTRUCTION} for text in texts]
    items += [{"image": Image.new("RGB", (40, 56)), "text": text} for text in texts[::2]]
    expected = np.stack([model.encode(item, processor) for item in items])
    normalized = {index: normalize_item(item, index) for index, item in enumerate(items)}
    batches = plan_micro_batches(processor, normalized, 10**6, None, True, packed, model.config.backbone_config)
    lengths = [[item.length for item in batch.items] for batch in batches]
    assert len(lengths) == 4 and all(min(row) > 512 or max(row) <= 512 for row in lengths)
    assert [bool(batch.prefix) for batch, row in zip(batches, lengths, strict=True) if max(row) > 512] == [False] * 2
    embeddings = model.encode(items, processor, micro_batch_tokens=10**6, packed=packed)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_other_families_do_not_share_prefixes(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = UniMEModel.from_backbone(tiny_model("llava")), processor_from_backbone(tiny_model("llava"))
    assert model.supports_text_only_decoder
    shared = model.encode(ITEMS, processor)
    monkeypatch.setattr("unime.modeling_unime.TEXT_ONLY_DECODER_FAMILIES", frozenset())
    with record_decoder_passes(model) as passes:
        np.testing.assert_allclose(model.encode(ITEMS, processor), shared, atol=1e-5)
    assert not passes and not model.supports_text_only_decoder
    with pytest.raises(ValueError, match="packed=True is exact for .*'llava': leave packed out"):
        model.encode(ITEMS, processor, packed=True)


def images_one_by_one(model: UniMEModel, processor: ProcessorMixin) -> list[MicroBatch]:
    """Return six micro-batches of one image with 1,200 pixels each."""
    items = {index: normalize_item(Image.new("RGB", (40, 30), (40 * index, 9, 9)), index) for index in range(6)}
    return plan_micro_batches(processor, items, micro_batch_tokens=1)


def test_two_threads_prepare_micro_batches_at_once(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding_unime, "READER_THREADS", 2)
    folder = tiny_model("llava-next")
    model, processor = UniMEModel.from_backbone(folder).eval(), processor_from_backbone(folder)
    batches = images_one_by_one(model, processor)
    expected = np.concatenate([vectors for batch in batches for _, vectors in embed_micro_batches(model, [batch])])
    both_at_work = Barrier(2)

    class Meeting(MicroBatch):
        def tensors(self, dtype: torch.dtype | None = None) -> BatchFeature:
            both_at_work.wait(timeout=20)
            return super().tensors(dtype)

    meeting = [Meeting(processor, batch.items) for batch in batches]
    indices, vectors = zip(*embed_micro_batches(model, meeting), strict=True)
    assert list(indices) == [[index] for index in range(6)]
    np.testing.assert_array_equal(np.concatenate(vectors), expected)


@pytest.mark.parametrize(("threads", "max_pixels", "prepared"), [(1, 9000, 2), (4, 9000, 5), (4, 3000, 3), (4, 1, 2)])
def test_prepared_micro_batches_are_bounded_in_number_and_in_pixels(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, threads: int, max_pixels: int, prepared: int
) -> None:
    monkeypatch.setattr(encoding_unime, "READER_THREADS", threads)
    monkeypatch.setattr(encoding_unime, "MAX_WINDOW_PIXELS", max_pixels)
    folder = tiny_model("llava-next")
    model, processor = UniMEModel.from_backbone(folder).eval(), processor_from_backbone(folder)
    remaining = iter(images_one_by_one(model, processor))
    next(embed_micro_batches(model, remaining))
    assert 6 - len(list(remaining)) == prepared  # with the one that was embedded


def test_photographs_of_one_micro_batch_are_prepared_in_several_threads(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model("llava-next")
    model, processor = UniMEModel.from_backbone(folder).eval(), processor_from_backbone(folder)
    images = [Image.new("RGB", (40, 30), (40 * i, 90, 9)) for i in range(5)]
    together = model.encode(images, processor)
    monkeypatch.setattr(encoding_unime, "READER_THREADS", 2)
    monkeypatch.setattr(encoding_unime, "MAX_WINDOW_PIXELS", 2 * 2 * 40 * 30)  # two of them for each thread
    items = {index: normalize_item(image, index) for index, image in enumerate(images)}
    (batch,) = plan_micro_batches(processor, items, micro_batch_tokens=10**6)
    parts = [(indices, vectors) for indices, vectors in embed_micro_batches(model, [batch])]
    assert sorted(len(indices) for indices, _ in parts) == [1, 2, 2]
    for indices, vectors in parts:
        np.testing.assert_allclose(vectors, together[indices], atol=1e-5)
