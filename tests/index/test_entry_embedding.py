"""Embedding entries in windows equals `encode`, embeds equal content once, and skips bad entries."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from unime import load_model
from unime.checkpoint import PROMPTS
from unime.corpus.entry import Entry
from unime.index import entry_embedding
from unime.index.entry_embedding import Embedded, embed_entries


TINY = str(Path(__file__).resolve().parents[2] / "checkpoints" / "unime-tiny")


@pytest.fixture
def loaded() -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model and a processor that a test may modify."""
    return load_model(TINY, dtype="float32")


def noise_png(seed: int, size: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def mixed_entries(count: int) -> list[Entry]:
    """Return distinct entries: texts, images and both in turn."""
    return [
        Entry(str(i), None if i % 3 == 1 else f"text {i}" + " more" * (i % 5), None if i % 3 == 0 else noise_png(i))
        for i in range(count)
    ]


def concatenate(windows: Iterator[Embedded]) -> tuple[list[str], np.ndarray, dict[str, str]]:
    windows = list(windows)
    ids = [entry.id for window in windows for entry in window.entries]
    reasons = {rejected.id: rejected.reason for window in windows for rejected in window.rejected}
    return ids, np.concatenate([window.vectors for window in windows]), reasons


def record_batch_sizes(model: PreTrainedModel) -> list[int]:
    """Record the batch size of each forward pass from now on."""
    sizes = []
    model.register_forward_hook(lambda _, __, kwargs, ___: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    return sizes


def test_vectors_equal_encode_for_any_window_size(loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = loaded
    entries = mixed_entries(14)
    items = [entry.item(PROMPTS["image"] if entry.text is None else None) for entry in entries]
    expected = model.encode(items, processor)
    for size in (1024, 4, 1):
        windows = list(embed_entries(model, processor, entries, window=size))
        assert [len(window.entries) for window in windows] == {1024: [14], 4: [4, 4, 4, 2], 1: [1] * 14}[size]
        ids, vectors, rejected = concatenate(iter(windows))
        assert ids == [entry.id for entry in entries] and not rejected and vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    monkeypatch.setattr(entry_embedding, "MAX_WINDOW_PIXELS", 3 * 40 * 40)  # a window ends at its third image
    windows = list(embed_entries(model, processor, entries))
    assert [len(window.entries) for window in windows] == [5, 4, 5]  # 0 1p 2p 3 4p | 5p 6 7p 8p | 9 10p 11p 12 13p
    np.testing.assert_allclose(concatenate(iter(windows))[1], expected, atol=1e-5)


def test_an_instruction_applies_to_every_entry_and_an_empty_one_to_none(loaded) -> None:
    model, processor = loaded
    entries = mixed_entries(6)
    _, vectors, _ = concatenate(embed_entries(model, processor, entries, "Find the same:"))
    expected = model.encode([entry.item("Find the same:") for entry in entries], processor)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    _, vectors, _ = concatenate(embed_entries(model, processor, entries, ""))
    np.testing.assert_allclose(vectors, model.encode([entry.item() for entry in entries], processor), atol=1e-5)
    assert np.abs(vectors - expected).max() > 0.01


def test_entries_of_equal_content_are_embedded_once(loaded) -> None:
    model, processor = loaded
    different = mixed_entries(6)
    entries = [Entry(f"{i}", entry.text, entry.image) for i, entry in enumerate(different * 5)]
    batch_sizes = record_batch_sizes(model)
    ids, vectors, _ = concatenate(embed_entries(model, processor, entries))
    assert sum(batch_sizes) == 6 and ids == [str(i) for i in range(30)]
    for start in range(6, 30, 6):
        assert np.array_equal(vectors[start : start + 6], vectors[:6])
    np.testing.assert_allclose(vectors[:6], concatenate(embed_entries(model, processor, different))[1], atol=1e-5)


def test_bad_entries_are_reported_and_the_others_are_embedded(loaded) -> None:
    model, processor = loaded
    good = mixed_entries(5)
    bad = [Entry("nothing"), Entry("broken", "a text", b"no image"), Entry("gone", image="/nowhere/gone.png")]
    entries = [bad[0], *good[:2], bad[1], *good[2:], bad[2]]
    for size in (3, 100):
        ids, vectors, rejected = concatenate(embed_entries(model, processor, entries, window=size))
        assert ids == [entry.id for entry in good] and set(rejected) == {"nothing", "broken", "gone"}
        assert all(reason.startswith(f"entry {name!r}: ") for name, reason in rejected.items())
        np.testing.assert_allclose(vectors, concatenate(embed_entries(model, processor, good))[1], atol=1e-5)
    (window,) = embed_entries(model, processor, bad)
    assert window.vectors.shape == (0, 192) and len(window.rejected) == 3
    assert list(embed_entries(model, processor, [])) == []


def test_items_that_the_processor_rejects_do_not_affect_the_others(loaded) -> None:
    model, processor = loaded
    entries = mixed_entries(8)
    texts = [entry for entry in entries if entry.image is None]
    processor.tokenizer.model_max_length = 22  # texts are truncated to it; an image with its prompt takes 23 tokens
    expected = model.encode([entry.text for entry in texts], processor)
    ids, vectors, rejected = concatenate(embed_entries(model, processor, entries))
    assert ids == [entry.id for entry in texts] == ["0", "3", "6"]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert sorted(rejected) == ["1", "2", "4", "5", "7"]
    assert rejected["4"].startswith("entry '4': item 0 needs ") and "but max_length is 22" in rejected["4"]


def test_an_embedding_that_is_not_finite_is_rejected(loaded) -> None:
    model, processor = loaded
    (word,) = processor.tokenizer("pizza", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[word] = torch.nan
    entries = [Entry("good", "a cat"), Entry("bad", "a pizza")]
    ids, vectors, rejected = concatenate(embed_entries(model, processor, entries))
    assert ids == ["good"] and np.isfinite(vectors).all()
    assert rejected["bad"].startswith("entry 'bad': its embedding is not finite in float32: load the model in ")


def test_truncated_embeddings_are_normalized_leading_dimensions(loaded) -> None:
    model, processor = loaded
    entries = mixed_entries(4)
    _, full, _ = concatenate(embed_entries(model, processor, entries))
    _, truncated, _ = concatenate(embed_entries(model, processor, entries, truncate_dim=16))
    expected = full[:, :16] / np.linalg.norm(full[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(truncated, expected, atol=1e-5)
    with pytest.raises(ValueError, match="truncate_dim must be between 1 and 192, got 193"):
        next(embed_entries(model, processor, entries, truncate_dim=193))


def test_a_corpus_is_read_at_most_two_windows_ahead(loaded) -> None:
    model, processor = loaded
    read = []

    def endless() -> Iterator[Entry]:
        while True:
            read.append(len(read))
            yield Entry(str(len(read)), f"text {len(read)}")

    windows = embed_entries(model, processor, endless(), window=4)
    assert [entry.id for entry in next(windows).entries] == ["1", "2", "3", "4"]
    assert len(read) <= 2 * 4 + entry_embedding.READER_THREADS + 1
    windows.close()


def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(loaded) -> None:
    model, processor = loaded  # reads 96 x 96 pixels
    files = []
    for seed in range(4):
        file = BytesIO()
        coarse = Image.open(BytesIO(noise_png(seed, 8)))
        coarse.resize((1000, 800), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
        files.append(file)
    entries = [Entry(str(index), None, file.getvalue()) for index, file in enumerate(files)]
    _, full, _ = concatenate(embed_entries(model, processor, entries))
    _, drafted, _ = concatenate(embed_entries(model, processor, entries, draft_jpegs=True))
    images = [Image.open(file) for file in files]
    for image in images:
        image.draft("RGB", (250, 200))
        assert image.size == (250, 200)  # 192 x 192 at least
    items = [{"image": image, "instruction": PROMPTS["image"]} for image in images]
    np.testing.assert_allclose(drafted, model.encode(items, processor), atol=1e-5)
    assert 0.999 < (full * drafted).sum(axis=1).min() and np.abs(full - drafted).max() > 1e-5
