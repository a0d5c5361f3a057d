"""CIRCO (Baldrati et al., arXiv 2303.15247): an image with a requested change retrieves COCO's unlabeled images.

The first composed image retrieval set with several positives per query, 4.53 on average, and the metric mAP@k for
k = 5, 10, 25, 50; mAP@5 is the task's score. The 220 queries of the validation split are evaluated, each compared with
all 123,403 images, its own included: the positives of the test split are known only to CIRCO's server. R@k counts any
positive; CIRCO's own recall counts only the first.

Layout: README and `src/dataset.py` of miccunifi/CIRCO on GitHub; metric: its `src/evaluation.py`; candidates:
`src/validate.py` of miccunifi/SEARLE. CIRCO has no prompts of its own: the instructions are MMEB's for CIRR, which has
the same task. SEARLE's CLIP reads "a photo of $ that {relative_caption}".
"""

from pathlib import Path

from ...data.hub_tables import read_json
from ..image_folder import ImageFolder
from ..tasks import RetrievalTask


QUERY_INSTRUCTION = "Given an image, find a similar everyday image with the described changes:"
CANDIDATE_INSTRUCTION = "Represent the given image."

_KEYS = {"reference_img_id": int, "relative_caption": str, "gt_img_ids": list}


def tasks(folder: str | Path) -> list[RetrievalTask]:
    """Open the validation split.

    Args:
        folder (`str` or `Path`): The repository of CIRCO, with COCO's unlabeled images in it:
            `annotations/val.json`, `COCO2017_unlabeled/annotations/image_info_unlabeled2017.json` and
            `COCO2017_unlabeled/unlabeled2017/*.jpg`.

    Raises:
        ValueError: A file, a key of a row, or an image is missing.
    """
    coco = Path(folder) / "COCO2017_unlabeled"
    index_of_id, names = _candidates(coco / "annotations" / "image_info_unlabeled2017.json")
    rows = read_json("CIRCO", Path(folder) / "annotations" / "val.json", list)
    for number, row in enumerate(rows):
        missing = [
            key for key, kind in _KEYS.items() if not (isinstance(row, dict) and isinstance(row.get(key), kind))
        ]
        if missing:
            raise ValueError(f"CIRCO val, row {number}: missing {', '.join(missing)}; use the published file")
        for image_id in (row["reference_img_id"], *row["gt_img_ids"]):
            if image_id not in index_of_id:
                raise ValueError(
                    f"CIRCO val, row {number}: COCO's unlabeled images have no image {image_id!r}; use both files as "
                    "published"
                )
    images = ImageFolder("CIRCO", coco / "unlabeled2017", "unpack COCO's unlabeled2017 there")
    queries = (
        {
            "image": names[index_of_id[row["reference_img_id"]]],
            "text": row["relative_caption"],
            "instruction": QUERY_INSTRUCTION,
        }
        for row in rows
    )
    candidates = ({"image": name, "instruction": CANDIDATE_INSTRUCTION} for name in names)
    return [
        RetrievalTask(
            "circo_val",
            "retrieval",
            images.lazy_items(queries, "query {}".format),
            images.lazy_items(candidates, "image {}".format),
            [list(dict.fromkeys(index_of_id[image_id] for image_id in row["gt_img_ids"])) for row in rows],
            metric="mAP@5",
        )
    ]


def _candidates(path: Path) -> tuple[dict[int, int], list[str]]:
    """Return the index of each image id, and the file of each image, in the order of COCO's file."""
    index_of_id: dict[int, int] = {}
    names = []
    rows = read_json("CIRCO", path, dict).get("images")
    if not isinstance(rows, list):
        raise ValueError(f"CIRCO: {path} has no list images; use COCO's file as published")
    for row in rows:
        try:
            index_of_id[row["id"]] = len(names)
            names.append(str(row["file_name"]))
        except (LookupError, TypeError):
            raise ValueError(
                f"CIRCO: image {len(names)} of {path} has no id or no file_name; use COCO's file as published"
            ) from None
    return index_of_id, names
