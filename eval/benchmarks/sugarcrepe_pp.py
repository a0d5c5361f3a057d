"""SugarCrepe++ (Dumpala et al., arXiv 2406.11171): COCO images with two true captions and a false one.

The captions of a row are SugarCrepe's true and false one, and a second true caption in other words. A row of the
image-text task is correct if and only if the image is strictly closer to both true captions than to the false one; a
row of the text-only task if and only if the true captions are strictly closer to each other than either is to the
false one. Random guesses score 1/3 on both. The score of a group (replace, swap, text) is the unweighted mean of its
perturbations. Items have no instruction: the prompts for images and for texts are the paper's.

Layout: `data/*.json` of Sri-Harsha/scpp on GitHub, lists of `id`, `filename`, `caption`, `caption2` and
`negative_caption`; both rules: its `VLMs/test_Variants_CLIP.py`. 4,757 rows.
"""

from pathlib import Path

from ...data.hub_tables import read_json
from ..image_folder import ImageFolder
from ..tasks import CompositionalTask


KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att")
_TEXTS = ("caption", "caption2", "negative_caption")


def tasks(folder: str | Path, image_root: str | Path) -> list[CompositionalTask]:
    """Open the five perturbations.

    Args:
        folder (`str` or `Path`): `data/` of the SugarCrepe++ repository, which holds `replace_att.json`, ...,
            `swap_obj.json`.
        image_root (`str` or `Path`): COCO's `val2017`.

    Raises:
        ValueError: A file, a key of a row, or an image is missing.
    """
    return [_task(kind, Path(folder) / f"{kind}.json", Path(image_root)) for kind in KINDS]


def _task(kind: str, path: Path, root: Path) -> CompositionalTask:
    name = f"SugarCrepe++ {kind}"
    rows = read_json(name, path, list)
    for number, row in enumerate(rows):
        texts = {key: value for key, value in row.items() if isinstance(value, str)} if isinstance(row, dict) else {}
        missing = [key for key in ("filename", *_TEXTS) if key not in texts]
        if missing:
            raise ValueError(
                f"SugarCrepe++ {kind}, row {number}: missing {', '.join(missing)}; use the published file"
            )
    images = ImageFolder(name, root, "give COCO's val2017 as --sugarcrepe-images")
    captions, paraphrases, negatives = (images.lazy_items({"text": row[key]} for row in rows) for key in _TEXTS)
    return CompositionalTask(
        kind,
        images.lazy_items(({"image": row["filename"]} for row in rows), "row {}".format),
        captions,
        negatives,
        paraphrases,
    )
