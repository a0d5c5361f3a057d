"""Everything that is no item, at the doors that take items: one sentence names it, whatever stands beside it."""

import io
from collections import UserDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import ProcessorMixin

from unime import UniMEModel, micro_batches
from unime.data.collator import ContrastiveCollator
from unime.data.rows import content_hash
from unime.eval.embedding_cache import EmbeddingCache


ErrorMessage = Callable[..., str]
Encode = Callable[[Any], np.ndarray]
Loaded = tuple[UniMEModel, ProcessorMixin]

RED = Image.new("RGB", (40, 24), "red")
KIND = "expected a str, a PIL image or a dict with 'text' and/or 'image', got "
NOTHING = "expected 'text' or 'image' (or both), got the keys "
IMAGE = "'image' must be a PIL image or a list of them, got "
UNKNOWN = "; valid keys are text, image, instruction"

# name -> (what is given, what is said of it)
ITEMS: dict[str, tuple[Any, str]] = {
    "none": (None, KIND + "NoneType"),
    "integer": (7, KIND + "int"),
    "truth value": (True, KIND + "bool"),
    "not a number": (float("nan"), KIND + "float"),
    "missing value of pandas": (pd.NA, KIND + "NAType"),
    "bytes": (b"a cat", KIND + "bytes"),
    "bytearray": (bytearray(b"a cat"), KIND + "bytearray"),
    "path": (Path("cat.png"), KIND + "PosixPath"),
    "open file": (io.BytesIO(b"a cat"), KIND + "BytesIO"),
    "token ids": ([1, 2, 3], KIND + "list"),
    "nested list": (["a cat", "a dog"], KIND + "list"),
    "nested lists": ([["a cat"], [RED]], KIND + "list"),
    "tuple of text and image": (("a cat", RED), KIND + "tuple"),
    "set": ({"a cat"}, KIND + "set"),
    "generator": ((text for text in ["a cat"]), KIND + "generator"),
    "array": (np.zeros((24, 40, 3), np.uint8), KIND + "ndarray"),
    "array of nan": (np.full((24, 40, 3), np.nan), KIND + "ndarray"),
    "tensor of inf": (torch.full((3, 24, 40), torch.inf), KIND + "Tensor"),
    "object": (SimpleNamespace(text="a cat"), KIND + "SimpleNamespace"),
    "type": (str, KIND + "type"),
    "empty dict": ({}, NOTHING + "[]"),
    "nothing but nones": ({"text": None, "image": None}, NOTHING + "['image', 'text']"),
    "no images": ({"image": []}, NOTHING + "['image']"),
    "instruction alone": ({"instruction": "Find it:"}, NOTHING + "['instruction']"),
    "unknown key": ({"text": "a cat", "img": RED}, "unknown item key 'img'" + UNKNOWN),
    "video": ({"text": "a cat", "video": "cat.mp4"}, "unknown item key 'video'" + UNKNOWN),
    "key in capitals": ({"Text": "a cat"}, "unknown item key 'Text'" + UNKNOWN),
    "keys of several types": ({1: "a cat", "text": "a cat"}, "unknown item key 1" + UNKNOWN),
    "message": ({"role": "user", "content": "a cat"}, "unknown item key 'role', 'content'" + UNKNOWN),
    "number as text": ({"text": 7}, "'text' must be a str, got int"),
    "nan as text": ({"text": float("nan")}, "'text' must be a str, got float"),
    "bytes as text": ({"text": b"a cat"}, "'text' must be a str, got bytes"),
    "list of texts": ({"text": ["a cat", "a dog"]}, "'text' must be a str, got list"),
    "list as instruction": ({"text": "a cat", "instruction": ["Find it:"]}, "'instruction' must be a str, got list"),
    "truth value as instruction": ({"text": "a cat", "instruction": True}, "'instruction' must be a str, got bool"),
    "path as image": ({"image": "cat.png"}, IMAGE + "str: open it with PIL.Image"),
    "encoded image": ({"image": b"\x89PNG"}, IMAGE + "bytes"),
    "image of datasets": ({"image": {"bytes": b"", "path": None}}, IMAGE + "dict"),
    "array as image": ({"image": np.zeros((24, 40, 3), np.uint8)}, IMAGE + "ndarray"),
    "array of nan as image": ({"image": np.full((24, 40, 3), np.nan)}, IMAGE + "ndarray"),
    "tensor of inf as image": ({"image": torch.full((3, 24, 40), torch.inf)}, IMAGE + "Tensor"),
    "truth value as image": ({"image": False}, IMAGE + "bool"),
    "none among images": ({"image": [RED, None]}, IMAGE + "NoneType"),
    "nested images": ({"image": [[RED]]}, IMAGE + "list"),
    "generator of images": ({"image": (one for one in [RED])}, IMAGE + "generator"),
}
NUMBERS = "its mode {} has no RGB meaning: save it with 8 or 16 bits per channel"
OPENED = {  # what Pillow opens or makes, and no model can see
    "float image": (Image.new("F", (40, 24), 0.5), NUMBERS.format("F")),
    "nan image": (Image.new("F", (40, 24), float("nan")), NUMBERS.format("F")),
    "infinite image": (Image.new("F", (40, 24), float("inf")), NUMBERS.format("F")),
    "32-bit image": (Image.new("I", (40, 24), 70_000), NUMBERS.format("I")),
    "premultiplied grey": (Image.new("La", (40, 24)), "conversion from La to L not supported"),
}
TAKEN: dict[str, tuple[Any, Any]] = {  # name -> (unusual, but an item; what it is equal to)
    "str of numpy": (np.str_("a cat"), "a cat"),
    "mapping that is no dict": (UserDict(text="a cat"), "a cat"),
    "mapping that cannot be changed": (MappingProxyType({"text": "a cat"}), "a cat"),
    "nones beside a text": ({"text": "a cat", "image": None, "instruction": None}, "a cat"),
    "empty instruction": ({"text": "a cat", "instruction": ""}, "a cat"),
    "empty text beside an image": ({"text": "", "image": RED}, RED),
    "no image beside a text": ({"text": "a cat", "image": []}, "a cat"),
    "tuple of images": ({"image": (RED, RED)}, {"image": [RED, RED]}),
    "list of one image": ({"image": [RED]}, RED),
    "text that is a number": ("7", {"text": "7"}),
}


