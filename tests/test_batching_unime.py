"""Micro-batches contain every item once and keep their token budget; only the user's text is truncated."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from token_ids import token_ids
from transformers import AutoConfig, ProcessorMixin

from unime import UniMEConfig, image_input_unime, micro_batches
from unime.batching_unime import default_max_length, plan_micro_batches
from unime.image_input_unime import images_before_processor, to_planes
from unime.processing_unime import normalize_item


RED = Image.new("RGB", (40, 56), "red")
BLUE = Image.new("RGB", (30, 30), "blue")
INSTRUCTION = "Find an everyday image that shows what the following words describe, and nothing else:"


@pytest.mark.parametrize("size", [(24, 24), (40, 56), (24, 96), (200, 30)])
@pytest.mark.parametrize("others", [[], [RED, BLUE]])
def test_an_image_takes_the_number_of_tokens_that_the_processor_gives_it(
    processor: ProcessorMixin, size: tuple[int, int], others: list[Image.Image]
) -> None:
    images = [Image.new("RGB", size, "green"), *others]
    native = processor(text=[processor.image_token * len(images)], images=[images], add_special_tokens=False)
    expected = native["input_ids"][0].count(processor.image_token_id)
    (row,) = token_ids(processor, [{"image": images, "text": "<image> a cat"}])
    assert row.count(processor.image_token_id) == expected > 0
    # The predicted length, which decides about truncation and the budget, is the real length.
    assert token_ids(processor, [{"image": images, "text": "<image> a cat"}], max_length=len(row)) == [row]


def test_micro_batches_contain_all_items_sorted_and_keep_the_budget(processor: ProcessorMixin) -> None:
    sizes = [(24, 24), (80, 24), (48, 48)]
    items = [f"a cat {'and a dog ' * (i % 5)}" for i in range(20)]
    items += [{"image": Image.new("RGB", sizes[i % 3]), "text": f"number {i}"} for i in range(12)]
    random.Random(1).shuffle(items)
    budget = 400
    batches = micro_batches(processor, items, micro_batch_tokens=budget)
    assert sorted(index for indices, _ in batches for index in indices) == list(range(len(items)))
    lengths = []
    for indices, tensors in batches:
        has_image = {isinstance(items[index], dict) for index in indices}
        assert len(has_image) == 1 and ("pixel_values" in tensors) == has_image.pop()
        assert len(indices) == 1 or tensors["input_ids"].numel() <= budget
        lengths += [(isinstance(items[indices[0]], dict), int(length)) for length in tensors["attention_mask"].sum(1)]
    assert lengths == sorted(lengths)
    assert any(len(indices) > 1 for indices, _ in batches)


def test_vision_patches_count_towards_the_budget(llava: ProcessorMixin, tiny_model: Callable[[str], Path]) -> None:
    items = {index: normalize_item(Image.new("RGB", (24, 24)), index) for index in range(6)}
    config = AutoConfig.from_pretrained(tiny_model("llava"))
    config.vision_config.num_hidden_layers *= 5  # each of the nine patches of an image is worth five tokens
    (whole,) = plan_micro_batches(llava, items, micro_batch_tokens=10**6, config=config)
    assert whole.cost == whole.tokens + 6 * 9 * 5
    batches = plan_micro_batches(llava, items, micro_batch_tokens=int(whole.cost / 2), config=config)
    assert [len(batch.items) for batch in batches] == [3, 3]
    (one,) = plan_micro_batches(llava, items, micro_batch_tokens=int(whole.cost / 2))  # tokens alone would fit
    assert one.cost == one.tokens == whole.tokens
    assert [half.cost for half in whole.halves()] == [whole.cost / 2] * 2


def test_pixels_have_the_type_that_is_asked_for_rounded_as_the_model_rounds_them(llava: ProcessorMixin) -> None:
    image = Image.effect_noise((24, 24), 100).convert("RGB")
    ((_, full),) = micro_batches(llava, [image])
    ((_, half),) = micro_batches(llava, [image], dtype=torch.bfloat16)
    assert half["pixel_values"].nbytes * 2 == full["pixel_values"].nbytes
    assert half["input_ids"].dtype == half["attention_mask"].dtype == torch.int64
    assert torch.equal(half["pixel_values"], full["pixel_values"].to(torch.bfloat16))


def test_a_micro_batch_ends_where_lengths_differ_much(llava: ProcessorMixin) -> None:
    items = {index: normalize_item("word " * (index + 1) ** 2, index) for index in range(12)}
    batches = plan_micro_batches(llava, items, micro_batch_tokens=400)
    assert sorted(index for batch in batches for index in batch.indices) == list(items)
    assert 1 < len(batches) < 12
    for batch in batches:
        lengths = [item.length for item in batch.items]
        assert batch.padding == len(lengths) * max(lengths) - sum(lengths) <= 20  # 5% of the budget
    assert all(batch.padding == 0 for batch in plan_micro_batches(llava, items, micro_batch_tokens=400, packed=True))


@pytest.mark.parametrize(("tokenizer_limit", "model_limit"), [(100, 4096), (10**30, 64)])
def test_the_default_maximum_length_is_the_smaller_limit_of_tokenizer_and_model(
    llava: ProcessorMixin, monkeypatch: pytest.MonkeyPatch, tokenizer_limit: int, model_limit: int
) -> None:
    monkeypatch.setattr(llava.tokenizer, "model_max_length", tokenizer_limit)
    config = UniMEConfig()
    config.get_text_config().max_position_embeddings = model_limit
    assert default_max_length(llava, config) == min(tokenizer_limit, model_limit)


def test_no_items_make_no_micro_batches(llava: ProcessorMixin) -> None:
    assert micro_batches(llava, []) == []


@pytest.mark.parametrize("image", [None, RED])
@pytest.mark.parametrize("instruction", [None, "Find it:"])
def test_only_the_text_of_the_user_is_truncated(
    processor: ProcessorMixin, image: Image.Image | None, instruction: str | None
) -> None:
    def item(text: str) -> dict:
        return {"text": text, "instruction": instruction} | ({"image": image} if image else {})

    text = "one, two, three, " * 40
    short, long = token_ids(processor, [item(";"), item(text)])
    limit = len(short) + 40
    (truncated,) = token_ids(processor, [item(text)], max_length=limit)
    assert limit - 4 <= len(truncated) <= limit < len(long)
    head, tail = processor.tokenizer.decode(short).split(";")  # the head contains every image token
    prompt = processor.tokenizer.decode(truncated)
    assert prompt.startswith(head) and prompt.endswith(tail)
    kept = prompt[len(head) : -len(tail)]
    assert kept and text.startswith(kept)


def test_the_last_texts_of_an_interleaved_item_are_truncated_first(processor: ProcessorMixin) -> None:
    texts = ["one, two, three, " * 4, "four, five, " * 4, "six, seven, eight, " * 4]
    full, without = token_ids(processor, [[texts[0], RED, texts[1], BLUE, texts[2]], [";", RED, ";", BLUE, ";"]])
    images = full.count(processor.image_token_id)
    kept = []
    for limit in range(len(without) + 4, len(full), 9):
        (row,) = token_ids(processor, [[texts[0], RED, texts[1], BLUE, texts[2]]], max_length=limit)
        assert limit - 4 <= len(row) <= limit and row.count(processor.image_token_id) == images
        prompt = processor.tokenizer.decode(row)
        kept.append([max(n for n in range(len(text) + 1) if text[:n].strip() in prompt) for text in texts])
    lengths = [len(text) for text in texts]
    assert kept == sorted(kept)
    assert any(0 < first < lengths[0] for first, _, _ in kept)
    assert any(first == lengths[0] and 0 < second < lengths[1] for first, second, _ in kept)
    assert any((first, second) == tuple(lengths[:2]) for first, second, _ in kept)


def test_the_tokens_of_an_interleaved_item_are_counted_exactly(processor: ProcessorMixin) -> None:
    item = ["a cat", RED, " sits on\n", BLUE, "a mat"]
    (batch,) = plan_micro_batches(processor, {0: normalize_item(item, 0)})
    assert batch.items[0].length == batch.tensors()["input_ids"].shape[1]


def test_truncation_keeps_the_limit_and_leaves_other_items_unchanged(processor: ProcessorMixin) -> None:
    items = ["a cat", "a dog and " * 100, {"image": RED, "text": "日本 " * 100}]
    (cat,) = token_ids(processor, items[:1])
    truncated = token_ids(processor, items, max_length=160)
    assert truncated[0] == cat
    assert all(len(row) <= 160 for row in truncated)


# A repeated text, and the number of code points of each of its characters.
WIDE_CHARACTERS = {
    "emoji": ("🍕🎻🐱", 1),
    "flags": ("🇩🇪🇯🇵", 2),
    "family": ("👩\u200d👩\u200d👧", 5),
    "skin tone": ("👍\U0001f3fd", 2),
    "accents": ("e\u0301\u0323", 3),
    "Japanese": ("漢字の長い文章です。", 1),
    "jamo": ("\u1100\u1161\u11a8", 3),
}


@pytest.mark.parametrize(("text", "unit"), WIDE_CHARACTERS.values(), ids=WIDE_CHARACTERS)
def test_a_text_is_cut_between_characters(processor: ProcessorMixin, text: str, unit: int) -> None:
    text *= 60
    (short,) = token_ids(processor, ["a"])
    lengths = set()
    for limit in range(len(short) + 8, len(short) + 40):
        (batch,) = plan_micro_batches(processor, {0: normalize_item(text, 0)}, max_length=limit)
        (kept,) = batch.items[0].item["content"]
        assert text.startswith(kept) and len(kept) % unit == 0 and batch.items[0].length <= limit
        lengths.add(len(kept))
    assert len(lengths) > 1 and max(lengths) < len(text)


def test_an_item_that_cannot_fit_is_refused_with_its_index(processor: ProcessorMixin) -> None:
    fitting = {"text": "a cat", "instruction": "Find it:"}
    (row,) = token_ids(processor, [fitting])
    for too_long in (RED, {"image": RED, "text": "a cat"}, {"text": "a cat", "instruction": "Find " * 100}):
        with pytest.raises(ValueError, match=r"item 1 needs \d+ tokens for its prompt and images alone.* raise max"):
            micro_batches(processor, [fitting, too_long], max_length=len(row))


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (None, "got NoneType"),
        (3, "got int"),
        ({}, "expected 'text' or 'image'"),
        ({"image": []}, "expected 'text' or 'image'"),
        ({"instruction": "Find it:"}, "expected 'text' or 'image'"),
        ({"text": 3}, "'text' must be a str, got int"),
        ({"text": "a cat", "instruction": ["Find"]}, "'instruction' must be a str, got list"),
        ({"image": "cat.png"}, "'image' must be a PIL image or a list of them, got str"),
        ({"image": [RED, None]}, "'image' must be a PIL image or a list of them, got NoneType"),
    ],
)
def test_a_malformed_item_is_refused_with_its_index(llava: ProcessorMixin, item: object, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^item 2: .*{reason}"):
        micro_batches(llava, ["a cat", RED, item])


def test_texts_that_are_tokenized_once_give_the_tensors_of_the_processor(processor: ProcessorMixin) -> None:
    items = {
        7: normalize_item("a cat", 7),
        9: normalize_item({"text": "a dog and a bird", "instruction": "Find it:"}, 9),
    }
    (batch,) = plan_micro_batches(processor, items)
    assert sorted(batch.indices) == [7, 9] and batch.prefix == ()
    texts = [item.text for item in batch.items]
    expected = processor(text=texts, padding=True, padding_side="right", return_tensors="pt")
    for name in ("input_ids", "attention_mask"):
        assert batch.tensors()[name].equal(expected[name])


def test_images_that_are_rgb_already_are_preprocessed_without_a_copy(
    processor: ProcessorMixin, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = {index: normalize_item({"image": image, "text": "a"}, index) for index, image in enumerate((RED, BLUE))}
    (batch,) = plan_micro_batches(processor, items)
    images = [item.item["images"] for item in batch.items]
    texts = [item.text for item in batch.items]
    expected = processor(text=texts, images=images, padding=True, return_tensors="pt")
    monkeypatch.setattr(Image.Image, "convert", None)
    tensors = batch.tensors()
    assert tensors["pixel_values"].equal(expected["pixel_values"])


def test_photographs_are_handed_over_as_planes_and_give_the_same_tensors(
    processor: ProcessorMixin, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = [Image.effect_noise(size, 90).convert("RGB") for size in ((90, 70), (64, 64), (70, 131))]
    for photograph in photographs:
        photograph.putpixel((1, 2), (1, 2, 3))
    several = {"image": photographs[:2], "text": "<image> or <image>"}
    items = {index: normalize_item(item, index) for index, item in enumerate([*photographs, several, RED])}
    expected = [batch.tensors() for batch in plan_micro_batches(processor, items)]
    monkeypatch.setattr(image_input_unime, "MIN_PLANES_PIXELS", 64 * 64)
    handed_over = images_before_processor(processor, [*photographs, RED])
    planes = [isinstance(image, torch.Tensor) for image in handed_over]
    assert planes == [type(processor).__name__ != "Phi3VProcessor"] * 3 + [False]  # which resizes by Pillow
    for batch, tensors in zip(plan_micro_batches(processor, items), expected, strict=True):
        assert {name: value.tolist() for name, value in batch.tensors().items()} == {
            name: value.tolist() for name, value in tensors.items()
        }


@pytest.mark.parametrize("size", [(5, 3), (300, 64), (7, 129)])
def test_the_planes_of_an_image_are_its_red_green_and_blue(size: tuple[int, int]) -> None:
    image = Image.frombytes("RGB", size, np.random.default_rng(0).bytes(3 * size[0] * size[1]))
    planes = to_planes(image)
    assert planes.dtype == torch.uint8 and planes.is_contiguous()
    np.testing.assert_array_equal(planes, np.asarray(image).transpose(2, 0, 1))


def test_the_shared_prefix_of_the_texts_of_an_instruction_is_left_out(processor: ProcessorMixin) -> None:
    texts = [f"{index} cats " + "and dogs " * (index % 3) for index in range(30)]
    items = [{"text": text, "instruction": INSTRUCTION} for text in texts] + texts[:2] + [RED]
    normalized = {index: normalize_item(item, index) for index, item in enumerate(items)}
    batches = plan_micro_batches(processor, normalized, micro_batch_tokens=300, share_prefixes=True)
    remaining = dict(enumerate(token_ids(processor, items)))
    shared = {batch.prefix for batch in batches if batch.prefix}
    assert len(shared) == 1 and len(shared.pop()) >= len(processor.tokenizer(INSTRUCTION)["input_ids"]) - 2
    for batch in batches:
        tensors = batch.tensors()
        assert len(batch.items) == 1 or tensors["input_ids"].numel() <= 300
        assert bool(batch.prefix) == (batch.indices[0] < 30)
        for item, tokens, mask in zip(batch.items, tensors["input_ids"], tensors["attention_mask"], strict=True):
            assert [*batch.prefix, *tokens[mask.bool()].tolist()] == remaining.pop(item.index)
            assert mask.any() and item.length == len(batch.prefix) + mask.sum()
    assert not remaining


def test_packed_texts_form_one_row_without_padding(llava: ProcessorMixin) -> None:
    items = {index: normalize_item("a cat " * index, index) for index in range(1, 30)} | {0: normalize_item(RED, 0)}
    expected = dict(enumerate(token_ids(llava, [RED, *("a cat " * index for index in range(1, 30))])))
    batches = plan_micro_batches(llava, items, micro_batch_tokens=400, packed=True)
    assert max(batch.tokens for batch in batches) > 350
    for batch in batches[:-1]:
        tensors = batch.tensors()
        assert tensors["input_ids"].shape == tensors["position_ids"].shape == (1, batch.tokens)
        assert batch.tokens <= 400
        starts = [0, *(tensors["item_ends"] + 1).tolist()]
        for item, start, stop in zip(batch.items, starts, starts[1:], strict=False):
            assert tensors["input_ids"][0, start:stop].tolist() == expected[item.index]
            assert tensors["position_ids"][0, start:stop].tolist() == list(range(stop - start))
    assert batches[-1].indices == [0] and "pixel_values" in batches[-1].tensors()


def test_a_text_keeps_at_least_one_token_after_its_prefix(llava: ProcessorMixin) -> None:
    items = {index: normalize_item({"text": "a cat", "instruction": INSTRUCTION}, index) for index in range(30)}
    (batch,) = plan_micro_batches(llava, items, share_prefixes=True)  # all tokens are equal
    assert batch.prefix and batch.tensors()["input_ids"].shape == (30, 1)


def test_a_prefix_that_saves_few_tokens_is_not_shared(llava: ProcessorMixin) -> None:
    items = {index: normalize_item({"text": f"{index} cats", "instruction": INSTRUCTION}, index) for index in range(2)}
    (batch,) = plan_micro_batches(llava, items, share_prefixes=True)
    assert batch.prefix == ()


def test_the_halves_of_a_micro_batch_contain_its_items_in_order(llava: ProcessorMixin) -> None:
    (batch,) = plan_micro_batches(llava, {index: normalize_item("a cat " * index, index) for index in range(1, 6)})
    first, second = batch.halves()
    assert first.indices == [1, 2] and second.indices == [3, 4, 5]
    assert first.tensors()["input_ids"].shape[1] < second.tensors()["input_ids"].shape[1]
