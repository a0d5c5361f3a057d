"""A checkpoint in the layout of LLaVA-NeXT's code gives the embeddings of the same weights as `llava_onevision`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import INITIALIZER_RANGE, LAYER_SIZES, PATCH_PIXELS, TILE_PIXELS, text_config_arguments
from tiny_tokenizers import qwen_tokenizer
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerBase

from unime import load_model, save_checkpoint
from unime.checkpoint_safety import read_config
from unime.llava_qwen import VISION_CONFIG


IMAGE = Image.effect_mandelbrot((60, 30), (-2, -1, 1, 1), 20).convert("RGB")
GRIDS = [[TILE_PIXELS * rows, TILE_PIXELS * columns] for rows in (1, 2) for columns in (1, 2)]


def published_name(name: str) -> str:
    """Return the name of a weight in LLaVA-NeXT's code, from that in transformers'."""
    name = name.removeprefix("model.")
    for new, old in {
        "language_model.": "model.",
        "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "image_newline": "model.image_newline",
    }.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


@pytest.fixture
def llave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerBase]:
    """Return a folder in the published layout, the model of the same weights, and the tokenizer."""
    vision = LAYER_SIZES | {
        "image_size": TILE_PIXELS,
        "patch_size": PATCH_PIXELS,
        "initializer_range": INITIALIZER_RANGE,
    }
    for name, value in vision.items():
        monkeypatch.setitem(VISION_CONFIG, name, value)
    folder, tokenizer = tmp_path / "LLaVE-2B", qwen_tokenizer()
    tokenizer.save_pretrained(folder)
    image_token = len(tokenizer)
    text = text_config_arguments(tokenizer) | {"vocab_size": image_token + 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionConfig(
                text_config={"model_type": "qwen2"} | text,
                vision_config=dict(VISION_CONFIG),
                image_token_index=image_token,
                video_token_index=image_token + 1,
                image_grid_pinpoints=GRIDS,
            )
        ).eval()
    config = text | {
        "model_type": "llava_qwen",
        "architectures": ["LlavaQwenForCausalLM"],
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": "(1x1),...,(2x2)",
        "image_token_index": image_token,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = {published_name(name): weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    return folder, model, tokenizer


def test_llave_gives_the_embeddings_of_llava_onevision(llave, tmp_path: Path) -> None:
    folder, reference, tokenizer = llave
    model, processor = load_model(str(folder), dtype="float32")
    assert model.config.backbone_config.model_type == "llava_onevision"
    frame = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    frame += "<|im_start|>assistant\n\n<|im_end|>\n"
    question = "Represent the given image with the following question:"
    inputs = processor(text=[frame.format(f"<image>\n{question} What is it?\n")], images=[IMAGE], return_tensors="pt")
    items = [{"image": IMAGE, "text": "What is it?", "instruction": question}, "A cat"]
    embeddings = model.encode(items, processor)
    for embedding, tensors in zip(
        embeddings, (inputs, tokenizer(frame.format("A cat"), return_tensors="pt")), strict=True
    ):
        with torch.no_grad():
            hidden = reference(**tensors, output_hidden_states=True).hidden_states[-1][0, -1]
        expected = torch.nn.functional.normalize(hidden, dim=-1).numpy()
        np.testing.assert_allclose(embedding, expected, atol=1e-5)
    saved = str(save_checkpoint(model, processor, tmp_path / "saved"))
    np.testing.assert_allclose(load_model(saved)[0].encode(items, processor), embeddings, atol=1e-5)


def test_another_vision_tower_is_refused(llave) -> None:
    config = json.loads((llave[0] / "config.json").read_text())
    (llave[0] / "config.json").write_text(json.dumps(config | {"mm_vision_tower": "openai/clip-vit-large-patch14"}))
    with pytest.raises(ValueError, match="has the vision tower openai/clip-vit-large-patch14 and the projector"):
        read_config(str(llave[0]))
