"""Miniature CIRCO: four queries and eight images."""

import json
from collections.abc import Sequence
from pathlib import Path

from .hub_files import save_gray_tile


IMAGES = 8


def write_circo(folder: Path, queries: Sequence[tuple[int, str, Sequence[int]]]) -> Path:
    """Write the repository of CIRCO, given the number of the image, the caption and the positives of each query."""
    coco = folder / "COCO2017_unlabeled"
    for number in range(IMAGES):
        save_gray_tile(coco / "unlabeled2017" / f"{number:012d}.jpg", number)
    for path in (folder / "annotations", coco / "annotations"):
        path.mkdir(parents=True, exist_ok=True)
    # COCO's file is not in the order of ids.
    info = [{"file_name": f"{number:012d}.jpg", "id": number} for number in reversed(range(IMAGES))]
    (coco / "annotations" / "image_info_unlabeled2017.json").write_text(json.dumps({"images": info}))
    rows = [
        {
            "reference_img_id": image,
            "target_img_id": positives[0],
            "relative_caption": caption,
            "shared_concept": "a gray tile",
            "gt_img_ids": list(positives),
            "id": number,
            "semantic_aspects": ["direct_addressing"],
        }
        for number, (image, caption, positives) in enumerate(queries)
    ]
    (folder / "annotations" / "val.json").write_text(json.dumps(rows))
    return folder


def write_miniature(folder: Path) -> dict[str, str]:
    """Write the validation split, and return the arguments that open it."""
    queries = [(number, f"is lighter, as number {number + 1}", [number + 1, number + 2]) for number in range(4)]
    return {"circo_folder": str(write_circo(folder / "CIRCO", queries).relative_to(folder))}
