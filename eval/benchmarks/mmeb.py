"""MMEB (Jiang et al., arXiv 2410.05160): 36 sets of 1,000 queries, each with candidates of its own.

Files: `TIGER-Lab/MMEB-eval`, a configuration per set, split `test`, and its `images.zip` unpacked. The first candidate
of a row is the right one. Published strings hold `<|image_1|>`, the instruction and the text at once; here they become
items, whose instruction the chat template places. Means as the leaderboard takes them: over the sets of a meta-task,
over the 20 sets whose training data MMEB-train holds (IND) and the 16 others (OOD), and over all 36, *the* overall.
The mean of the four meta-tasks, which UniME's paper prints as "Overall", is there under its own name.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ...data.hub_tables import check_text_columns, open_hub_table, select_subsets
from ...data.image_files import read_image
from ...data.mmeb_train import INSTRUCTIONS, mmeb_item
from ...data.target_prompts import BY_META_TASK, with_instruction
from ..lazy_items import LazyItems, file_identity
from ..tasks import RetrievalTask


_IMAGE, _CROP = INSTRUCTIONS["CIRR"][1], INSTRUCTIONS["MSCOCO"][1]
_REGION = "Select the portion of the image that follows the language expressions"

# What MMEB-train holds is asked as there; ImageNet is spelt otherwise, and the crops of MSCOCO are asked otherwise.
_IND = {
    "classification": ("ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397"),
    "vqa": ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
    "retrieval": (
        "VisDial",
        "CIRR",
        "VisualNews_t2i",
        "VisualNews_i2t",
        "MSCOCO_t2i",
        "MSCOCO_i2t",
        "NIGHTS",
        "WebQA",
    ),
    "grounding": ("MSCOCO",),
}
_ASKED = INSTRUCTIONS | {
    "ImageNet-1K": INSTRUCTIONS["ImageNet_1K"],
    "MSCOCO": ("Crop the image to to isolate the object labeled as", _CROP),
}
_OOD = {
    "classification": {
        "Place365": INSTRUCTIONS["SUN397"],
        "ImageNet-A": INSTRUCTIONS["ImageNet_1K"],
        "ImageNet-R": INSTRUCTIONS["ImageNet_1K"],
        "ObjectNet": INSTRUCTIONS["VOC2007"],
        "Country211": ("Identify the country depicted in the image", None),
    },
    "vqa": dict.fromkeys(("ScienceQA", "VizWiz", "GQA", "TextVQA"), INSTRUCTIONS["OK-VQA"]),
    "retrieval": {
        "FashionIQ": ("Find an image to match the fashion image and style note:", _IMAGE),
        "Wiki-SS-NQ": ("Find the document image that can answer the given query:", "Represent the given image"),
        "OVEN": (
            "Retrieve a Wikipedia image-description pair that provides evidence for the question of this image:",
            INSTRUCTIONS["WebQA"][1],
        ),
        "EDIS": (
            "Find a news image that matches the provided caption:",
            "Represent the given image with related text information:",
        ),
    },
    "grounding": {
        "RefCOCO": (f"{_REGION}.", _CROP),
        "RefCOCO-Matching": (f"{_REGION}:", f"{_REGION}:"),
        "Visual7W-Pointing": ("Select the portion of the image that answers the question", _CROP),
    },
}
# set -> (meta-task, whether MMEB-train has it, instruction of its queries, of its candidates or None), as published
SETS = {
    name: (meta_task, name in names, *asked)
    for meta_task, names in _IND.items()
    for name, asked in ({name: _ASKED[name] for name in names} | _OOD[meta_task]).items()
}
COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")


def tasks(
    source: str = "TIGER-Lab/MMEB-eval",
    image_root: str | Path = ".",
    subsets: Sequence[str] | None = None,
    target_prompts: bool = False,
) -> list[RetrievalTask]:
    """Open MMEB; images are read when they are embedded.

    Args:
        source (`str`, *optional*, defaults to the Hub's): Hub id, or a folder with the same layout.
        image_root (`str` or `Path`, *optional*, defaults to the working folder): Where `images.zip` was unpacked.
        subsets (`Sequence[str]`, *optional*, defaults to all of `SETS`): The sets.
        target_prompts (`bool`, *optional*, defaults to `False`):
            Give candidates without an instruction that of their meta-task, as the training may have done.

    Raises:
        ValueError: There is no such set, it lacks a column, a row has no candidates, or images are missing.
    """
    return [_task(name, source, Path(image_root), target_prompts) for name in select_subsets(subsets, SETS, "MMEB")]


def _task(name: str, source: str, root: Path, target_prompts: bool) -> RetrievalTask:
    meta_task, in_distribution, of_query, of_candidate = SETS[name]
    prompt = BY_META_TASK[meta_task] if target_prompts and of_candidate is None else None
    rows = open_hub_table(f"MMEB {name}", source, COLUMNS, name)
    check_text_columns(f"MMEB {name}", rows, ("qry_text",), ("tgt_text",))
    queries, pools = [], []
    numbers: dict[tuple[str, str], int] = {}  # text and path of a candidate -> its number: each is embedded once
    for number, row in enumerate(rows):
        paths = row["tgt_img_path"] or []
        if not len(row["tgt_text"]) == len(paths) > 0:
            raise ValueError(
                f"MMEB {name}, row {number} has {len(row['tgt_text'])} texts and {len(paths)} images "
                "as candidates: give equally many of both, and at least one"
            )
        queries.append(mmeb_item(row["qry_text"], row["qry_img_path"], of_query))
        candidates = zip(row["tgt_text"], paths, strict=True)
        pools.append([numbers.setdefault(candidate, len(numbers)) for candidate in candidates])
    _check_images(name, root, [item["image"] for item in queries], [path for _, path in numbers])

    def stored(items: list[dict]) -> LazyItems:
        return LazyItems(
            items, lambda path: read_image(path, f"MMEB {name}", root), lambda path: file_identity(root / path)
        )

    return RetrievalTask(
        name,
        meta_task,
        stored(queries),
        stored([with_instruction(mmeb_item(text, path, of_candidate), prompt) for text, path in numbers]),
        [pool[:1] for pool in pools],
        pools,
        distribution="IND" if in_distribution else "OOD",
    )


def _check_images(name: str, root: Path, of_queries: list[str | None], of_candidates: list[str]) -> None:
    """Refuse a set whose images are not there before any is embedded."""
    places = [(f"row {row}", path) for row, path in enumerate(of_queries)]
    places += [("a candidate", path) for path in of_candidates]
    for where, path in places:
        if not path or os.path.exists(root / path):
            continue
        first = root / Path(path).parts[0]
        reason = f"there is no image {root / path}" if first.exists() else f"there is no folder {first}"
        raise ValueError(
            f"MMEB {name}, {where}: {reason}: unpack images.zip of MMEB-eval, and give its place as image_root"
        )
