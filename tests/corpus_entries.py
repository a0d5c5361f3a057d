"""What tests of a corpus share: small images, files of lines, and what a bad entry says."""

import json
from pathlib import Path

import pytest
from PIL import Image

from unime.corpus.entry import Entry


RED, BLUE = (255, 0, 0), (0, 0, 255)


def save(path: Path, colour: tuple[int, int, int] = RED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path)
    return path


def write(path: Path, rows: list[dict | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def reason(entry: Entry) -> str:
    """What an entry that cannot be embedded says when it is opened: one sentence that names it."""
    with pytest.raises(ValueError) as error:
        entry.item()
    message = str(error.value)
    assert message.startswith(f"entry {entry.id!r}: ") and "\n" not in message
    return message
