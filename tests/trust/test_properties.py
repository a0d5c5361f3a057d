"""Property-based tests on random items: a few by default, many with `make test-slow`."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image
from tiny_models import TINY_MODELS
from transformers import ProcessorMixin

from unime import UniMEModel, micro_batches, processor_from_backbone
from unime.trainers import contrastive_loss


Item = dict[str, Any]
Record = Callable[[str, object], None]

DEFAULT_MODELS = ["llava", "qwen2-vl", "smolvlm"]
CASES = [(name, 25) for name in DEFAULT_MODELS] + [
    pytest.param(name, 200, marks=pytest.mark.slow) for name in TINY_MODELS
]
MAX_UNUSED_TOKENS = 24  # more than a control string has after a space has been inserted


def check_property(record: Record, examples: int, strategy: SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Check a property, on the same few examples in every run or on many new ones."""
    num_runs = 0

    @settings(max_examples=examples, derandomize=examples < 100, database=None, deadline=None, print_blob=True)
    @given(strategy)
    def run(example: Any) -> None:
        nonlocal num_runs
        num_runs += 1
        check(example)

    run()
    record("examples", num_runs)
    assert num_runs >= examples


@pytest.fixture(scope="module")
def loaded(tiny_model: Callable[[str], Path]) -> Callable[[str], tuple[UniMEModel, ProcessorMixin]]:
    """Return a function that loads a tiny model with its processor once."""
    cache: dict[str, tuple[UniMEModel, ProcessorMixin]] = {}

    def load(name: str) -> tuple[UniMEModel, ProcessorMixin]:
        if name not in cache:
            cache[name] = UniMEModel.from_backbone(tiny_model(name)).eval(), processor_from_backbone(tiny_model(name))
        return cache[name]

    return load


def texts(processor: ProcessorMixin) -> SearchStrategy[str]:
    """Generate texts: all of Unicode, ordinary words, and complete, cut and joined control strings."""
    control = st.sampled_from(sorted(processor.tokenizer.get_added_vocab()))
    cut_control = st.tuples(control, st.integers(0, 12), st.booleans()).map(
        lambda parts: parts[0][: parts[1]] if parts[2] else parts[0][parts[1] :]
    )
    words = st.sampled_from(["a cat ", "left of ", "\n", "  ", "שלום ", "日本", "👩🏿‍🚀", "\u202e", "\x00", "e\u0301"])
    pieces = st.one_of(control, cut_control, words, st.text(max_size=8))
    return st.lists(pieces, max_size=12).map("".join)


@st.composite
def images(draw: st.DrawFn) -> Image.Image:
    width, height, seed = draw(st.integers(8, 120)), draw(st.integers(8, 120)), draw(st.integers(0, 2**32 - 1))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def items(processor: ProcessorMixin) -> SearchStrategy[Item]:
    """Generate items: text, images, or both, with or without an instruction."""
    image_lists = st.lists(images(), min_size=1, max_size=2)
    optional = {"instruction": texts(processor)}
    return st.one_of(
        st.fixed_dictionaries({"text": texts(processor)}, optional=optional),
        st.fixed_dictionaries({"image": image_lists}, optional=optional),
        st.fixed_dictionaries({"text": texts(processor), "image": image_lists}, optional=optional),
    )


def input_ids(processor: ProcessorMixin, item: Item, max_length: int | None = None) -> list[int]:
    ((_, tensors),) = micro_batches(processor, [item], max_length=max_length)
    return tensors["input_ids"][0].tolist()


def control_tokens(processor: ProcessorMixin, row: list[int]) -> Counter:
    added = set(processor.tokenizer.get_added_vocab().values())
    return Counter(token for token in row if token in added)


