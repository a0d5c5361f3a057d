"""SugarCrepe (Hsieh et al., arXiv 2306.14610): COCO images, each with its caption and a minimally edited false one.

A row is correct if and only if the image is strictly closer to its caption. The score of a group (replace, swap, add)
is the unweighted mean of its perturbations. Items have no instruction: the prompts for images and for texts are the
paper's.
"""

import os
from pathlib import Path

from ...data.hub_tables import read_json
from ...data.image_files import read_image
from ..lazy_items import LazyItems, file_identity
from ..tasks import CompositionalTask


KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")


def tasks(folder: str | Path, image_root: str | Path) -> list[CompositionalTask]:
    """Open the seven perturbations.

    Args:
        folder (`str` or `Path`): `data/` of the SugarCrepe repository, which holds `add_att.json`, ...,
            `swap_obj.json`.
        image_root (`str` or `Path`): COCO's `val2017`.

    Raises:
        ValueError: A file, a key of a row, or an image is missing.
    """
    return [_task(kind, Path(folder) / f"{kind}.json", Path(image_root)) for kind in KINDS]


def _task(kind: str, path: Path, root: Path) -> CompositionalTask:
    if not path.exists():
        raise ValueError(f"the file {path} does not exist; give the folder data/ of the SugarCrepe repository")
    rows = read_json("SugarCrepe", path, dict)
    for row_id, row in rows.items():
        texts = {key: value for key, value in row.items() if isinstance(value, str)} if isinstance(row, dict) else {}
        missing = [key for key in ("filename", "caption", "negative_caption") if key not in texts]
        if missing:
            raise ValueError(f"{path.name}, row {row_id}: missing {', '.join(missing)}; use the published file")
        if not os.path.exists(root / row["filename"]):
            raise ValueError(
                f"{path.name}, row {row_id}: the image {root / row['filename']} does not exist; give COCO's val2017"
            )

    def lazy_items(row_key: str, item_key: str) -> LazyItems:
        return LazyItems(
            [{item_key: row[row_key]} for row in rows.values()],
            lambda name: read_image(name, f"SugarCrepe {kind}", root),
            lambda name: file_identity(root / name),
        )

    return CompositionalTask(
        kind, lazy_items("filename", "image"), lazy_items("caption", "text"), lazy_items("negative_caption", "text")
    )
