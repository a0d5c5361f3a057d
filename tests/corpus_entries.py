"""Helpers of the corpus tests: small images, files of lines, and the error of a bad entry."""

import json
from pathlib import Path

import pytest
from PIL import Image

from unime.corpus.entry import Entry


RED, BLUE = (255, 0, 0), (0, 0, 255)


def save_image(path: Path, colour: tuple[int, int, int] = RED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path)
    return path


def write_lines(path: Path, rows: list[dict | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def error_message(entry: Entry) -> str:
    """Return the error message of an entry that cannot be embedded, which names the entry."""
    with pytest.raises(ValueError) as error:
        entry.item()
    message = str(error.value)
    assert message.startswith(f"entry {entry.id!r}: ") and "\n" not in message
    return message
