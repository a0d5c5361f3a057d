"""An entry: what the model sees of it, and the errors of entries that cannot be read."""

import os
from pathlib import Path

import numpy as np
import pytest
from corpus_entries import BLUE, RED, error_message, save_image
from PIL import Image

from unime.corpus.corpus import open_corpus
from unime.corpus.entry import Entry


def test_an_unreadable_image_is_refused(tmp_path: Path, monkeypatch) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "intact.jpg")
    intact = (tmp_path / "intact.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(intact[: len(intact) // 2])
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "x.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("F", (4, 3)).save(tmp_path / "float.tiff")
    messages = {entry.id: error_message(entry) for entry in open_corpus(tmp_path) if entry.id != "intact.jpg"}
    assert "it is not a readable image (image file is truncated" in messages["half.jpg"]
    assert messages["zero.png"].endswith("zero.png is empty: replace it or remove the entry")
    assert "it is not a readable image (its format is unknown); fix" in messages["text.png"]
    assert "is a symbolic link to nowhere.png, which does not exist" in messages["gone.png"]
    assert "is a symbolic link to loop.png, which does not exist" in messages["loop.png"]
    assert "is not a regular file" in messages["pipe.png"]
    assert "its mode F has no RGB meaning: save it with 8 or 16 bits per channel" in messages["float.tiff"]
    folder = Entry("x", image=str(tmp_path / "x.png"))
    assert "x.png is a folder: fix the path" in error_message(folder)
    with pytest.raises(ValueError, match="is a folder"):
        _ = folder.content
    assert "cannot read the image: it is not a readable image (its format is unknown); fix" in error_message(
        Entry("x", image=b"no image")
    )
    assert error_message(Entry("x", image=b"")) == "entry 'x': its image is empty: replace it or remove the entry"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "decompression bomb" in error_message(Entry("bomb", image=str(tmp_path / "intact.jpg")))


def test_invalid_unicode_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Bär".encode("latin-1"))
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(save_image(tmp_path / "red.png").read_bytes())
    gone, latin, _, name = open_corpus(tmp_path)
    assert error_message(latin) == "entry 'latin.txt': its text is not valid Unicode at character 1: fix it"
    assert "gone.txt does not exist or is not a regular file" in error_message(gone)
    assert error_message(name) == "entry '\\udcff.png': its id is not valid Unicode at character 0: fix it"


def test_images_of_every_kind_become_rgb(tmp_path: Path) -> None:
    def opened(name: str) -> Image.Image:
        image = Entry(name, image=str(tmp_path / name)).item()["image"]
        assert image.mode == "RGB"
        return image

    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    assert opened("cmyk.tiff").getpixel((0, 0)) == RED
    Image.fromarray(np.full((3, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert opened("deep.png").getpixel((0, 0)) == (156, 156, 156)  # 40000 // 256
    Image.fromarray(np.full((3, 4), 40000, ">u2")).save(tmp_path / "big-endian.tiff")
    assert opened("big-endian.tiff").getpixel((0, 0)) == (156, 156, 156)
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([*BLUE, *RED])
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    assert opened("palette.png").getpixel((0, 0)) == (255, 127, 127)  # half transparent, on white
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert opened("moving.gif").getpixel((0, 0)) == RED
    sideways = Image.new("RGB", (2, 1), RED)
    sideways.putpixel((1, 0), BLUE)
    exif = sideways.getexif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    sideways.save(tmp_path / "turned.png", exif=exif)
    upright = opened("turned.png")
    assert upright.size == (1, 2) and [upright.getpixel((0, y)) for y in (0, 1)] == [RED, BLUE]


def test_a_text_of_white_space_counts_as_missing(tmp_path: Path) -> None:
    image = str(save_image(tmp_path / "red.png"))
    assert "it has neither a text nor an image" in error_message(Entry("x", text=" \n"))
    assert list(Entry("x", text=" ", image=image).item()) == ["image"]
    assert Entry("x", text=" ", image=image).content == Entry("y", image=image).content


def test_entries_that_look_the_same_to_the_model_have_the_same_content(tmp_path: Path) -> None:
    red, blue = str(save_image(tmp_path / "red.png")), str(save_image(tmp_path / "blue.png", BLUE))
    again = save_image(tmp_path / "again.png")
    assert Entry("1", "a", red, {"x": 1}).content == Entry("2", "a", str(again)).content
    assert Entry("1", "a", red).content == Entry("1", "a", again.read_bytes()).content
    different = [Entry("1", "a"), Entry("1", "a "), Entry("1", "a", red), Entry("1", "a", blue), Entry("1", None, red)]
    assert len({entry.content for entry in different}) == len(different)
    assert Entry("1", "a cat").content == "69249582e53fd6b75cb5d39a61b95ded"
