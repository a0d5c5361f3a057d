"""The tiny Phi-3-Vision of `phi3_v_reference/` and its images, whose outputs the authors' code has computed."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText


REFERENCE = Path(__file__).parent / "phi3_v_reference"
IMAGE_TOKEN = 486  # `<|image|>` in the vocabulary of the reference


def read(name: str) -> dict:
    """Return the content of a JSON file of the reference."""
    return json.loads((REFERENCE / name).read_text())


def draw(name: str) -> Image.Image:
    """Return the image of a name such as "300x900": gradients to the right and downwards, and a blue chessboard."""
    width, height = map(int, name.split("x"))
    x, y = np.arange(width)[None], np.arange(height)[:, None]
    red, green = 255 * x // max(1, width - 1), 255 * y // max(1, height - 1)
    blue = 255 * ((x // 16 + y // 16) % 2)
    return Image.fromarray(np.stack(np.broadcast_arrays(red, green, blue), axis=-1).astype(np.uint8))


def text_of(case: dict) -> str:
    """Return the text of a case."""
    text = case["text"]
    return text if isinstance(text, str) else text["prefix"] + text["repeat"] * text["times"] + text["suffix"]


def write_checkpoint(folder: Path) -> Path:
    """Write the tiny model in the published layout and names, with the weights of the reference run."""
    for file in REFERENCE.glob("*config.json"):
        shutil.copy(file, folder)
    shutil.copy(REFERENCE / "tokenizer.json", folder)
    (folder / "published_config.json").unlink()
    config = read("config.json") | {"image_token_id": IMAGE_TOKEN}
    (folder / "config.json").write_text(json.dumps(config))
    AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder / "new")
    names = {
        name.replace(".img_processor.", ".img_processor.vision_model."): weight.shape
        for name, weight in load_file(folder / "new" / "model.safetensors").items()
    }
    shutil.rmtree(folder / "new")
    generator = torch.Generator().manual_seed(20250417)
    weights = {name: _random(name, names[name], generator) for name in sorted(names)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return 0.1 * values
    if len(shape) == 1 and name.endswith(".weight"):  # a norm
        return 1 + 0.2 * values
    if name.endswith(("_GN", "embed_tokens.weight")):
        return 0.5 * values
    if "embedding" in name:
        return (0.05 if "patch" in name else 0.3) * values
    return 1.3 * shape[-1] ** -0.5 * values
