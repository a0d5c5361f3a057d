"""Batches of different clients' items: the embeddings of `encode`, token counts, and errors only for bad items."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import ProcessorMixin

from unime import UniMEModel, processor_from_backbone
from unime.serve.embedder import Embedded, Embedder, RefusedItem, Task


def in_order(results: Iterable[dict[int, Embedded | Exception]]) -> list[Embedded | Exception]:
    """Return the results of a batch in the order of its items; each item has one."""
    pairs = [pair for some in results for pair in some.items()]
    assert sorted(index for index, _ in pairs) == [*range(len(pairs))]
    return [dict(pairs)[index] for index in range(len(pairs))]


def test_embeddings_equal_those_of_encode_and_tokens_are_counted(
    loaded: tuple[UniMEModel, ProcessorMixin], expected: Callable[..., np.ndarray], image: Image.Image
):
    _, processor = loaded
    items = [
        {"text": "a cat"},
        {"image": image},
        {"text": "a dog and a very much longer text than the others", "instruction": "Find it."},
        {"text": "the same with a hat", "image": [image, image.rotate(90)]},
        {"text": ""},
    ]
    results = in_order(Embedder(*loaded, micro_batch_tokens=64)([Task(item) for item in items]))
    np.testing.assert_allclose([result.embedding for result in results], expected(items), atol=1e-5)
    # The template around the text, counted by the tokenizer alone; an image's placeholder stands for 9 patches.
    rendered = processor.apply_chat_template([{"role": "user", "content": "a cat"}], tokenize=False)
    assert results[0].tokens == len(processor.tokenizer(rendered)["input_ids"])
    assert results[1].tokens == len(
        processor(
            text=processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False),
            images=[image],
        )["input_ids"][0]
    )
    assert results[1].tokens > 9
    together = in_order(
        Embedder(*loaded)([Task(items[0]), Task(items[2])])
    )  # the first is padded to the length of the second
    assert [result.tokens for result in together] == [results[0].tokens, results[2].tokens]
    assert results[2].tokens > results[0].tokens


def test_only_the_item_at_fault_is_refused(
    loaded: tuple[UniMEModel, ProcessorMixin], expected: Callable[..., np.ndarray]
):
    _, processor = loaded
    texts = [f"text number {number}" for number in range(11)]
    texts[2] = "far too long " * 1000
    texts[9] = "cat " * 1015  # fits without the prompt
    assert 1010 < len(processor.tokenizer(texts[9])["input_ids"]) <= 1024
    results = in_order(Embedder(*loaded)([Task({"text": text}) for text in texts]))
    for number, (text, result) in enumerate(zip(texts, results, strict=True)):
        if number in (2, 9):
            assert isinstance(result, RefusedItem)
            assert "tokens, the model reads at most 1024 with its prompt" in str(result)
        else:
            np.testing.assert_allclose(result.embedding, expected(text), atol=1e-5)


def test_texts_are_truncated_as_in_encode_on_request(
    loaded: tuple[UniMEModel, ProcessorMixin], expected: Callable[..., np.ndarray]
):
    text = "words upon words " * 1000
    embedder = Embedder(*loaded)
    assert embedder.max_length == 1024
    truncated, refused = in_order(embedder([Task({"text": text}, truncate=True), Task({"text": text})]))
    assert isinstance(refused, RefusedItem)
    assert truncated.tokens <= 1024
    np.testing.assert_allclose(truncated.embedding, expected(text), atol=1e-5)


def test_an_item_that_the_processor_refuses_is_refused(tiny_model: Callable[[str], Path], image: Image.Image):
    folder = str(tiny_model("qwen2-vl"))
    embedder = Embedder(UniMEModel.from_backbone(folder, dtype="float32"), processor_from_backbone(folder))
    sliver = Image.new("RGB", (3000, 2))  # Qwen2-VL refuses images 200 times as wide as high
    good, bad = in_order(embedder([Task({"image": image}), Task({"image": sliver})]))
    assert np.linalg.norm(good.embedding) == pytest.approx(1, abs=1e-5)
    assert isinstance(bad, RefusedItem) and "aspect ratio" in str(bad) and "item 0" not in str(bad)


def test_short_texts_do_not_wait_for_long_ones(loaded: tuple[UniMEModel, ProcessorMixin]):
    tasks = [Task({"text": "word " * words}) for words in (400, 1, 400, 2)]
    first, *others = Embedder(*loaded, micro_batch_tokens=256)(tasks)
    assert sorted(first) == [1, 3] and sorted(index for results in others for index in results) == [0, 2]


def test_results_before_a_failure_are_kept(fresh_embedder: Embedder):
    computed = []

    def fail(_: UniMEModel, arguments: tuple, kwargs: dict) -> None:
        computed.append(len(kwargs["input_ids"]))
        if kwargs["input_ids"].shape[1] > 500:
            raise RuntimeError("too long")

    fresh_embedder.model.backbone.register_forward_pre_hook(fail, with_kwargs=True)
    tasks = [Task({"text": "word " * words}) for words in (1, 300, 2)]
    one, failed, two = in_order(fresh_embedder(tasks))
    assert str(failed) == "too long" and isinstance(one, Embedded) and isinstance(two, Embedded)
    assert computed == [2, 1]  # nothing is computed twice
