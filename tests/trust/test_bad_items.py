"""Invalid items: every interface that takes items refuses them with an error that names the item."""

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
WRONG_TYPE = "expected a str, a PIL image, a list of them or a dict with 'text' and/or 'image', got "
NO_CONTENT = "expected 'text' or 'image' (or both), got the keys "
IMAGE = "'image' must be a PIL image or a list of them, got "
PART = "a part of 'content' must be a text or a PIL image, got "
UNKNOWN_PART = "a part of 'content' must be a text, an image, {'type': 'text', 'text': ...}, {'type': 'image', "
BOTH = "'content' replaces 'text' and 'image': put the text and the images into 'content'"
UNKNOWN = "; valid keys are text, image, video, content, instruction"
FRAMES = "'video' must be a list of PIL images, the frames in their order, got "

# name -> (invalid item, error message)
ITEMS: dict[str, tuple[Any, str]] = {
    "none": (None, WRONG_TYPE + "NoneType"),
    "integer": (7, WRONG_TYPE + "int"),
    "truth value": (True, WRONG_TYPE + "bool"),
    "not a number": (float("nan"), WRONG_TYPE + "float"),
    "missing value of pandas": (pd.NA, WRONG_TYPE + "NAType"),
    "bytes": (b"a cat", WRONG_TYPE + "bytes"),
    "bytearray": (bytearray(b"a cat"), WRONG_TYPE + "bytearray"),
    "path": (Path("cat.png"), WRONG_TYPE + "PosixPath"),
    "open file": (io.BytesIO(b"a cat"), WRONG_TYPE + "BytesIO"),
    "token ids": ([1, 2, 3], PART + "int"),
    "nested lists": ([["a cat"], [RED]], PART + "list"),
    "empty list": ([], "'content' is empty: it needs a text or an image"),
    "none in a list": (["a cat", None], PART + "NoneType"),
    "bytes in a list": (["a cat", b"\x89PNG"], PART + "bytes"),
    "surrogate in a list": (["a cat", RED, "a \ud800"], "'text' is not valid Unicode at character 2"),
    "item in a list": ([{"text": "a cat"}, RED], UNKNOWN_PART),
    "messages": ([{"role": "user", "content": ["a cat"]}], UNKNOWN_PART),
    "part without a value": ([{"type": "image", "image": None}], UNKNOWN_PART),
    "part with two values": ([{"type": "text", "text": "a cat", "image": RED}], UNKNOWN_PART),
    "part of another type": ([{"type": "audio", "audio": "cat.wav"}], UNKNOWN_PART),
    "path of a video in a part": ([{"type": "video", "video": "cat.mp4"}], FRAMES + "str"),
    "number as text of a part": ([{"type": "text", "text": 7}], UNKNOWN_PART),
    "path in a part": ([{"type": "image", "image": "cat.png"}], PART + "str: open it with PIL.Image"),
    "content and text": ({"content": ["a cat", RED], "text": "a cat"}, BOTH),
    "content and image": ({"content": ["a cat", RED], "image": RED}, BOTH),
    "text as content": ({"content": "a cat"}, "'content' must be a list of texts and images, got str"),
    "no content": ({"content": [], "instruction": "Find it:"}, "'content' is empty: it needs a text or an image"),
    "set": ({"a cat"}, WRONG_TYPE + "set"),
    "generator": ((text for text in ["a cat"]), WRONG_TYPE + "generator"),
    "array": (np.zeros((24, 40, 3), np.uint8), WRONG_TYPE + "ndarray"),
    "array of nan": (np.full((24, 40, 3), np.nan), WRONG_TYPE + "ndarray"),
    "tensor of inf": (torch.full((3, 24, 40), torch.inf), WRONG_TYPE + "Tensor"),
    "object": (SimpleNamespace(text="a cat"), WRONG_TYPE + "SimpleNamespace"),
    "type": (str, WRONG_TYPE + "type"),
    "empty dict": ({}, NO_CONTENT + "[]"),
    "nothing but nones": ({"text": None, "image": None}, NO_CONTENT + "['image', 'text']"),
    "no images": ({"image": []}, NO_CONTENT + "['image']"),
    "instruction alone": ({"instruction": "Find it:"}, NO_CONTENT + "['instruction']"),
    "unknown key": ({"text": "a cat", "img": RED}, "unknown item key 'img'" + UNKNOWN),
    "path of a video": ({"text": "a cat", "video": "cat.mp4"}, FRAMES + "str"),
    "video without frames": ({"video": []}, FRAMES + "an empty list"),
    "content and video": ({"content": ["a cat"], "video": [RED]}, BOTH),
    "key in capitals": ({"Text": "a cat"}, "unknown item key 'Text'" + UNKNOWN),
    "keys of several types": ({1: "a cat", "text": "a cat"}, "unknown item key 1" + UNKNOWN),
    "message": ({"role": "user", "content": "a cat"}, "unknown item key 'role'" + UNKNOWN),
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
    "generator of images": ({"image": (image for image in [RED])}, IMAGE + "generator"),
}
NUMBERS = "its mode {} has no RGB meaning: save it with 8 or 16 bits per channel"
UNSUPPORTED_IMAGES = {  # Pillow supports these images, but they have no RGB meaning
    "float image": (Image.new("F", (40, 24), 0.5), NUMBERS.format("F")),
    "nan image": (Image.new("F", (40, 24), float("nan")), NUMBERS.format("F")),
    "infinite image": (Image.new("F", (40, 24), float("inf")), NUMBERS.format("F")),
    "32-bit image": (Image.new("I", (40, 24), 70_000), NUMBERS.format("I")),
    "premultiplied grey": (Image.new("La", (40, 24)), "conversion from La to L not supported"),
}
UNUSUAL: dict[str, tuple[Any, Any]] = {  # name -> (unusual item, usual item that is equal to it)
    "str of numpy": (np.str_("a cat"), "a cat"),
    "mapping that is not a dict": (UserDict(text="a cat"), "a cat"),
    "mapping that cannot be changed": (MappingProxyType({"text": "a cat"}), "a cat"),
    "nones beside a text": ({"text": "a cat", "image": None, "instruction": None}, "a cat"),
    "empty instruction": ({"text": "a cat", "instruction": ""}, "a cat"),
    "empty text beside an image": ({"text": "", "image": RED}, RED),
    "no image beside a text": ({"text": "a cat", "image": []}, "a cat"),
    "tuple of images": ({"image": (RED, RED)}, {"image": [RED, RED]}),
    "list of one image": ({"image": [RED]}, RED),
    "text that is a number": ("7", {"text": "7"}),
    "list of one text": (["a cat"], "a cat"),
    "list of texts": (["a cat", "a dog"], "a cat\na dog"),
    "tuple of text and image": (("a cat", RED, "a dog"), {"content": ["a cat", RED, "a dog"]}),
    "images before a text": ([RED, RED, "a cat"], {"text": "a cat", "image": [RED, RED]}),
    "empty text before an image": (["", RED, "a cat"], {"text": "a cat", "image": RED}),
    "empty text after an image": (["a cat", RED, ""], ["a cat", RED]),
    "parts of messages": (
        [{"type": "text", "text": "a cat", "image": None}, {"type": "image", "image": RED}],
        {"content": ["a cat", RED], "text": None},
    ),
}


