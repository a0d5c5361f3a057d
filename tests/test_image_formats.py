"""Formats: what is opened, and the reason why a file of another format is not."""

from pathlib import Path

import pytest
from format_files import FILES, HEIC

from unime import image_formats
from unime.image_formats import UNREAD_SUFFIXES, open_image_bytes


@pytest.mark.parametrize("name", ["SVG", "PDF", "PSD", "RAW (DNG, NEF, ARW, CR2, ...)", "EPS"])
def test_a_file_of_another_format_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=str(FILES[name].shown)):
        open_image_bytes(FILES[name].content)
    assert FILES[name].suffix in UNREAD_SUFFIXES


def test_heic_without_the_extra_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "image_formats", lambda: image_formats.IMAGE_FORMATS)
    with pytest.raises(ValueError, match="^it is HEIC: install the extra `heic`, or save it as JPEG$"):
        open_image_bytes(HEIC)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "it is a RAW file of a camera"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- a --><svg/>", "it is an SVG drawing"),
        (b"\x1f\x8b\x08svgz", "it is compressed with gzip"),
        (b"\xff\x0a", "it is JPEG XL"),
        (b"\n<HTML><body>", "it is a web page"),
        (b"GIF89", "its format is unknown"),
        (b"text", "its format is unknown"),
    ],
)
def test_a_format_is_recognized_by_its_first_bytes(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_image_bytes(content)


@pytest.mark.parametrize(("name", "answer"), [("PNG", True), ("SVG", False), ("RAW (DNG, NEF, ARW, CR2, ...)", True)])
def test_a_file_without_a_suffix_is_an_image_if_pillow_can_open_it(tmp_path: Path, name: str, answer: bool) -> None:
    (tmp_path / "file").write_bytes(FILES[name].content)
    assert image_formats.is_image(tmp_path / "file") is answer
