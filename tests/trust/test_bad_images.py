"""Every interface sees the same image in a file, or refuses the file with a one-sentence error."""

import base64
import json
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pandas as pd
import pytest
import torch
import typer
from odd_images import BAD, GOOD
from PIL import Image, ImageOps
from sentence_transformers import SentenceTransformer
from small_index import TINY, rows
from tiny_models import TINY_MODELS
from transformers import ProcessorMixin
from typer.testing import CliRunner

from unime import UniMEModel, micro_batches, processor_from_backbone
from unime.checkpoint import PROMPTS
from unime.cli import embed
from unime.data.collator import ContrastiveCollator
from unime.data.jsonl import load_rows
from unime.eval.benchmarks.caption_retrieval import urban1k
from unime.eval.embedding_cache import EmbeddingCache
from unime.index.index import Index
from unime.page.uploads import open_upload
from unime.processing_unime import to_rgb


ErrorMessage = Callable[..., str]
Encode = Callable[[Any], np.ndarray]
Loaded = tuple[UniMEModel, ProcessorMixin]

FILES = {name: file for name, (file, _) in (GOOD | BAD).items()}
DAMAGED = ["truncated jpeg", "truncated png", "truncated gif", "false size"]
LAZY = [*DAMAGED, "pixels that are not numbers", "32-bit integers"]  # Pillow opens these, and fails to decode them
DAMAGED_HEADERS = ["jpeg with only a header", "truncated webp"]
SERVED = [name for name in BAD if name not in ("zero bytes", "web page", "svg", "postscript")]  # tested in tests/serve


def same_pixels(image: Image.Image, expected: Image.Image) -> bool:
    return image.mode == "RGB" and image.size == expected.size and image.tobytes() == expected.tobytes()