def fresh(item: Any) -> Any:
    """Return a new generator in place of a generator, because each test must consume its own."""
    return (text for text in ["a cat"]) if type(item).__name__ == "generator" else item


@pytest.mark.parametrize("name", ITEMS, ids=lambda name: f"{name}-encode")
def test_the_error_of_encode_names_an_invalid_item(name: str, encode: Encode, error_message: ErrorMessage) -> None:
    item, reason = ITEMS[name]
    assert error_message(lambda: encode(["a cat", RED, fresh(item)])).startswith(f"item 2: {reason}")
    if not isinstance(item, list | tuple | bytearray):  # on their own, these are sequences of items
        assert error_message(lambda: encode(fresh(item))).startswith(f"item 0: {reason}")


@pytest.mark.parametrize("name", UNSUPPORTED_IMAGES, ids=lambda name: f"{name}-encode")
def test_the_error_of_encode_names_an_image_without_rgb_meaning(
    name: str, encode: Encode, error_message: ErrorMessage
) -> None:
    image, reason = UNSUPPORTED_IMAGES[name]
    for item in (image, {"image": [RED, image], "text": "a cat"}):
        message = error_message(lambda item=item: encode(["a cat", item]))
        assert message.startswith(f"item 1: its image cannot be read ({reason}")
        assert message.endswith("): repair or replace it")


@pytest.mark.parametrize("name", ITEMS, ids=lambda name: f"{name}-evaluation")
def test_an_evaluation_refuses_an_invalid_item(name: str, encode: Encode, error_message: ErrorMessage) -> None:
    item, reason = ITEMS[name]
    assert reason in error_message(lambda: EmbeddingCache(encode)(["a cat", fresh(item)]))


@pytest.mark.parametrize("name", ITEMS, ids=lambda name: f"{name}-training row")
def test_a_collator_refuses_an_invalid_item(name: str, tiny: Loaded, error_message: ErrorMessage) -> None:
    item, reason = ITEMS[name]
    row = {"query": "a cat", "positive": fresh(item), "negatives": [], "task": "t", "label": None, "where": "row 7"}
    collate = ContrastiveCollator(partial(micro_batches, tiny[1]))
    assert reason in error_message(lambda: collate([row]))


@pytest.mark.parametrize("name", UNUSUAL, ids=lambda name: f"{name}-encode")
def test_an_unusual_item_is_accepted(name: str, encode: Encode) -> None:
    item, usual = UNUSUAL[name]
    np.testing.assert_allclose(encode([item])[0], encode([usual])[0], atol=1e-6)


def test_a_single_mapping_is_one_item(encode: Encode) -> None:
    assert encode(UserDict(text="a cat")).shape == encode(MappingProxyType({"text": "a cat"})).shape == (192,)


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16"]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"mode {mode}-encode")
def test_images_of_all_modes_can_be_mixed(mode: str, encode: Encode) -> None:
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


def test_pixels_are_cast_to_the_dtype_of_the_model(tiny: Loaded) -> None:
    model, processor = tiny
    ((_, tensors),) = micro_batches(processor, [RED])
    expected = model(**tensors).embeddings
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        cast = tensors["pixel_values"].to(dtype)
        embeddings = model(**{**tensors, "pixel_values": cast}).embeddings
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings, expected, atol=5e-2 if dtype == torch.bfloat16 else 1e-2, rtol=0)


@pytest.mark.parametrize(
    ("given", "count"),
    [((), 0), (("a cat", RED), 2), (np.array(["a cat"])[:0].tolist(), 0), (range(0), 0)],
    ids=["empty tuple-encode", "tuple-encode", "empty list-encode", "empty range-encode"],
)
def test_any_sequence_is_a_list_of_items(given: Any, count: int, encode: Encode) -> None:
    assert encode(given).shape == (count, 192)


def test_an_image_with_a_closed_file_is_refused(tmp_path: Path, encode: Encode, error_message: ErrorMessage) -> None:
    RED.save(tmp_path / "red.png")
    image = Image.open(tmp_path / "red.png")
    image.close()
    message = error_message(lambda: encode(["a cat", image]))
    assert message.startswith("item 1: its image cannot be read (") and message.endswith("): repair or replace it")
