"""MMEB (Jiang et al., arXiv 2410.05160): 36 subsets of 1,000 queries, each query with its own candidates.

Files: `TIGER-Lab/MMEB-eval`, one configuration per subset, split `test`, and its `images.zip`, unpacked. The first
candidate of a row is the positive. Published strings hold `<|image_1|>`, the instruction and the text together; they
are split into items, and the chat template places the instruction. Means follow the leaderboard: per meta-task, over
the 20 subsets with training data in MMEB-train (IND) and the other 16 (OOD), and over all 36 (`overall`). The mean of
the four meta-tasks, which UniME's paper prints as "Overall", is reported as `mean_of_meta_tasks`.
"""

from collections.abc import Sequence
from pathlib import Path

from ...data.hub_tables import check_text_columns, open_hub_table, select_subsets
from ...data.mmeb_train import INSTRUCTIONS, mmeb_item
from ...data.target_prompts import BY_META_TASK, with_instruction
from ..image_folder import ImageFolder
from ..tasks import RetrievalTask


_IMAGE, _CROP = INSTRUCTIONS["CIRR"][1], INSTRUCTIONS["MSCOCO"][1]
_REGION = "Select the portion of the image that follows the language expressions"

# Subsets of MMEB-train keep its instructions, except that ImageNet has another spelling and MSCOCO another query.
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
_IND_INSTRUCTIONS = INSTRUCTIONS | {
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
# subset -> (meta-task, whether MMEB-train has it, query instruction, candidate instruction or None), as published
SETS = {
    name: (meta_task, name in names, *instructions)
    for meta_task, names in _IND.items()
    for name, instructions in ({name: _IND_INSTRUCTIONS[name] for name in names} | _OOD[meta_task]).items()
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
        source (`str`, *optional*, defaults to `"TIGER-Lab/MMEB-eval"`): Hub id, or a folder with the same layout.
        image_root (`str` or `Path`, *optional*, defaults to the working directory): Folder of the unpacked
            `images.zip`, or a clone of `TIGER-Lab/MMEB-V2` with `image-tasks/mmeb_v1.tar.gz` unpacked in place.
        subsets (`Sequence[str]`, *optional*, defaults to all): Keys of `SETS`.
        target_prompts (`bool`, *optional*, defaults to `False`): Give candidates without an instruction the
            instruction of their meta-task, for models that were trained with `target_prompts`.

    Raises:
        ValueError: A subset is unknown or lacks a column, a row has no candidates, or images are missing.
    """
    # In a clone of TIGER-Lab/MMEB-V2, where mmeb_v1.tar.gz was unpacked.
    places = [Path(image_root, "image-tasks", "MMEB"), Path(image_root, "image-tasks"), Path(image_root, "MMEB")]
    root = next((place for place in places if place.is_dir()), Path(image_root))
    return [_task(name, source, root, target_prompts) for name in select_subsets(subsets, SETS, "MMEB")]


def _task(name: str, source: str, root: Path, target_prompts: bool) -> RetrievalTask:
    meta_task, in_distribution, query_instruction, candidate_instruction = SETS[name]
    target_prompt = BY_META_TASK[meta_task] if target_prompts and candidate_instruction is None else None
    rows = open_hub_table(f"MMEB {name}", source, COLUMNS, name)
    check_text_columns(f"MMEB {name}", rows, ("qry_text",), ("tgt_text",))
    queries, pools = [], []
    indices: dict[tuple[str, str], int] = {}  # (text, image path) of a candidate -> its index; each is embedded once
    for row_index, row in enumerate(rows):
        paths = row["tgt_img_path"] or []
        if not len(row["tgt_text"]) == len(paths) > 0:
            raise ValueError(
                f"MMEB {name}, row {row_index}: expected equally many candidate texts and images and at least one, "
                f"got {len(row['tgt_text'])} texts and {len(paths)} images"
            )
        queries.append(mmeb_item(row["qry_text"], row["qry_img_path"], query_instruction))
        candidates = zip(row["tgt_text"], paths, strict=True)
        pools.append([indices.setdefault(candidate, len(indices)) for candidate in candidates])
    advice = "unpack images.zip of MMEB-eval and give its folder as --mmeb-images"
    images = ImageFolder(f"MMEB {name}", root, advice)
    candidate_items = [mmeb_item(text, path, candidate_instruction) for text, path in indices]
    return RetrievalTask(
        name,
        meta_task,
        images.lazy_items(queries, "row {}".format),
        images.lazy_items([with_instruction(item, target_prompt) for item in candidate_items], "candidate {}".format),
        [pool[:1] for pool in pools],
        pools,
        distribution="IND" if in_distribution else "OOD",
    )