def corpus_item(name: str) -> dict[str, Any]:
    """Return a good image as the item that a corpus embeds."""
    return {"image": GOOD[name][1], "instruction": PROMPTS["image"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write every file to a folder, and refer to it from a training row and from an evaluation set."""
    folder = tmp_path_factory.mktemp("odd")
    for part in ("images", "set/image", "set/caption"):
        (folder / part).mkdir(parents=True)
    with (folder / "rows.jsonl").open("w") as lines:
        for number, (name, file) in enumerate(FILES.items()):
            (folder / "images" / f"{name}.png").write_bytes(file)
            (folder / "set" / "image" / f"{number}.jpg").write_bytes(file)
            (folder / "set" / "caption" / f"{number}.txt").write_text(name)
            row = {"query": {"text": name}, "positive": {"image": f"images/{name}.png"}}
            lines.write(json.dumps(row) + "\n")
    return folder


# Training rows


@pytest.fixture(scope="module")
def training(folder: Path) -> Sequence[dict[str, Any]]:
    return load_rows(folder / "rows.jsonl")


@pytest.mark.parametrize("name", GOOD, ids=lambda name: f"{name}-training row")
def test_a_training_row_shows_the_image(name: str, training: Any, tiny: Loaded) -> None:
    row = training[list(FILES).index(name)]
    assert same_pixels(row["positives"][0]["image"][0], GOOD[name][1])
    collate = ContrastiveCollator(partial(micro_batches, tiny[1]))
    (_, tensors), (_, expected) = (
        collate([r])["micro_batches"] for r in (row, row | {"positives": [{"image": GOOD[name][1]}]})
    )
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", BAD, ids=lambda name: f"{name}-training row")
def test_the_error_of_a_training_row_names_its_bad_image(
    name: str, training: Any, error_message: ErrorMessage
) -> None:
    number = list(FILES).index(name)
    message = error_message(lambda: training[number])
    assert message.startswith(f"rows.jsonl, row {number}, positive: cannot read the image ")
    assert f"{name}.png" in message and BAD[name][1] in message and message.endswith("or remove the row")


# Evaluation sets


@pytest.mark.parametrize("name", GOOD, ids=lambda name: f"{name}-evaluation")
def test_an_evaluation_embeds_the_image(name: str, folder: Path, encode: Encode) -> None:
    images = urban1k(folder / "set")[0].candidates
    number = list(FILES).index(name)
    assert same_pixels(images[number]["image"], GOOD[name][1])
    (vector,) = EmbeddingCache(encode)([images[number]])
    np.testing.assert_allclose(vector, encode(GOOD[name][1]), atol=1e-5)


@pytest.mark.parametrize("name", BAD, ids=lambda name: f"{name}-evaluation")
def test_the_error_of_an_evaluation_names_its_bad_image(name: str, folder: Path, error_message: ErrorMessage) -> None:
    number = list(FILES).index(name)
    message = error_message(lambda: urban1k(folder / "set")[0].candidates[number])
    assert message.startswith("urban1k: cannot read the image ") and message.endswith("or remove the row")
    assert f"{number}.jpg" in message and BAD[name][1] in message


# `unime index` and `unime embed`


@pytest.fixture(scope="module")
def index(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Index all files; return the embeddings of the good ones and the reasons of the bad ones."""
    return _of_command(embed.index, folder / "images", folder / "index", folder / "index" / "rejected.jsonl")


@pytest.fixture(scope="module")
def table(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Embed all files into Parquet; return the embeddings of the good ones and the reasons of the bad ones."""
    return _of_command(embed.embed, folder / "images", folder / "table", folder / "table.rejected.jsonl")


def _of_command(command: Callable, source: Path, output: Path, rejected: Path) -> tuple[dict, dict]:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    done = CliRunner().invoke(app, [str(source), str(output), "--model", TINY])
    assert done.exit_code == 0, done.output
    if (output / "index.json").exists():
        vectors = {name: row["vector"] for name, row in rows(Index.open(output)).items()}
    else:
        read = pd.read_parquet(output)
        vectors = dict(zip(read["id"], read["embedding"], strict=True))
    rejected_rows = map(json.loads, rejected.read_text().splitlines())
    reasons = {row["id"]: row["reason"] for row in rejected_rows}
    assert vectors.keys() | reasons.keys() == {f"{name}.png" for name in FILES}  # every file is accounted for
    return vectors, reasons


@pytest.mark.parametrize("output", ["index", "table"])
@pytest.mark.parametrize("name", GOOD)
def test_a_corpus_embeds_the_image(name: str, output: str, encode: Encode, request: pytest.FixtureRequest) -> None:
    vectors, _ = request.getfixturevalue(output)
    np.testing.assert_allclose(vectors[f"{name}.png"], encode(corpus_item(name)), atol=1e-5)


@pytest.mark.parametrize("output", ["index", "table"])
@pytest.mark.parametrize("name", BAD)
def test_a_corpus_lists_the_image_as_rejected(name: str, output: str, request: pytest.FixtureRequest) -> None:
    _, reasons = request.getfixturevalue(output)
    reason = reasons[f"{name}.png"]
    assert reason.startswith(f"entry '{name}.png': ") and BAD[name][1] in reason and "\n" not in reason
    assert "remove the " in reason


# The server


def image_message(file: bytes) -> list[dict]:
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


@pytest.mark.parametrize("name", GOOD, ids=lambda name: f"{name}-server")
def test_the_server_embeds_the_image(name: str, ask: Callable, encode: Encode) -> None:
    np.testing.assert_allclose(ask(image_message(GOOD[name][0])), encode(GOOD[name][1]), atol=1e-5)


@pytest.mark.parametrize("name", SERVED, ids=lambda name: f"{name}-server")
def test_the_server_refuses_the_image(name: str, ask: Callable) -> None:
    reason = f"cannot be read ({BAD[name][1]}"
    if name in DAMAGED:
        reason = "is damaged or truncated: send it again"
    elif name == "decompression bomb":
        reason = "is far too large: make it smaller"
    elif name in DAMAGED_HEADERS:
        reason = "cannot be read (its header is damaged): send it again"
    answer = ask(image_message(BAD[name][0]))
    assert answer.startswith(f"item 0: the image {reason}") and "\n" not in answer


# The page


@pytest.mark.parametrize("name", GOOD, ids=lambda name: f"{name}-page")
def test_the_page_opens_the_image(name: str, folder: Path) -> None:
    assert same_pixels(open_upload(str(folder / "images" / f"{name}.png")), GOOD[name][1])


@pytest.mark.parametrize("name", BAD, ids=lambda name: f"{name}-page")
def test_the_page_refuses_the_image(name: str, folder: Path, error_message: ErrorMessage) -> None:
    call = partial(open_upload, str(folder / "images" / f"{name}.png"))
    with pytest.raises(gradio.Error) as caught:
        call()
    sizes = "is too large: upload an image of at most 50 million pixels"
    unread = "cannot be read as an image ("
    message = caught.value.message
    assert message.startswith(f"{escape(name)}.png {sizes if name == 'decompression bomb' else unread}")
    assert "\n" not in message and (name in ("zero bytes", "decompression bomb") or BAD[name][1] in message)


# encode, with images that the user has opened


@pytest.mark.parametrize("name", GOOD, ids=lambda name: f"{name}-encode")
def test_encode_sees_the_image(name: str, encode: Encode) -> None:
    file, image = GOOD[name]
    np.testing.assert_allclose(encode(Image.open(BytesIO(file))), encode(image), atol=1e-5)


@pytest.mark.parametrize("name", LAZY, ids=lambda name: f"{name}-encode")
def test_the_error_of_encode_names_the_bad_image(name: str, encode: Encode, error_message: ErrorMessage) -> None:
    opened = Image.open(BytesIO(BAD[name][0]))
    message = error_message(lambda: encode(["a cat", opened]))
    assert message.startswith("item 1: its image cannot be read (") and BAD[name][1] in message


SHAPES = {"1x1": (1, 1), "1x3": (1, 3), "20,000x10": (20_000, 10), "10x20,000": (10, 20_000)}


@pytest.fixture(scope="module", params=TINY_MODELS)
def backbone(
    request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]
) -> tuple[str, UniMEModel, ProcessorMixin]:
    folder = tiny_model(request.param)
    return request.param, UniMEModel.from_backbone(folder).eval(), processor_from_backbone(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_backbone_accepts_or_refuses_extreme_shapes(
    backbone: Any, shape: str, error_message: ErrorMessage
) -> None:
    name, model, processor = backbone
    image = Image.new("RGB", SHAPES[shape], "red")
    if name.startswith(("qwen", "phi3")) and max(image.size) == 20_000:
        message = error_message(lambda: model.encode(["a cat", {"image": image, "text": "a cat"}], processor))
        size = f"{image.width} x {image.height}"
        assert message.startswith(f"item 1: the model's processor does not accept an image of {size} pixels (")
        reason = "may be at most 128 times as long" if name == "phi3-v" else "aspect ratio must be smaller than 200"
        assert reason in message and message.endswith("): crop or resize it")
    else:
        vectors = model.encode([image, "a cat", image], processor)
        assert np.array_equal(vectors[0], vectors[2]) and np.isfinite(vectors).all()
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("side", [(0, 3), (3, 0), (0, 0)], ids="{0[0]}x{0[1]}-encode".format)
def test_an_image_without_pixels_is_refused(
    side: tuple[int, int], encode: Encode, error_message: ErrorMessage
) -> None:
    message = error_message(lambda: encode(Image.new("RGB", side)))
    assert message == (
        f"item 0: its image cannot be read (it is empty ({side[0]} x {side[1]} pixels): use an image with pixels): "
        "repair or replace it"
    )


# sentence-transformers, which takes an image as Pillow opens it


@pytest.fixture(scope="module")
def sentence_transformer() -> SentenceTransformer:
    return SentenceTransformer(TINY, trust_remote_code=True, model_kwargs={"dtype": "float32"})


@pytest.mark.parametrize("name", GOOD, ids=lambda name: f"{name}-sentence-transformers")
def test_sentence_transformers_sees_the_prepared_image(
    name: str, folder: Path, sentence_transformer: SentenceTransformer, encode: Encode
) -> None:
    with Image.open(folder / "images" / f"{name}.png") as image:
        prepared = [to_rgb(image)] if name == "16 bit" else [to_rgb(image), ImageOps.exif_transpose(image)]
        vectors = sentence_transformer.encode(prepared)
    np.testing.assert_allclose(vectors, [encode(GOOD[name][1])] * len(prepared), atol=1e-5)