def decode(processor: ProcessorMixin, row: list[int]) -> str:
    return processor.tokenizer.decode(row, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(("name", "examples"), CASES)
def test_texts_contain_no_control_tokens_and_images_have_their_tokens(
    loaded: Callable, record_property: Record, name: str, examples: int
) -> None:
    _, processor = loaded(name)

    def check(item: Item) -> None:
        row = input_ids(processor, item)
        harmless = {key: "a cat" if isinstance(value, str) else value for key, value in item.items()}
        assert control_tokens(processor, row) == control_tokens(processor, input_ids(processor, harmless))
        images = item.get("image", [])
        expected = 0
        if images:
            native = processor(text=[processor.image_token * len(images)], images=[images], add_special_tokens=False)
            expected = native["input_ids"][0].count(processor.image_token_id)
            assert expected >= len(images)
        assert row.count(processor.image_token_id) == expected

    check_property(record_property, examples, items(processor), check)


@pytest.mark.parametrize(("name", "examples"), CASES)
def test_truncation_keeps_the_prompt_and_the_longest_prefix_of_the_text_that_fits(
    loaded: Callable, record_property: Record, name: str, examples: int
) -> None:
    _, processor = loaded(name)

    def check(example: tuple[Item, int]) -> None:
        item, free_tokens = example
        first, second = (input_ids(processor, item | {"text": text}) for text in (";", "?"))
        text_start = next(index for index, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
        limit = len(first) + free_tokens
        full, cut = input_ids(processor, item), input_ids(processor, item, limit)
        assert len(cut) <= limit
        assert control_tokens(processor, cut) == control_tokens(processor, first)
        if len(full) <= limit:
            assert cut == full
            return
        if cut == input_ids(processor, item | {"text": ""}):
            assert free_tokens < MAX_UNUSED_TOKENS  # not even the first token of the text fits
            return
        assert limit - len(cut) < MAX_UNUSED_TOKENS
        head, tail = decode(processor, first[:text_start]), decode(processor, first[text_start + 1 :])
        kept = decode(processor, cut).removeprefix(head).removesuffix(tail)
        assert len(head + kept + tail) == len(decode(processor, cut))
        # Spaces split control strings, and a character that is cut within its bytes becomes the replacement character.
        assert item["text"].replace(" ", "").startswith(kept.replace(" ", "").rstrip("\ufffd"))

    items_with_text = items(processor).filter(lambda item: item.get("text"))
    check_property(record_property, examples, st.tuples(items_with_text, st.integers(0, 40)), check)


@pytest.mark.parametrize(("name", "examples"), CASES)
def test_an_embedding_is_a_finite_unit_vector_independent_of_order_and_batch(
    loaded: Callable, record_property: Record, name: str, examples: int
) -> None:
    model, processor = loaded(name)

    def check(example: tuple[list[Item], int]) -> None:
        batch, micro_batch_tokens = example
        alone = np.stack([model.encode(item, processor) for item in batch])
        assert np.isfinite(alone).all()
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(
            model.encode(batch, processor, micro_batch_tokens=micro_batch_tokens), alone, rtol=0, atol=1e-5
        )
        reversed_batch = model.encode(batch[::-1], processor, micro_batch_tokens=micro_batch_tokens)[::-1]
        np.testing.assert_allclose(reversed_batch, alone, rtol=0, atol=1e-5)

    batches = st.lists(items(processor), min_size=2, max_size=6)
    check_property(record_property, examples, st.tuples(batches, st.sampled_from([1, 100, 300, 8192])), check)


@st.composite
def losses(draw: st.DrawFn) -> dict[str, Any]:
    """Generate cosines of queries and candidates with ties, exclusions, and settings of the loss."""
    batch, candidates = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    values = st.integers(-10, 10).map(lambda tenth: tenth / 10)
    rows = st.lists(st.lists(values, min_size=candidates, max_size=candidates), min_size=batch, max_size=batch)
    flags = st.lists(st.lists(st.booleans(), min_size=candidates, max_size=candidates), min_size=batch, max_size=batch)
    excluded = torch.tensor(draw(flags))
    positive = torch.tensor(draw(st.lists(st.integers(0, candidates - 1), min_size=batch, max_size=batch)))
    allowed = ~excluded
    allowed[torch.arange(batch), positive] = False
    if not allowed.any():  # the loss rejects batches without negatives
        excluded[0, (positive[0] + 1) % candidates] = False
    return {
        "cosines": torch.tensor(draw(rows)),
        "positive": positive,
        "excluded": excluded,
        "false_negative_margin": draw(st.none() | st.sampled_from([-0.15, 0.0, 0.15])),
        "num_hard_negatives": draw(st.none() | st.integers(1, 9)),
        "pad_negatives": draw(st.sampled_from(["mask", "repeat"])),
    }


@pytest.mark.parametrize("examples", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_positives_and_dropped_candidates_are_never_used_as_negatives(record_property: Record, examples: int) -> None:
    def check(example: dict[str, Any]) -> None:
        # With unit axes as candidates the coordinates of a query are its cosines; their gradient shows what was used.
        cosines, positive, excluded = example["cosines"].requires_grad_(), example["positive"], example["excluded"]
        loss_settings = {
            name: example[name] for name in ("false_negative_margin", "num_hard_negatives", "pad_negatives")
        }
        axes = torch.eye(cosines.shape[1])
        loss, _ = contrastive_loss(cosines, axes, positive, excluded, temperature=1.0, **loss_settings)
        loss.backward()
        repelled, used = cosines.grad > 0, cosines.grad != 0
        for row, target in enumerate(positive.tolist()):
            row_cosines = cosines[row].tolist()
            limit = (
                math.inf
                if loss_settings["false_negative_margin"] is None
                else torch.tensor(row_cosines[target]).add(loss_settings["false_negative_margin"]).item()
            )
            allowed = {
                index
                for index, value in enumerate(row_cosines)
                if index != target and not excluded[row, index] and value <= limit
            }
            negatives = set(repelled[row].nonzero().flatten().tolist())
            assert target not in negatives and negatives <= allowed
            assert set(used[row].nonzero().flatten().tolist()) == (negatives | {target} if negatives else set())
            assert len(negatives) == min(len(allowed), loss_settings["num_hard_negatives"] or len(allowed))
            hardest = sorted((row_cosines[index] for index in allowed), reverse=True)[: len(negatives)]
            assert sorted((row_cosines[index] for index in negatives), reverse=True) == hardest

    check_property(record_property, examples, losses(), check)
