"""What holds for every item, tried on random ones: few here and now, many with `make test-slow`."""

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

FEW = ["llava", "qwen2-vl", "smolvlm"]
CASES = [(name, 25) for name in FEW] + [pytest.param(name, 200, marks=pytest.mark.slow) for name in TINY_MODELS]
SLACK = 24  # tokens: more than any control string has once a space has broken it


def try_many(record: Record, examples: int, strategy: SearchStrategy[Any], holds: Callable[[Any], None]) -> None:
    """Try a property: on the same few examples at each run, or on many new ones."""
    ran = 0

    @settings(max_examples=examples, derandomize=examples < 100, database=None, deadline=None, print_blob=True)
    @given(strategy)
    def run(example: Any) -> None:
        nonlocal ran
        ran += 1
        holds(example)

    run()
    record("examples", ran)
    assert ran >= examples


@pytest.fixture(scope="module")
def loaded(tiny_model: Callable[[str], Path]) -> Callable[[str], tuple[UniMEModel, ProcessorMixin]]:
    """Give a tiny model's model and processor; made once."""
    made: dict[str, tuple[UniMEModel, ProcessorMixin]] = {}

    def load(name: str) -> tuple[UniMEModel, ProcessorMixin]:
        if name not in made:
            made[name] = UniMEModel.from_backbone(tiny_model(name)).eval(), processor_from_backbone(tiny_model(name))
        return made[name]

    return load


def texts(processor: ProcessorMixin) -> SearchStrategy[str]:
    """Any text: all of Unicode, ordinary words, and whole, halved and glued control strings of the tokenizer."""
    control = st.sampled_from(sorted(processor.tokenizer.get_added_vocab()))
    halves = st.tuples(control, st.integers(0, 12), st.booleans()).map(
        lambda drawn: drawn[0][: drawn[1]] if drawn[2] else drawn[0][drawn[1] :]
    )
    words = st.sampled_from(["a cat ", "left of ", "\n", "  ", "שלום ", "日本", "👩🏿‍🚀", "\u202e", "\x00", "e\u0301"])
    pieces = st.one_of(control, halves, words, st.text(max_size=8))
    return st.lists(pieces, max_size=12).map("".join)


@st.composite
def images(draw: st.DrawFn) -> Image.Image:
    width, height, seed = draw(st.integers(8, 120)), draw(st.integers(8, 120)), draw(st.integers(0, 2**32 - 1))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def items(processor: ProcessorMixin) -> SearchStrategy[Item]:
    """Text, images, or both; with or without an instruction."""
    several = st.lists(images(), min_size=1, max_size=2)
    optional = {"instruction": texts(processor)}
    return st.one_of(
        st.fixed_dictionaries({"text": texts(processor)}, optional=optional),
        st.fixed_dictionaries({"image": several}, optional=optional),
        st.fixed_dictionaries({"text": texts(processor), "image": several}, optional=optional),
    )


def ids(processor: ProcessorMixin, item: Item, max_length: int | None = None) -> list[int]:
    ((_, tensors),) = micro_batches(processor, [item], max_length=max_length)
    return tensors["input_ids"][0].tolist()


def control_tokens(processor: ProcessorMixin, row: list[int]) -> Counter:
    added = set(processor.tokenizer.get_added_vocab().values())
    return Counter(token for token in row if token in added)


