"""MMEB-train (TIGER-Lab, arXiv 2410.05160), the training data of the paper: 20 subsets in the row format.

A published string holds everything at once: `<|image_1|>` for the image, the instruction and the text. Here it
becomes an item, and the chat template places its instruction.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from .hub_tables import check_text_columns, open_hub_table, select_subsets
from .rows import with_images, with_provenance
from .target_prompts import CAPTION, CLASS, REPLY, with_instruction


_IMAGE_TOKEN = "<|image_1|>"  # a few subsets have it before a text without an image
_ANSWER = "Represent the given image with the following question:"
_IMAGE = "Represent the given image."
_WIKIPEDIA = "Represent the given Wikipedia image with related text information:"

# subset -> (instruction of its queries, instruction of its candidates or None), as published
INSTRUCTIONS = {
    "ImageNet_1K": ("Represent the given image for classification", None),
    "N24News": ("Represent the given news image with the following caption for domain classification:", None),
    "HatefulMemes": (
        "Represent the given image for binary classification to determine "
        "whether it constitutes hateful speech or not",
        None,
    ),
    "VOC2007": ("Identify the object shown in the image", None),
    "SUN397": ("Identify the scene shown in the image", None),
    "OK-VQA": (_ANSWER, None),
    "A-OKVQA": (_ANSWER, None),
    "DocVQA": (_ANSWER, None),
    "InfographicsVQA": (_ANSWER, None),
    "ChartQA": (_ANSWER, None),
    "Visual7W": (_ANSWER, None),
    "VisDial": (
        "Represent the given dialogue about an image, which is used for image retrieval:",
        "Represent the given image",
    ),
    "CIRR": ("Given an image, find a similar everyday image with the described changes:", _IMAGE),
    "VisualNews_t2i": ("Retrieve an image of this news caption.", _IMAGE),
    "VisualNews_i2t": ("Find a caption for the news in the given photo.", None),
    "MSCOCO_t2i": ("Find me an everyday image that matches the given caption:", _IMAGE),
    "MSCOCO_i2t": ("Find an image caption describing the given everyday image.", None),
    "NIGHTS": ("Find a day-to-day image that looks similar to the provided image.", _IMAGE),
    "WebQA": ("Find a Wikipedia image that answers this question:", _WIKIPEDIA),
    "MSCOCO": (
        "Select the portion of the image that isolates the object labeled as",
        "Represent the given cropped image of the object",
    ),
}

# Target prompts of the subsets whose candidates have no instruction, see `target_prompts`.
TARGET_PROMPTS = {
    **dict.fromkeys(("ImageNet_1K", "N24News", "HatefulMemes", "VOC2007", "SUN397"), CLASS),
    **dict.fromkeys(("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"), REPLY),
    **dict.fromkeys(("VisualNews_i2t", "MSCOCO_i2t"), CAPTION),
}

COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")


def mmeb_train(
    source: str = "TIGER-Lab/MMEB-train",
    image_root: str | Path = ".",
    subsets: Sequence[str] | None = None,
    max_rows_per_subset: int | None = 50_000,
    seed: int = 0,
    target_prompts: bool = False,
    subset_weights: Mapping[str, float] | None = None,
) -> Dataset:
    """Open MMEB-train; images are read when a row is read.

    The paper's 662k pairs are all 20 subsets with at most 50,000 rows of each (the limit of VLM2Vec). The paper
    describes in-batch negatives only, so the `neg_*` columns are not used.

    Args:
        source (`str`, *optional*, defaults to `"TIGER-Lab/MMEB-train"`): Hub id, or a folder with the same layout.
        image_root (`str` or `Path`, *optional*, defaults to the working folder):
            Folder whose `images/` holds the unpacked files of `images_zip/`: `unzip images_zip/CIRR.zip -d images/`.
        subsets (`Sequence[str]`, *optional*, defaults to all of `INSTRUCTIONS`): Subsets to open.
        max_rows_per_subset (`int`, *optional*, defaults to 50,000):
            Maximum number of rows of one subset, drawn at random; `None` takes all.
        seed (`int`, *optional*, defaults to 0): Seed of that draw.
        target_prompts (`bool`, *optional*, defaults to `False`):
            Give candidates without an instruction the one in `TARGET_PROMPTS`; evaluate with the same setting.
        subset_weights (`Mapping[str, float]`, *optional*, defaults to 1 for each subset):
            How often the rows of a subset occur in an epoch, after the limit: 0.5 takes half of them, 2 repeats each
            row.

    Raises:
        ValueError: A subset is unknown, it lacks a column or a text, or its zip file was not unpacked. Later, when a
            row is read: its image is missing.
    """
    tables, subset_weights = [], subset_weights or {}
    select_subsets(subset_weights, INSTRUCTIONS, "MMEB-train")
    for subset in select_subsets(subsets, INSTRUCTIONS, "MMEB-train"):
        name = f"MMEB-train {subset}"
        published = open_hub_table(name, source, COLUMNS, subset, "original")
        check_text_columns(name, published, ("qry", "pos_text"))
        _check_unpacked(name, subset, published[0], Path(image_root))
        published = with_provenance(published, name)
        if max_rows_per_subset is not None and len(published) > max_rows_per_subset:
            published = published.shuffle(seed=seed).select(range(max_rows_per_subset))
        if subset in subset_weights:
            rows = range(round(subset_weights[subset] * len(published)))
            published = published.select([row % len(published) for row in rows])
        settings = {"subset": subset, "prompt": TARGET_PROMPTS.get(subset) if target_prompts else None}
        tables.append(published.map(_row, fn_kwargs=settings, remove_columns=published.column_names))
    return with_images(concatenate_datasets(tables), image_root)


def _check_unpacked(name: str, subset: str, row: dict, root: Path) -> None:
    """Check that the images of a row, and so those of its subset's zip file, are where the paths say."""
    for path in (row["qry_image_path"], row["pos_image_path"]):
        if path and not os.path.exists(root / path):
            raise ValueError(
                f"{name}: the image {root / path} does not exist; unpack the subset's zip file into the folder images "
                f"by `unzip images_zip/{subset}.zip -d {root / 'images'}/`, or give the folder that holds images/ as "
                "image_root"
            )


def _row(published: dict, subset: str, prompt: str | None) -> dict:
    query_instruction, candidate_instruction = INSTRUCTIONS[subset]
    candidate = mmeb_item(published["pos_text"], published["pos_image_path"], candidate_instruction)
    return {
        "query": mmeb_item(published["qry"], published["qry_image_path"], query_instruction),
        "positive": with_instruction(candidate, prompt),
        "task": subset,
        "where": published["where"],
    }


def mmeb_item(text: str, image: str, instruction: str | None) -> dict[str, str | None]:
    """Return the item for a published string and image path, without the image token and with its instruction apart.

    Args:
        text (`str`): Published string.
        image (`str`): Image path, empty if there is none.
        instruction (`str`, *optional*): Instruction that the string may start with.
    """
    text = text.replace(_IMAGE_TOKEN, "").strip()
    if instruction is None or not text.startswith(instruction):
        return {"text": text or None, "image": image or None, "instruction": None}
    rest = text.removeprefix(instruction).strip()
    return {"text": rest or None, "image": image or None, "instruction": instruction}
