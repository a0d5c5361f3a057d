"""Miniature MMEB-eval: 36 subsets of eight queries, with texts, images or both as candidates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..benchmarks.mmeb import SETS
from .hub_files import save_gray_tile, write_hub_dataset


ROWS = 8  # per subset, each about a number


def published_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of a subset: `<|image_1|>`, instruction and text in one string, the positive first."""
    meta_task, _, query_instruction, candidate_instruction = SETS[name]
    is_text_query = name.endswith("_t2i") or name in ("VisDial", "Wiki-SS-NQ", "WebQA", "EDIS")
    # Published EDIS and WebQA queries have the token although they are texts.
    token = "<|image_1|>\n" if not is_text_query or name in ("WebQA", "EDIS") else ""
    has_image = candidate_instruction is not None
    target = f"<|image_1|>\n{candidate_instruction}\n" if has_image else ""
    rows = []
    for number in range(ROWS):
        text = f" number {number}" if is_text_query or meta_task == "vqa" else ""
        candidates = [(number + step) % ROWS for step in range(4)]
        rows.append(
            {
                "qry_text": f"{token}{query_instruction}{text}\n",
                "qry_img_path": "" if is_text_query else f"images/{name}/{number}.png",
                "tgt_text": [target or f"number {candidate}" for candidate in candidates],
                "tgt_img_path": [f"images/{name}/{candidate}.png" if has_image else "" for candidate in candidates],
            }
        )
    return rows


def write_images(folder: Path, names: Sequence[str]) -> None:
    """Write the images of subsets, as `images.zip` holds them."""
    for name in names:
        for number in range(ROWS):
            save_gray_tile(folder / "images" / name / f"{number}.png", number)


def write_miniature(folder: Path) -> dict[str, str]:
    """Write the table and the images of every subset, and return the arguments that open them."""
    place = write_hub_dataset(folder / "MMEB-eval", {name: published_rows(name) for name in SETS})
    write_images(place, list(SETS))
    return {"mmeb_source": "MMEB-eval", "mmeb_images": "MMEB-eval"}