def said(processor: ProcessorMixin, row: list[int]) -> str:
    return processor.tokenizer.decode(row, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(("name", "examples"), CASES)
def test_no_text_becomes_a_control_token_and_every_image_has_its_tokens(
    loaded: Callable, record_property: Record, name: str, examples: int
) -> None:
    _, processor = loaded(name)

    def holds(item: Item) -> None:
        row = ids(processor, item)
        harmless = {key: "a cat" if isinstance(value, str) else value for key, value in item.items()}
        assert control_tokens(processor, row) == control_tokens(processor, ids(processor, harmless))
        images = item.get("image", [])
        wanted = 0
        if images:
            native = processor(text=[processor.image_token * len(images)], images=[images], add_special_tokens=False)
            wanted = native["input_ids"][0].count(processor.image_token_id)
            assert wanted >= len(images)
        assert row.count(processor.image_token_id) == wanted

    try_many(record_property, examples, items(processor), holds)


@pytest.mark.parametrize(("name", "examples"), CASES)
def test_truncation_keeps_the_prompt_and_as_much_of_the_beginning_of_the_text_as_fits(
    loaded: Callable, record_property: Record, name: str, examples: int
) -> None:
    _, processor = loaded(name)

    def holds(drawn: tuple[Item, int]) -> None:
        item, room = drawn
        first, second = (ids(processor, item | {"text": text}) for text in (";", "?"))
        place = next(place for place, (one, other) in enumerate(zip(first, second, strict=True)) if one != other)
        limit = len(first) + room
        whole, cut = ids(processor, item), ids(processor, item, limit)
        assert len(cut) <= limit
        assert control_tokens(processor, cut) == control_tokens(processor, first)
        if len(whole) <= limit:
            assert cut == whole
            return
        if cut == ids(processor, item | {"text": ""}):
            assert room < SLACK  # there is no room even for the first of its tokens
            return
        assert limit - len(cut) < SLACK
        head, tail = said(processor, first[:place]), said(processor, first[place + 1 :])
        kept = said(processor, cut).removeprefix(head).removesuffix(tail)
        assert len(head + kept + tail) == len(said(processor, cut))
        # A space breaks a control string, and a character cut in the middle of its bytes is the replacement character.
        assert item["text"].replace(" ", "").startswith(kept.replace(" ", "").rstrip("\ufffd"))

    cuttable = items(processor).filter(lambda item: item.get("text"))
    try_many(record_property, examples, st.tuples(cuttable, st.integers(0, 40)), holds)


@pytest.mark.parametrize(("name", "examples"), CASES)
def test_a_vector_is_finite_of_unit_length_and_owes_nothing_to_order_or_neighbours(
    loaded: Callable, record_property: Record, name: str, examples: int
) -> None:
    model, processor = loaded(name)

    def holds(drawn: tuple[list[Item], int]) -> None:
        batch, budget = drawn
        alone = np.stack([model.encode(item, processor) for item in batch])
        assert np.isfinite(alone).all()
        np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(model.encode(batch, processor, micro_batch_tokens=budget), alone, rtol=0, atol=1e-5)
        backwards = model.encode(batch[::-1], processor, micro_batch_tokens=budget)[::-1]
        np.testing.assert_allclose(backwards, alone, rtol=0, atol=1e-5)

    batches = st.lists(items(processor), min_size=2, max_size=6)
    try_many(record_property, examples, st.tuples(batches, st.sampled_from([1, 100, 300, 8192])), holds)


@st.composite
def losses(draw: st.DrawFn) -> dict[str, Any]:
    """Cosines of any queries with any pool, ties among them, any exclusions, and any settings of the loss."""
    batch, pool = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    values = st.integers(-10, 10).map(lambda tenth: tenth / 10)
    rows = st.lists(st.lists(values, min_size=pool, max_size=pool), min_size=batch, max_size=batch)
    flags = st.lists(st.lists(st.booleans(), min_size=pool, max_size=pool), min_size=batch, max_size=batch)
    excluded = torch.tensor(draw(flags))
    positive = torch.tensor(draw(st.lists(st.integers(0, pool - 1), min_size=batch, max_size=batch)))
    allowed = ~excluded
    allowed[torch.arange(batch), positive] = False
    if not allowed.any():  # the loss refuses it: no query has a negative
        excluded[0, (positive[0] + 1) % pool] = False
    return {
        "cosines": torch.tensor(draw(rows)),
        "positive": positive,
        "excluded": excluded,
        "false_negative_margin": draw(st.none() | st.sampled_from([-0.15, 0.0, 0.15])),
        "num_hard_negatives": draw(st.none() | st.integers(1, 9)),
        "pad_negatives": draw(st.sampled_from(["mask", "repeat"])),
    }


@pytest.mark.parametrize("examples", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_no_query_learns_from_its_positive_as_a_negative_or_from_what_was_dropped(
    record_property: Record, examples: int
) -> None:
    def holds(drawn: dict[str, Any]) -> None:
        # With the axes as candidates a query's coordinates are its cosines: their gradient says what the loss read.
        cosines, positive, excluded = drawn["cosines"].requires_grad_(), drawn["positive"], drawn["excluded"]
        chosen = {name: drawn[name] for name in ("false_negative_margin", "num_hard_negatives", "pad_negatives")}
        axes = torch.eye(cosines.shape[1])
        loss, _ = contrastive_loss(cosines, axes, positive, excluded, temperature=1.0, **chosen)
        loss.backward()
        pushed, used = cosines.grad > 0, cosines.grad != 0
        for row, own in enumerate(positive.tolist()):
            known = cosines[row].tolist()
            limit = (
                math.inf
                if chosen["false_negative_margin"] is None
                else torch.tensor(known[own]).add(chosen["false_negative_margin"]).item()
            )
            left = {
                number
                for number, value in enumerate(known)
                if number != own and not excluded[row, number] and value <= limit
            }
            taken = set(pushed[row].nonzero().flatten().tolist())
            assert own not in taken and taken <= left
            assert set(used[row].nonzero().flatten().tolist()) == (taken | {own} if taken else set())
            assert len(taken) == min(len(left), chosen["num_hard_negatives"] or len(left))
            hardest = sorted((known[number] for number in left), reverse=True)[: len(taken)]
            assert sorted((known[number] for number in taken), reverse=True) == hardest

    try_many(record_property, examples, losses(), holds)
