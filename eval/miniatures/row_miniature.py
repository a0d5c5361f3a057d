"""Miniature rows of one's own: eight captions, each with its image and a hard negative."""

import json
from pathlib import Path

from .hub_files import save_gray_tile


ROWS = 8


def write_miniature(folder: Path) -> dict[str, str]:
    """Write a JSONL file of rows with images beside it, and return the arguments that open it."""
    for number in range(ROWS):
        save_gray_tile(folder / "rows" / f"{number}.png", number)
    rows = [
        {"query": f"number {number}", "positive": f"{number}.png", "negatives": [f"{(number + 1) % ROWS}.png"]}
        for number in range(ROWS)
    ]
    (folder / "rows" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"rows": "rows/test.jsonl"}
