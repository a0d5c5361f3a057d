"""SugarCrepe (Hsieh et al., arXiv 2306.14610): COCO images, each with its caption and a minimally edited false one.

A row is correct if and only if the image is strictly closer to its caption. The score of a group (replace, swap, add)
is the unweighted mean of its perturbations. Items have no instruction: the prompts for images and for texts are the
paper's.
"""

from pathlib import Path

from ...data.hub_tables import read_json
from ..image_folder import ImageFolder
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

    images = ImageFolder(path.name, root, "give COCO's val2017 as --sugarcrepe-images")
    row_ids = list(rows)
    return CompositionalTask(
        kind,
        images.lazy_items(({"image": row["filename"]} for row in rows.values()), lambda row: f"row {row_ids[row]}"),
        images.lazy_items({"text": row["caption"]} for row in rows.values()),
        images.lazy_items({"text": row["negative_caption"]} for row in rows.values()),
    )
