"""Micro-batches hold every item once, keep their budget, and shorten the text of the user only."""

import random

import pytest
from PIL import Image
from token_ids import ids
from transformers import ProcessorMixin

from unime import micro_batches
from unime.batching_unime import plan_micro_batches
from unime.processing_unime import normalize_item


RED = Image.new("RGB", (40, 56), "red")
BLUE = Image.new("RGB", (30, 30), "blue")
INSTRUCTION = "Find an everyday image that shows what the following words say, and nothing besides it:"


@pytest.mark.parametrize("size", [(24, 24), (40, 56), (24, 96), (200, 30)])
@pytest.mark.parametrize("others", [[], [RED, BLUE]])
def test_images_have_the_tokens_that_their_processor_says(
    processor: ProcessorMixin, size: tuple[int, int], others: list[Image.Image]
) -> None:
    images = [Image.new("RGB", size, "green"), *others]
    native = processor(text=[processor.image_token * len(images)], images=[images], add_special_tokens=False)
    wanted = native["input_ids"][0].count(processor.image_token_id)
    (row,) = ids(processor, [{"image": images, "text": "<image> a cat"}])
    assert row.count(processor.image_token_id) == wanted > 0
    longest = len(row)  # the length that decides about truncation and budget is the one that comes out
    assert ids(processor, [{"image": images, "text": "<image> a cat"}], max_length=longest) == [row]


def test_micro_batches_cover_all_items_sort_them_and_keep_the_budget(processor: ProcessorMixin) -> None:
    sizes = [(24, 24), (80, 24), (48, 48)]
    items = [f"a cat {'and a dog ' * (i % 5)}" for i in range(20)]
    items += [{"image": Image.new("RGB", sizes[i % 3]), "text": f"number {i}"} for i in range(12)]
    random.Random(1).shuffle(items)
    budget = 400
    batches = micro_batches(processor, items, micro_batch_tokens=budget)
    assert sorted(index for indices, _ in batches for index in indices) == list(range(len(items)))
    lengths = []
    for indices, tensors in batches:
        kinds = {isinstance(items[index], dict) for index in indices}
        assert len(kinds) == 1 and ("pixel_values" in tensors) == kinds.pop()
        assert len(indices) == 1 or tensors["input_ids"].numel() <= budget
        lengths += [(isinstance(items[indices[0]], dict), int(length)) for length in tensors["attention_mask"].sum(1)]
    assert lengths == sorted(lengths)
    assert any(len(indices) > 1 for indices, _ in batches)


def test_a_micro_batch_ends_where_lengths_differ_much(llava: ProcessorMixin) -> None:
    items = {number: normalize_item("word " * (number + 1) ** 2, number) for number in range(12)}
    batches = plan_micro_batches(llava, items, micro_batch_tokens=400)
    assert sorted(number for batch in batches for number in batch.indices) == list(items)
    assert 1 < len(batches) < 12
    for batch in batches:
        lengths = [row.length for row in batch.items]
        assert batch.padding == len(lengths) * max(lengths) - sum(lengths) <= 20  # 5 % of the budget
    assert all(batch.padding == 0 for batch in plan_micro_batches(llava, items, micro_batch_tokens=400, packed=True))


def test_no_items_make_no_micro_batches(llava: ProcessorMixin) -> None:
    assert micro_batches(llava, []) == []


@pytest.mark.parametrize("image", [None, RED])
@pytest.mark.parametrize("instruction", [None, "Find it:"])
def test_truncation_shortens_the_text_of_the_user_only(
    processor: ProcessorMixin, image: Image.Image | None, instruction: str | None
) -> None:
    def item(text: str) -> dict:
        return {"text": text, "instruction": instruction} | ({"image": image} if image else {})

    text = "one, two, three, " * 40
    short, long = ids(processor, [item(";"), item(text)])
    limit = len(short) + 40
    (cut,) = ids(processor, [item(text)], max_length=limit)
    assert limit - 4 <= len(cut) <= limit < len(long)
    head, tail = processor.tokenizer.decode(short).split(";")  # the head holds every image token
    whole = processor.tokenizer.decode(cut)
    assert whole.startswith(head) and whole.endswith(tail)
    kept = whole[len(head) : -len(tail)]
    assert kept and text.startswith(kept)


def test_truncation_keeps_the_budget_and_the_neighbours(processor: ProcessorMixin) -> None:
    items = ["a cat", "a dog and " * 100, {"image": RED, "text": "日本 " * 100}]
    (cat,) = ids(processor, items[:1])
    cut = ids(processor, items, max_length=160)
    assert cut[0] == cat
    assert all(len(row) <= 160 for row in cut)