def moved(item: Any) -> Any:
    """A generator is used up by who takes it first: each test gets its own."""
    return (text for text in ["a cat"]) if type(item).__name__ == "generator" else item


@pytest.mark.parametrize("name", ITEMS, ids=lambda name: f"{name}-encode")
def test_encode_names_what_is_no_item(name: str, encode: Encode, error_message: ErrorMessage) -> None:
    item, reason = ITEMS[name]
    assert error_message(lambda: encode(["a cat", RED, moved(item)])).startswith(f"item 2: {reason}")
    if not isinstance(item, list | tuple | bytearray):  # which by themselves are lists of items
        assert error_message(lambda: encode(moved(item))).startswith(f"item 0: {reason}")


@pytest.mark.parametrize("name", OPENED, ids=lambda name: f"{name}-encode")
def test_encode_names_what_no_model_can_see(name: str, encode: Encode, error_message: ErrorMessage) -> None:
    image, reason = OPENED[name]
    for item in (image, {"image": [RED, image], "text": "a cat"}):
        message = error_message(lambda item=item: encode(["a cat", item]))
        assert message.startswith(f"item 1: its image cannot be read ({reason}")
        assert message.endswith("): repair or replace it")


@pytest.mark.parametrize("name", ITEMS, ids=lambda name: f"{name}-evaluation")
def test_an_evaluation_refuses_what_is_no_item(name: str, encode: Encode, error_message: ErrorMessage) -> None:
    item, reason = ITEMS[name]
    assert reason in error_message(lambda: EmbeddingCache(encode)(["a cat", moved(item)]))


@pytest.mark.parametrize("name", ITEMS, ids=lambda name: f"{name}-training row")
def test_a_collator_refuses_what_is_no_item(name: str, tiny: Loaded, error_message: ErrorMessage) -> None:
    item, reason = ITEMS[name]
    row = {"query": "a cat", "positive": moved(item), "negatives": [], "task": "t", "label": None, "where": "row 7"}
    collate = ContrastiveCollator(partial(micro_batches, tiny[1]))
    assert reason in error_message(lambda: collate([row]))


@pytest.mark.parametrize("name", TAKEN, ids=lambda name: f"{name}-encode")
def test_what_is_unusual_and_an_item_is_taken(name: str, encode: Encode) -> None:
    item, usual = TAKEN[name]
    np.testing.assert_allclose(encode([item])[0], encode([usual])[0], atol=1e-6)


def test_a_mapping_by_itself_is_one_item(encode: Encode) -> None:
    assert encode(UserDict(text="a cat")).shape == encode(MappingProxyType({"text": "a cat"})).shape == (192,)


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16"]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"mode {mode}-encode")
def test_a_image_of_any_mode_is_seen_among_images_of_others(mode: str, encode: Encode) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
    grey = noise.convert("L")
    image = {
        "I;16": lambda: Image.fromarray(np.asarray(grey).astype(np.uint16) * 256),
        "PA": lambda: noise.quantize().convert("PA"),
        "LA": lambda: grey.convert("LA"),
        "1": lambda: grey.convert("1"),
    }.get(mode, lambda: noise.convert(mode))()
    assert image.mode == mode
    shown = grey.convert("RGB") if mode == "I;16" else image.convert("RGB")
    others = [Image.new(other, (24, 24)) for other in MODES]
    vectors = encode([*others, image, {"text": "a cat", "image": [image, RED]}])
    np.testing.assert_allclose(vectors[-2], encode(shown), atol=1e-5)
    np.testing.assert_allclose(vectors[-1], encode({"text": "a cat", "image": [shown, RED]}), atol=1e-5)
    assert content_hash(image) == content_hash(shown)


def test_images_and_models_of_other_numbers_agree(tiny: Loaded) -> None:
    """The pixels of a batch are cast to the numbers of the model, whatever they come in."""
    model, processor = tiny
    ((_, tensors),) = micro_batches(processor, [RED])
    wanted = model(**tensors).embeddings
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        cast = tensors["pixel_values"].to(dtype)
        found = model(**{**tensors, "pixel_values": cast}).embeddings
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, atol=5e-2 if dtype == torch.bfloat16 else 1e-2, rtol=0)


@pytest.mark.parametrize(
    ("given", "count"),
    [((), 0), (("a cat", RED), 2), (np.array(["a cat"])[:0].tolist(), 0), (range(0), 0)],
    ids=["empty tuple-encode", "tuple-encode", "empty list-encode", "empty range-encode"],
)
def test_any_sequence_is_a_list_of_items(given: Any, count: int, encode: Encode) -> None:
    assert encode(given).shape == (count, 192)


def test_a_image_whose_file_is_closed_is_refused(tmp_path: Path, encode: Encode, error_message: ErrorMessage) -> None:
    RED.save(tmp_path / "red.png")
    image = Image.open(tmp_path / "red.png")
    image.close()
    message = error_message(lambda: encode(["a cat", image]))
    assert message.startswith("item 1: its image cannot be read (") and message.endswith("): repair or replace it")
