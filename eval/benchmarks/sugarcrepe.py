"""SugarCrepe (Hsieh et al., arXiv 2306.14610): images of COCO with a caption, and one that a small edit made false.

Right if and only if the image is strictly nearer to its caption. A group (replace, swap, add) is the plain mean of
its kinds, whatever their sizes. Prompts of images and texts are those of the paper, without instruction.
"""

import os
from pathlib import Path

from ...data.hub_tables import read_json
from ...data.image_files import read_image
from ..lazy_items import LazyItems, file_identity
from ..tasks import CompositionalTask


KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")


def tasks(folder: str | Path, image_root: str | Path) -> list[CompositionalTask]:
    """Open the seven files.

    Args:
        folder (`str` or `Path`): `data/` of the SugarCrepe repository: `add_att.json`, ..., `swap_obj.json`.
        image_root (`str` or `Path`): COCO's `val2017`.

    Raises:
        ValueError: A file, a key of a row, or an image is missing.
    """
    return [_task(kind, Path(folder) / f"{kind}.json", Path(image_root)) for kind in KINDS]


def _task(kind: str, path: Path, root: Path) -> CompositionalTask:
    if not path.exists():
        raise ValueError(f"there is no file {path}: give the folder data/ of SugarCrepe")
    rows = read_json("SugarCrepe", path, dict)
    for number, row in rows.items():
        texts = {key: value for key, value in row.items() if isinstance(value, str)} if isinstance(row, dict) else {}
        missing = [key for key in ("filename", "caption", "negative_caption") if key not in texts]
        if missing:
            raise ValueError(f"{path.name}, row {number} lacks {', '.join(missing)}")
        if not os.path.exists(root / row["filename"]):
            raise ValueError(
                f"{path.name}, row {number}: there is no image {root / row['filename']}: give COCO's val2017"
            )

    def stored(key: str, part: str) -> LazyItems:
        return LazyItems(
            [{part: row[key]} for row in rows.values()],
            lambda name: read_image(name, f"SugarCrepe {kind}", root),
            lambda name: file_identity(root / name),
        )

    return CompositionalTask(
        kind, stored("filename", "image"), stored("caption", "text"), stored("negative_caption", "text")
    )
