"""LlamaIndex, datasets and sentence-transformers give the embeddings of `encode`."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_from_disk
from PIL import Image
from safetensors import safe_open
from sentence_transformers import SentenceTransformer, quantize_embeddings
from sentence_transformers.util import mine_hard_negatives
from transformers import ProcessorMixin

from unime import UniMEModel, load_model, save_checkpoint
from unime.checkpoint import PROMPTS
from unime.eval.encoders.loading import load_encoder
from unime.export.plain import export_plain
from unime.openmoji.catalogue import catalogue
from unime.openmoji.views import View
from unime.processing_unime import to_item_dict, to_messages, to_rgb


ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "checkpoints" / "unime-tiny"
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
def test_llama_index_gives_the_same_embeddings_of_queries_texts_and_images_with_instructions(
    loaded: tuple[UniMEModel, ProcessorMixin], sprites: list[Image.Image], tmp_path: Path
) -> None:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model, processor = loaded
    llama_index = HuggingFaceEmbedding(
        str(TINY),
        query_instruction=PROMPTS["text_to_image"],
        text_instruction="Represent the given text:",
        device="cpu",
        cache_folder=str(tmp_path),
        model_kwargs={"dtype": "float32"},
    )
    expected = model.encode(with_instruction(TEXTS, PROMPTS["text_to_image"]), processor)
    np.testing.assert_allclose([llama_index.get_query_embedding(text) for text in TEXTS], expected, atol=1e-5)
    expected = model.encode(with_instruction(TEXTS, "Represent the given text:"), processor)
    np.testing.assert_allclose(llama_index.get_text_embedding_batch(TEXTS), expected, atol=1e-5)

    sprites[0].save(tmp_path / "0.png")
    embedding = llama_index.get_image_embedding(str(tmp_path / "0.png"))
    np.testing.assert_allclose(embedding, model.encode(sprites[0], processor), atol=1e-5)


@pytest.mark.slow
def test_llama_index_without_instructions_uses_the_one_word_prompt(
    loaded: tuple[UniMEModel, ProcessorMixin], tmp_path: Path
) -> None:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model, processor = loaded
    llama_index = HuggingFaceEmbedding(
        str(TINY), device="cpu", cache_folder=str(tmp_path), model_kwargs={"dtype": "float32"}
    )
    expected = model.encode(TEXTS, processor)
    np.testing.assert_allclose([llama_index.get_query_embedding(text) for text in TEXTS], expected, atol=1e-5)
    np.testing.assert_allclose(llama_index.get_text_embedding_batch(TEXTS), expected, atol=1e-5)


def test_map_embeds_a_dataset_in_batches_and_only_once(
    loaded: tuple[UniMEModel, ProcessorMixin], sprites: list[Image.Image], tmp_path: Path
) -> None:
    model, processor = loaded
    images, instruction = sprites[:10], PROMPTS["image"]
    Dataset.from_dict({"image": images}).save_to_disk(tmp_path)
    dataset = load_from_disk(tmp_path)

    batch_sizes = []

    def embed(batch: dict[str, list]) -> dict[str, np.ndarray]:
        batch_sizes.append(len(batch["image"]))
        items = [{"image": image, "instruction": instruction} for image in batch["image"]]
        return {"embedding": model.encode(items, processor)}

    # A fixed fingerprint, because the default one of a function also covers `batch_sizes`.
    settings = {"batched": True, "batch_size": 4, "new_fingerprint": "unime-tiny"}
    embedded = dataset.map(embed, **settings)
    assert batch_sizes == [4, 4, 2]
    expected = model.encode([{"image": image, "instruction": instruction} for image in images], processor)
    np.testing.assert_allclose(embedded.with_format("numpy")["embedding"][:], expected, atol=1e-5)
    cached = dataset.map(embed, **settings)
    assert batch_sizes == [4, 4, 2]
    assert cached["embedding"][:] == embedded["embedding"][:]


@pytest.mark.parametrize("instruction", [None, PROMPTS["question"]])
def test_sentence_transformers_and_encode_embed_interleaved_items_alike(
    loaded: tuple[UniMEModel, ProcessorMixin], sprites: list[Image.Image], instruction: str | None
) -> None:
    model, processor = loaded
    cat, mat = sprites[:2]
    contents = [["The cat", cat, "sits on", mat], [cat, "sits on", mat], ["Which one?", cat, mat], [mat, cat, "?"]]
    items = [{"content": content, "instruction": instruction} for content in contents]
    sentence_transformer = SentenceTransformer(str(TINY), device="cpu", model_kwargs={"dtype": "float32"})
    messages = [to_messages(to_item_dict(content)) for content in contents]
    expected = model.encode(items, processor)
    embeddings = sentence_transformer.encode(messages, prompt=instruction)
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    assert (expected @ expected.T - np.eye(len(items))).max() < 0.9999

    # The order of a dict's keys means nothing.
    both = {"text": "Which one?", "image": cat}
    expected = model.encode(both | {"instruction": instruction}, processor)
    for item in (both, dict(reversed(both.items()))):
        np.testing.assert_allclose(sentence_transformer.encode([item], prompt=instruction)[0], expected, atol=1e-6)


def test_the_evaluation_of_a_sentence_transformer_keeps_the_order_of_interleaved_items(
    loaded: tuple[UniMEModel, ProcessorMixin], sprites: list[Image.Image], tmp_path: Path
) -> None:
    model, processor = loaded
    export_plain(model, processor, tmp_path / "plain")
    (tmp_path / "model").mkdir()  # without a config.json, so that it is not taken for a native backbone
    shutil.move(tmp_path / "plain", tmp_path / "model" / "0_Transformer")
    modules = json.loads((tmp_path / "model" / "0_Transformer" / "modules.json").read_text())
    for module in modules:
        module["path"] = f"0_Transformer/{module['path']}".rstrip("/")
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    encode = load_encoder(str(tmp_path / "model")).encode
    items = ["a cat", ["The cat", sprites[0], "sits on", sprites[1]], sprites[0], {"text": "a cat", "image": sprites}]
    np.testing.assert_allclose(encode(items), model.encode(items, processor), atol=1e-5)


def test_quantized_and_truncated_embeddings_retrieve_the_same_images(
    loaded: tuple[UniMEModel, ProcessorMixin], sprites: list[Image.Image]
) -> None:
    model, processor = loaded
    sentence_transformer = SentenceTransformer(str(TINY), device="cpu", model_kwargs={"dtype": "float32"})
    items = [{"image": image, "instruction": PROMPTS["image"]} for image in sprites]
    candidates = sentence_transformer.encode(sprites, prompt_name="image")
    np.testing.assert_allclose(candidates, model.encode(items, processor), atol=1e-5)
    truncated = sentence_transformer.encode(sprites, prompt_name="image", truncate_dim=64, normalize_embeddings=True)
    np.testing.assert_allclose(truncated, model.encode(items, processor, truncate_dim=64), atol=1e-5)

    # The same emoji, smaller and on another background color, should retrieve themselves.
    queries = sentence_transformer.encode(
        [View(entry.index, 84, 6, 6, 3).render() for entry in EMOJI], prompt_name="image"
    )

    def count_correct(scores: np.ndarray) -> int:
        return int((scores.argmax(axis=1) == np.arange(len(scores))).sum())

    correct = count_correct(queries @ candidates.T)
    ranges = np.stack([candidates.min(axis=0), candidates.max(axis=0)])
    quantized = quantize_embeddings(candidates, "int8", ranges=ranges)
    assert quantized.dtype == np.int8 and quantized.nbytes == candidates.nbytes / 4
    assert count_correct(queries @ (ranges[0] + (quantized + 128.5) * (ranges[1] - ranges[0]) / 255).T) >= correct - 1

    query_bits, candidate_bits = (quantize_embeddings(side, "ubinary") for side in (queries, candidates))
    assert candidate_bits.nbytes == candidates.nbytes / 32
    distances = np.bitwise_count(query_bits[:, None] ^ candidate_bits).sum(axis=-1, dtype=int)
    assert correct > 0.9 * len(EMOJI) and count_correct(-distances) > 0.8 * len(EMOJI)
    assert count_correct(queries[:, :64] @ truncated.T) > 0.8 * len(EMOJI)


@pytest.fixture(scope="module")
def native() -> SentenceTransformer:
    return SentenceTransformer(str(TINY), device="cpu", model_kwargs={"dtype": "float32"})


def test_a_long_text_with_an_image_keeps_the_end_of_the_prompt_without_truncation(
    loaded: tuple[UniMEModel, ProcessorMixin], sprites: list[Image.Image], native: SentenceTransformer
) -> None:
    model, processor = loaded
    item = {"image": sprites[0], "text": "a pizza on a red tile to the left of a cat " * 95}
    expected = model.encode(item, processor)
    assert native.encode(item) @ expected < 0.5
    assert native.encode(item, processing_kwargs={"text": {"truncation": False}}) @ expected > 0.95


def test_images_of_16_bits_must_be_converted_for_sentence_transformers(
    loaded: tuple[UniMEModel, ProcessorMixin], sprites: list[Image.Image], native: SentenceTransformer
) -> None:
    model, processor = loaded
    image = Image.fromarray(np.asarray(sprites[0].convert("L")).astype(np.uint16) * 257)
    expected = model.encode(image, processor)
    assert native.encode([image])[0] @ expected < 0.9
    np.testing.assert_allclose(native.encode([to_rgb(image)])[0], expected, atol=1e-5)


@pytest.fixture
def transformer_tower(tiny_model: Callable[[str], Path], tmp_path: Path) -> SentenceTransformer:
    """Return a model whose vision tower is a transformer, as those of nearly all backbones but unime-tiny's."""
    folder = save_checkpoint(*load_model(str(tiny_model("llava")), dtype="float32"), tmp_path / "llava")
    return SentenceTransformer(str(folder), device="cpu")


