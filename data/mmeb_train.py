"""MMEB-train (TIGER-Lab, arXiv 2410.05160), the training data of the paper: 20 sets in the row contract.

The published strings hold everything at once: `<|image_1|>` for the image, the instruction, the text. Here they
become items, whose instruction the chat template places.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from .hub_tables import check_text_columns, open_hub_table, select_subsets
from .rows import with_images, with_provenance
from .target_prompts import CAPTION, CLASS, REPLY, with_instruction


_IMAGE_TOKEN = "<|image_1|>"  # in a few sets it stands before a text that has no image
_ANSWER = "Represent the given image with the following question:"
_IMAGE = "Represent the given image."
_WIKIPEDIA = "Represent the given Wikipedia image with related text information:"

# set -> (the instruction of its queries, that of its candidates or None), as published
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

# What candidates without an instruction are, see `target_prompts`.
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
    """Open MMEB-train; images are read when a row is, not before.

    The paper's 662k pairs are all 20 sets with at most 50,000 rows of each (VLM2Vec's cap). It describes in-batch
    negatives only, so the `neg_*` columns are left alone.

    Args:
        source (`str`, *optional*, defaults to the Hub's): Hub id, or a folder with the same layout.
        image_root (`str` or `Path`, *optional*, defaults to the working folder):
            Where the zip files of `images_zip/` were unpacked: the paths begin with `images/`.
        subsets (`Sequence[str]`, *optional*, defaults to all of `INSTRUCTIONS`): The sets.
        cap (`int`, *optional*, defaults to 50,000): Most rows of one set, drawn at random; `None` takes all.
        seed (`int`, *optional*, defaults to 0): Which rows a cap takes.
        target_prompts (`bool`, *optional*, defaults to `False`):
            Give candidates without an instruction that of `TARGET_PROMPTS`; evaluate with the same.
        subset_weights (`Mapping[str, float]`, *optional*, defaults to 1 for all):
            How often the rows of a set come in an epoch, after the cap: 0.5 takes half of them, 2 all of them twice.

    Raises:
        ValueError: There is no such set, or it lacks a column or a text. When a row is read, its image is missing.
    """
    parts, subset_weights = [], subset_weights or {}
    select_subsets(subset_weights, INSTRUCTIONS, "MMEB-train")
    for subset in select_subsets(subsets, INSTRUCTIONS, "MMEB-train"):
        name = f"MMEB-train {subset}"
        published = open_hub_table(name, source, COLUMNS, subset, "original")
        check_text_columns(name, published, ("qry", "pos_text"))
        published = with_provenance(published, name)
        if max_rows_per_subset is not None and len(published) > max_rows_per_subset:
            published = published.shuffle(seed=seed).select(range(max_rows_per_subset))
        if subset in subset_weights:
            rows = range(round(subset_weights[subset] * len(published)))
            published = published.select([row % len(published) for row in rows])
        settings = {"subset": subset, "prompt": TARGET_PROMPTS.get(subset) if target_prompts else None}
        parts.append(published.map(_row, fn_kwargs=settings, remove_columns=published.column_names))
    return with_images(concatenate_datasets(parts), image_root)


def _row(published: dict, subset: str, prompt: str | None) -> dict:
    of_query, of_candidate = INSTRUCTIONS[subset]
    candidate = mmeb_item(published["pos_text"], published["pos_image_path"], of_candidate)
    return {
        "query": mmeb_item(published["qry"], published["qry_image_path"], of_query),
        "positive": with_instruction(candidate, prompt),
        "task": subset,
        "where": published["where"],
    }


def mmeb_item(text: str, image: str, instruction: str | None) -> dict[str, str | None]:
    """Turn a published string and path into an item: no control tokens, the instruction apart."""
    text = text.replace(_IMAGE_TOKEN, "").strip()
    if instruction is None or not text.startswith(instruction):
        return {"text": text or None, "image": image or None, "instruction": None}
    rest = text.removeprefix(instruction).strip()
    return {"text": rest or None, "image": image or None, "instruction": instruction}