def test_what_cannot_fit_is_refused_by_number(processor: ProcessorMixin) -> None:
    fits = {"text": "a cat", "instruction": "Find it:"}
    (row,) = ids(processor, [fits])
    for wrong in (RED, {"image": RED, "text": "a cat"}, {"text": "a cat", "instruction": "Find " * 100}):
        with pytest.raises(ValueError, match=r"item 1 needs \d+ tokens for its prompt and images alone.* raise max"):
            micro_batches(processor, [fits, wrong], max_length=len(row))


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
def test_a_bad_item_is_named(llava: ProcessorMixin, item: object, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^item 2: .*{reason}"):
        micro_batches(llava, ["a cat", RED, item])


def test_texts_are_read_once_and_give_the_tensors_of_the_processor(processor: ProcessorMixin) -> None:
    items = {
        7: normalize_item("a cat", 7),
        9: normalize_item({"text": "a dog and a bird", "instruction": "Find it:"}, 9),
    }
    (batch,) = plan_micro_batches(processor, items)
    assert batch.indices == [7, 9] and batch.prefix == ()
    wanted = processor(text=[row.text for row in batch.items], padding=True, padding_side="right", return_tensors="pt")
    for name in ("input_ids", "attention_mask"):
        assert batch.tensors()[name].equal(wanted[name])


def test_what_texts_of_an_instruction_begin_with_is_taken_out(processor: ProcessorMixin) -> None:
    texts = [f"{number} cats " + "and dogs " * (number % 3) for number in range(30)]
    items = [{"text": text, "instruction": INSTRUCTION} for text in texts] + texts[:2] + [RED]
    spelt = {number: normalize_item(item, number) for number, item in enumerate(items)}
    batches = plan_micro_batches(processor, spelt, micro_batch_tokens=300, share_prefixes=True)
    whole = dict(enumerate(ids(processor, items)))
    shared = {batch.prefix for batch in batches if batch.prefix}
    assert len(shared) == 1 and len(shared.pop()) >= len(processor.tokenizer(INSTRUCTION)["input_ids"]) - 2
    for batch in batches:
        tensors = batch.tensors()
        assert len(batch.items) == 1 or tensors["input_ids"].numel() <= 300
        assert bool(batch.prefix) == (batch.indices[0] < 30)
        for row, tokens, mask in zip(batch.items, tensors["input_ids"], tensors["attention_mask"], strict=True):
            assert [*batch.prefix, *tokens[mask.bool()].tolist()] == whole.pop(row.index)
            assert mask.any() and row.length == len(batch.prefix) + mask.sum()
    assert not whole


def test_packed_texts_are_one_row_without_padding(llava: ProcessorMixin) -> None:
    items = {number: normalize_item("a cat " * number, number) for number in range(1, 30)} | {
        0: normalize_item(RED, 0)
    }
    whole = dict(enumerate(ids(llava, [RED, *("a cat " * number for number in range(1, 30))])))
    batches = plan_micro_batches(llava, items, micro_batch_tokens=400, packed=True)
    assert max(batch.tokens for batch in batches) > 350
    for batch in batches[:-1]:
        tensors = batch.tensors()
        assert tensors["input_ids"].shape == tensors["position_ids"].shape == (1, batch.tokens)
        assert batch.tokens <= 400
        starts = [0, *(tensors["text_ends"] + 1).tolist()]
        for row, start, stop in zip(batch.items, starts, starts[1:], strict=False):
            assert tensors["input_ids"][0, start:stop].tolist() == whole[row.index]
            assert tensors["position_ids"][0, start:stop].tolist() == list(range(stop - start))
    assert batches[-1].indices == [0] and "pixel_values" in batches[-1].tensors()


def test_a_text_keeps_a_token_after_what_it_shares(llava: ProcessorMixin) -> None:
    items = {number: normalize_item({"text": "a cat", "instruction": INSTRUCTION}, number) for number in range(30)}
    (batch,) = plan_micro_batches(llava, items, share_prefixes=True)  # equal in all tokens
    assert batch.prefix and batch.tensors()["input_ids"].shape == (30, 1)


def test_two_texts_are_not_worth_a_pass_of_their_own(llava: ProcessorMixin) -> None:
    items = {
        number: normalize_item({"text": f"{number} cats", "instruction": INSTRUCTION}, number) for number in range(2)
    }
    (batch,) = plan_micro_batches(llava, items, share_prefixes=True)
    assert batch.prefix == ()


def test_halves_are_the_same_rows(llava: ProcessorMixin) -> None:
    (batch,) = plan_micro_batches(llava, {number: normalize_item("a cat " * number, number) for number in range(1, 6)})
    first, second = batch.halves()
    assert first.indices == [1, 2] and second.indices == [3, 4, 5]
    assert first.tensors()["input_ids"].shape[1] < second.tensors()["input_ids"].shape[1]