def test_a_sentence_transformer_that_has_read_images_is_copied_and_not_pickled(
    sprites: list[Image.Image], transformer_tower: SentenceTransformer
) -> None:
    expected = transformer_tower.encode(sprites[:2])
    with pytest.raises(AttributeError, match="Can't pickle local object"):
        pickle.dumps(transformer_tower)
    np.testing.assert_allclose(deepcopy(transformer_tower).encode(sprites[:2]), expected, atol=1e-6)


def test_a_resnet_in_half_precision_reads_the_images_of_sentence_transformers(
    tiny_model: Callable[[str], Path], sprites: list[Image.Image], tmp_path: Path
) -> None:
    save_checkpoint(*load_model(str(tiny_model("fast_vlm")), dtype="float16"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16, torch.int64}
    model, processor = load_model(str(tmp_path), dtype="float32")
    native = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(native.encode(sprites[:2]), model.encode(sprites[:2], processor), atol=1e-5)


def test_hard_negatives_are_mined_among_image_files(
    sprites: list[Image.Image], native: SentenceTransformer, tmp_path: Path
) -> None:
    paths = [str(tmp_path / f"{index}.png") for index in range(4)]
    for image, path in zip(sprites, paths, strict=False):
        image.save(path)
    texts = ["a", "b", "c", "d"]
    images = Dataset.from_dict({"anchor": texts, "positive": sprites[:4]})
    with pytest.raises(TypeError, match="unhashable type"):
        mine_hard_negatives(images, native, num_negatives=1, verbose=False)
    rows = mine_hard_negatives(
        Dataset.from_dict({"anchor": texts, "positive": paths}), native, num_negatives=1, verbose=False
    )
    assert set(rows["negative"]) <= set(paths) and all(row["negative"] != row["positive"] for row in rows)


@pytest.mark.slow
def test_processes_that_load_the_model_themselves_embed_images(
    transformer_tower: SentenceTransformer, sprites: list[Image.Image], tmp_path: Path
) -> None:
    pool = transformer_tower.start_multi_process_pool(["cpu"])
    with pytest.raises(TypeError, match="'NoneType' object is not subscriptable"):
        transformer_tower.encode(sprites[:2], pool=pool)
    transformer_tower.stop_multi_process_pool(pool)

    blocks = (ROOT / "docs" / "faq.md").read_text().split("```")
    (code,) = [block.removeprefix("python") for block in blocks if "ProcessPoolExecutor" in block]
    (tmp_path / "script.py").write_text(code)
    run = subprocess.run([sys.executable, tmp_path / "script.py"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "(2, 192)" in run.stdout, run.stderr
