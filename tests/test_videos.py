"""A video goes through the family's video processor, and its embedding is the native model's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin

from unime import UniMEModel, load_model, micro_batches, processor_from_backbone, save_checkpoint
from unime.batching_unime import plan_micro_batches, takes_videos
from unime.checkpoint import load_processor
from unime.image_tokens_unime import count_video_patches, count_video_tokens
from unime.processing_unime import frames_as_images, item_hash, normalize_item, render, to_messages


FAMILIES = ("llava-onevision", "qwen2-vl", "qwen2.5-vl", "qwen3-vl")
INSTRUCTION = "Understand the content of the provided video."
Loaded = tuple[str, UniMEModel, ProcessorMixin]


def clip(count: int, size: tuple[int, int] = (48, 32), start: int = 0) -> list[Image.Image]:
    """Return frames of noise that differ from each other."""
    noise = np.random.default_rng(start).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in noise]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> Loaded:
    return request.param, *load_model(str(tiny_model(request.param)))


def native_embedding(folder: Path, frames: list[Image.Image], text: str, system: str) -> Tensor:
    """Return the last hidden state of the native generative model, whose processor is called by hand."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    parts = [{"type": "video"}, {"type": "text", "text": f"{system} {text}"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    metadata = {"total_num_frames": len(frames), "fps": 2.0, "frames_indices": list(range(len(frames)))}
    inputs = processor(
        text=[prompt], videos=[frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )
    assert "pixel_values_videos" in inputs and "pixel_values" not in inputs
    with torch.no_grad():
        states = model.model(**inputs).last_hidden_state
    return torch.nn.functional.normalize(states[0, -1], dim=0)


def test_a_video_has_the_embedding_of_the_native_model(loaded: Loaded, tiny_model: Callable[[str], Path]) -> None:
    name, model, processor = loaded
    frames = clip(4)
    ours = model.encode({"video": frames, "text": "Who moves?", "instruction": INSTRUCTION}, processor)
    expected = native_embedding(tiny_model(name), frames, "Who moves?", INSTRUCTION)
    assert np.abs(ours - expected.numpy()).max() < 1e-5
    as_images = model.encode({"image": frames, "text": "Who moves?", "instruction": INSTRUCTION}, processor)
    assert np.abs(ours - as_images).max() > 1e-3


def test_videos_do_not_depend_on_their_batch(loaded: Loaded) -> None:
    name, model, processor = loaded
    items: list[Any] = [
        {"video": clip(4)},
        {"video": clip(6, (32, 64)), "text": "a cat"},
        {"video": clip(4, start=1), "text": "a dog and a very long bone", "instruction": INSTRUCTION},
        {"video": clip(5), "image": clip(1)[0], "text": "Is it in the video?"},
        ["First", clip(1)[0], "then", {"type": "video", "video": clip(4)}, "what changed?"],
        {"video": clip(1)},
        clip(1)[0],
        "a cat",
    ]
    together = model.encode(items, processor)
    alone = np.concatenate([model.encode([item], processor) for item in items])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(model.encode(items, processor, packed=True) - together).max() < 1e-5
    assert len({item_hash(normalize_item(item, 0)) for item in items}) == len(items)


def test_the_tokens_and_patches_of_a_video_are_counted_without_its_pixels(loaded: Loaded) -> None:
    name, model, processor = loaded
    patch = model.config.backbone_config.vision_config.patch_size
    for count, size in ((1, (48, 32)), (4, (48, 32)), (5, (20, 90)), (8, (300, 200))):
        item = {"video": clip(count, size), "text": "a cat"}
        (batch,) = plan_micro_batches(processor, {0: normalize_item(item, 0)}, config=model.config.backbone_config)
        tensors = batch.tensors()
        assert batch.items[0].length == tensors["input_ids"].shape[1]
        pixels = tensors["pixel_values_videos"]
        patches = len(pixels) if pixels.ndim == 2 else pixels.numel() // (3 * patch**2)
        assert count_video_patches(processor, count, size, patch) == patches
        assert count_video_tokens(processor, count, size) < batch.items[0].length
        assert batch.items[0].vision_cost > 0


def test_a_gradient_flows_through_a_video_and_embeddings_of_tokens_go_with_it(loaded: Loaded) -> None:
    name, model, processor = loaded
    ((_, tensors),) = micro_batches(processor, [{"video": clip(4)}])
    parameter = next(p for name, p in model.named_parameters() if "patch_embed" in name)
    model(**tensors).embeddings[0, 0].backward()
    assert parameter.grad is not None and parameter.grad.abs().max() > 0
    model.zero_grad()
    with torch.no_grad():
        expected = model(**tensors).embeddings
        embeds = model.get_input_embeddings()(tensors.pop("input_ids"))
        actual = model(inputs_embeds=embeds, **tensors).embeddings
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_a_saved_checkpoint_reads_videos_too(loaded: Loaded, tmp_path: Path) -> None:
    name, model, processor = loaded
    item = {"video": clip(4), "text": "a cat"}
    save_checkpoint(model, processor, tmp_path)
    again, saved = load_model(str(tmp_path))
    assert takes_videos(saved)
    assert np.abs(again.encode(item, saved) - model.encode(item, processor)).max() < 1e-6


def test_a_long_text_beside_a_video_is_cut(loaded: Loaded) -> None:
    name, model, processor = loaded
    item = normalize_item({"video": clip(4), "text": "cat " * 200}, 0)
    (batch,) = plan_micro_batches(processor, {0: item}, max_length=120)
    assert batch.items[0].length == batch.tensors()["input_ids"].shape[1] <= 120
    with pytest.raises(ValueError, match="item 0 needs .* tokens for its prompt and images alone"):
        plan_micro_batches(processor, {0: item}, max_length=8)


@pytest.mark.parametrize("name", ["llava", "smolvlm"])
def test_other_families_refuse_a_video_and_read_its_frames_as_images(
    name: str, tiny_model: Callable[[str], Path]
) -> None:
    model, processor = load_model(str(tiny_model(name)))
    frames = clip(2)
    assert not takes_videos(processor)
    with pytest.raises(
        ValueError, match="^item 1: this checkpoint's chat template has no place for a video: pass its"
    ):
        model.encode(["a cat", {"video": frames}], processor)
    item = {"video": frames, "text": "a cat"}
    expected = model.encode([{"image": frames, "text": "a cat"}], processor)
    assert np.array_equal(model.encode([frames_as_images(item)], processor), expected)
    assert frames_as_images("a cat") == "a cat"


def test_a_checkpoint_without_a_place_for_videos_refuses_them(tiny_model: Callable[[str], Path]) -> None:
    processor = processor_from_backbone(str(tiny_model("qwen2-vl")))
    frame = processor.chat_template.partition(" -%}")[0].removeprefix("{%- set frame = ")
    old = (Path(__file__).parent / "chat_templates" / "unime-0.1.jinja").read_text()
    processor.chat_template = old.replace("FRAME", frame)
    with pytest.raises(ValueError, match="^item 0: this checkpoint's chat template has no place for a video"):
        micro_batches(processor, [{"video": clip(2)}])
    plain = processor_from_backbone(str(tiny_model("llava")))
    with pytest.raises(Exception, match="has no place for a video"):  # whoever renders the template
        plain.apply_chat_template([to_messages(normalize_item({"video": clip(2)}, 0))], tokenize=False)


def test_a_video_has_the_place_and_the_size_of_the_published_code(tiny_model: Callable[[str], Path]) -> None:
    # TIGER-AI-Lab/VLM2Vec, src/model/processor.py: `<|video_pad|>`, in the limits of images.
    processor = load_processor(str(tiny_model("qwen2-vl")), preset="vlm2vec-v2")
    item = normalize_item({"video": clip(4), "instruction": INSTRUCTION}, 0)
    assert render(processor, [item]) == [f"<|video_pad|>\n{INSTRUCTION}\n"]
    size = {"shortest_edge": 4 * 28**2, "longest_edge": 1280 * 28**2}
    assert dict(processor.video_processor.size) == dict(processor.image_processor.size) == size
    own = load_processor(str(tiny_model("qwen3-vl")), preset="qwen3-vl-embedding")
    (prompt,) = render(own, [item])
    assert "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|><|im_end|>" in prompt
    for preset, family in (("gme", "qwen2-vl"), ("e5-v", "llava-next")):
        with pytest.raises(TemplateError, match="the prompt of .* has no place for a video: pass its frames as"):
            render(load_processor(str(tiny_model(family)), preset=preset), [item])


def test_who_passes_no_times_to_a_model_that_reads_them_gets_an_error(tiny_model: Callable[[str], Path]) -> None:
    # sentence-transformers: Qwen2.5-VL would get 24 frames per second, and Qwen3-VL fewer frames as well.
    conversation = to_messages(normalize_item({"video": clip(4)}, 0))
    for name in ("qwen2.5-vl", "qwen3-vl"):
        with pytest.raises(TemplateError, match="^this model reads at what times the frames of a video were taken"):
            processor_from_backbone(str(tiny_model(name))).apply_chat_template([conversation], tokenize=False)


def test_sentence_transformers_reads_the_videos_of_conversations(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("llava-onevision", "qwen2-vl"):
        model, processor = load_model(str(tiny_model(name)))
        save_checkpoint(model, processor, tmp_path / name)
        item = {"video": clip(4), "text": "a cat"}
        embedder = SentenceTransformer(str(tmp_path / name), model_kwargs={"dtype": "float32"})
        conversation = to_messages(normalize_item(item, 0))
        assert np.abs(embedder.encode([conversation])[0] - model.encode(item, processor)).max() < 1e-5
    with pytest.raises(ValueError, match="'text.video' is not supported"):
        embedder.encode([item])


def test_frames_of_different_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match="^item 3: the frames of a video must have one size, got 20 x 20 and 48 x 32"):
        normalize_item({"video": [*clip(1), *clip(1, (20, 20))]}, 3)
