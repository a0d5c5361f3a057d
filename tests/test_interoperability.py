"""Other libraries load the checkpoint and give our vectors: LlamaIndex, datasets, sentence-transformers."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_from_disk
from PIL import Image
from sentence_transformers import SentenceTransformer, quantize_embeddings
from transformers import ProcessorMixin

from unime import UniMEModel, load_model
from unime.checkpoint import PROMPTS
from unime.openmoji.catalogue import catalogue
from unime.openmoji.views import View


TINY = Path(__file__).resolve().parents[1] / "checkpoints" / "unime-tiny"
EMOJI = catalogue()[::47]
TEXTS = ["a pizza to the left of a cat", "violin", "¿Qué hay a la derecha?", "one " * 60]


@pytest.fixture(scope="module")
def loaded() -> tuple[UniMEModel, ProcessorMixin]:
    return load_model(str(TINY), dtype="float32")


@pytest.fixture(scope="module")
def sprites() -> list[Image.Image]:
    return [View(entry.index, 96, 0, 0, 0).render() for entry in EMOJI]


def with_instruction(texts: list[str], instruction: str) -> list[dict[str, str]]:
    return [{"text": text, "instruction": instruction} for text in texts]


@pytest.mark.slow
def test_llama_index_gives_our_vectors_with_its_instructions_for_queries_texts_and_images(
    loaded: tuple[UniMEModel, ProcessorMixin], sprites: list[Image.Image], tmp_path: Path
) -> None:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model, processor = loaded
    theirs = HuggingFaceEmbedding(
        str(TINY),
        query_instruction=PROMPTS["text_to_image"],
        text_instruction="Represent the given text:",
        device="cpu",
        cache_folder=str(tmp_path),
        model_kwargs={"dtype": "float32"},
    )
    ours = model.encode(with_instruction(TEXTS, PROMPTS["text_to_image"]), processor)
    np.testing.assert_allclose([theirs.get_query_embedding(text) for text in TEXTS], ours, atol=1e-5)
    ours = model.encode(with_instruction(TEXTS, "Represent the given text:"), processor)
    np.testing.assert_allclose(theirs.get_text_embedding_batch(TEXTS), ours, atol=1e-5)

    sprites[0].save(tmp_path / "0.png")
    found = theirs.get_image_embedding(str(tmp_path / "0.png"))
    np.testing.assert_allclose(found, model.encode(sprites[0], processor), atol=1e-5)


@pytest.mark.slow
def test_llama_index_without_instructions_uses_the_one_word_prompt(
    loaded: tuple[UniMEModel, ProcessorMixin], tmp_path: Path
) -> None:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model, processor = loaded
    theirs = HuggingFaceEmbedding(
        str(TINY), device="cpu", cache_folder=str(tmp_path), model_kwargs={"dtype": "float32"}
    )
    ours = model.encode(TEXTS, processor)
    np.testing.assert_allclose([theirs.get_query_embedding(text) for text in TEXTS], ours, atol=1e-5)
    np.testing.assert_allclose(theirs.get_text_embedding_batch(TEXTS), ours, atol=1e-5)


def test_a_dataset_is_embedded_by_map_in_batches_and_only_once(
    loaded: tuple[UniMEModel, ProcessorMixin], sprites: list[Image.Image], tmp_path: Path
) -> None:
    model, processor = loaded
    images, instruction = sprites[:10], PROMPTS["image"]
    Dataset.from_dict({"image": images}).save_to_disk(tmp_path)
    dataset = load_from_disk(tmp_path)

    calls = []

    def embed(batch: dict[str, list]) -> dict[str, np.ndarray]:
        calls.append(len(batch["image"]))
        items = [{"image": image, "instruction": instruction} for image in batch["image"]]
        return {"embedding": model.encode(items, processor)}

    # Named, because the function's own fingerprint would cover `calls` too.
    settings = {"batched": True, "batch_size": 4, "new_fingerprint": "unime-tiny"}
    embedded = dataset.map(embed, **settings)
    assert calls == [4, 4, 2]
    ours = model.encode([{"image": one, "instruction": instruction} for one in images], processor)
    np.testing.assert_allclose(embedded.with_format("numpy")["embedding"][:], ours, atol=1e-5)
    again = dataset.map(embed, **settings)
    assert calls == [4, 4, 2]
    assert again["embedding"][:] == embedded["embedding"][:]


def test_quantised_and_truncated_vectors_find_the_same_images(
    loaded: tuple[UniMEModel, ProcessorMixin], sprites: list[Image.Image]
) -> None:
    model, processor = loaded
    theirs = SentenceTransformer(str(TINY), device="cpu", model_kwargs={"dtype": "float32"})
    items = [{"image": image, "instruction": PROMPTS["image"]} for image in sprites]
    candidates = theirs.encode(sprites, prompt_name="image")
    np.testing.assert_allclose(candidates, model.encode(items, processor), atol=1e-5)
    short = theirs.encode(sprites, prompt_name="image", truncate_dim=64, normalize_embeddings=True)
    np.testing.assert_allclose(short, model.encode(items, processor, truncate_dim=64), atol=1e-5)

    # The same emoji, smaller and on another colour, find themselves.
    queries = theirs.encode([View(entry.index, 84, 6, 6, 3).render() for entry in EMOJI], prompt_name="image")

    def found(scores: np.ndarray) -> int:
        return int((scores.argmax(axis=1) == np.arange(len(scores))).sum())

    whole = found(queries @ candidates.T)
    ranges = np.stack([candidates.min(axis=0), candidates.max(axis=0)])
    stored = quantize_embeddings(candidates, "int8", ranges=ranges)
    assert stored.dtype == np.int8 and stored.nbytes == candidates.nbytes / 4
    assert found(queries @ (ranges[0] + (stored + 128.5) * (ranges[1] - ranges[0]) / 255).T) >= whole - 1

    bits = [quantize_embeddings(side, "ubinary") for side in (queries, candidates)]
    assert bits[1].nbytes == candidates.nbytes / 32
    distances = np.bitwise_count(bits[0][:, None] ^ bits[1]).sum(axis=-1, dtype=int)
    assert whole > 0.9 * len(EMOJI) and found(-distances) > 0.8 * len(EMOJI)
    assert found(queries[:, :64] @ short.T) > 0.8 * len(EMOJI)
