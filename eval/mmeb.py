"""MMEB (Jiang et al., arXiv 2410.05160): 36 sets of 1,000 queries, each with candidates of its own.

Files: `TIGER-Lab/MMEB-eval`, a configuration per set, split `test`, and its `images.zip` unpacked. The first candidate
of a row is the right one. Published strings hold `<|image_1|>`, the instruction and the text at once; here they become
items, whose instruction the chat template places. Means as the leaderboard takes them: over the sets of a meta-task,
over the 20 sets whose training data MMEB-train holds (IND) and the 16 others (OOD), and over all 36, *the* overall.
The mean of the four meta-tasks, which UniME's paper prints as "Overall", is there under its own name.
"""

from collections.abc import Sequence
from pathlib import Path

from datasets import load_dataset

from ..data.mmeb import mmeb_item
from ..data.rows import read_picture
from .stored import StoredItems, file_identity
from .tasks import RetrievalTask


_ANSWER = "Represent the given image with the following question:"
_PICTURE = "Represent the given image."
_WIKIPEDIA = "Represent the given Wikipedia image with related text information:"
_CROP = "Represent the given cropped image of the object"
_CLASSIFY = "Represent the given image for classification"
_NEWS = "Represent the given news image with the following caption for domain classification:"
_HATE = "Represent the given image for binary classification to determine whether it constitutes hateful speech or not"
_OBJECT, _SCENE = "Identify the object shown in the image", "Identify the scene shown in the image"
_DIALOGUE = "Represent the given dialogue about an image, which is used for image retrieval:"
_EVIDENCE = "Retrieve a Wikipedia image-description pair that provides evidence for the question of this image:"
_REGION = "Select the portion of the image that follows the language expressions"

# set -> (meta-task, whether MMEB-train has it, instruction of its queries, of its candidates or None), as published
SETS = {
    "ImageNet-1K": ("classification", True, _CLASSIFY, None),
    "N24News": ("classification", True, _NEWS, None),
    "HatefulMemes": ("classification", True, _HATE, None),
    "VOC2007": ("classification", True, _OBJECT, None),
    "SUN397": ("classification", True, _SCENE, None),
    "Place365": ("classification", False, _SCENE, None),
    "ImageNet-A": ("classification", False, _CLASSIFY, None),
    "ImageNet-R": ("classification", False, _CLASSIFY, None),
    "ObjectNet": ("classification", False, _OBJECT, None),
    "Country211": ("classification", False, "Identify the country depicted in the image", None),
    "OK-VQA": ("vqa", True, _ANSWER, None),
    "A-OKVQA": ("vqa", True, _ANSWER, None),
    "DocVQA": ("vqa", True, _ANSWER, None),
    "InfographicsVQA": ("vqa", True, _ANSWER, None),
    "ChartQA": ("vqa", True, _ANSWER, None),
    "Visual7W": ("vqa", True, _ANSWER, None),
    "ScienceQA": ("vqa", False, _ANSWER, None),
    "VizWiz": ("vqa", False, _ANSWER, None),
    "GQA": ("vqa", False, _ANSWER, None),
    "TextVQA": ("vqa", False, _ANSWER, None),
    "VisDial": ("retrieval", True, _DIALOGUE, "Represent the given image"),
    "CIRR": (
        "retrieval",
        True,
        "Given an image, find a similar everyday image with the described changes:",
        _PICTURE,
    ),
    "VisualNews_t2i": ("retrieval", True, "Retrieve an image of this news caption.", _PICTURE),
    "VisualNews_i2t": ("retrieval", True, "Find a caption for the news in the given photo.", None),
    "MSCOCO_t2i": ("retrieval", True, "Find me an everyday image that matches the given caption:", _PICTURE),
    "MSCOCO_i2t": ("retrieval", True, "Find an image caption describing the given everyday image.", None),
    "NIGHTS": ("retrieval", True, "Find a day-to-day image that looks similar to the provided image.", _PICTURE),
    "WebQA": ("retrieval", True, "Find a Wikipedia image that answers this question:", _WIKIPEDIA),
    "FashionIQ": ("retrieval", False, "Find an image to match the fashion image and style note:", _PICTURE),
    "Wiki-SS-NQ": (
        "retrieval",
        False,
        "Find the document image that can answer the given query:",
        "Represent the given image",
    ),
    "OVEN": ("retrieval", False, _EVIDENCE, _WIKIPEDIA),
    "EDIS": (
        "retrieval",
        False,
        "Find a news image that matches the provided caption:",
        "Represent the given image with related text information:",
    ),
    "MSCOCO": ("grounding", True, "Crop the image to to isolate the object labeled as", _CROP),
    "RefCOCO": ("grounding", False, f"{_REGION}.", _CROP),
    "RefCOCO-Matching": ("grounding", False, f"{_REGION}:", f"{_REGION}:"),
    "Visual7W-Pointing": ("grounding", False, "Select the portion of the image that answers the question", _CROP),
}
COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")


def tasks(
    source: str = "TIGER-Lab/MMEB-eval", image_root: str | Path = ".", subsets: Sequence[str] | None = None
) -> list[RetrievalTask]:
    """Open MMEB; pictures are read when they are embedded.

    Args:
        source (`str`, *optional*, defaults to the Hub's): Hub id, or a folder with the same layout.
        image_root (`str` or `Path`, *optional*, defaults to the working folder): Where `images.zip` was unpacked.
        subsets (`Sequence[str]`, *optional*, defaults to all of `SETS`): The sets.

    Raises:
        ValueError: There is no such set, it lacks a column, a row has no candidates, or pictures are missing.
    """
    for name in subsets or ():
        if name not in SETS:
            raise ValueError(f"MMEB has no set {name!r}: choose from {', '.join(SETS)}")
    return [_task(name, source, Path(image_root)) for name in subsets or SETS]


def _task(name: str, source: str, root: Path) -> RetrievalTask:
    meta_task, in_distribution, of_query, of_candidate = SETS[name]
    rows = load_dataset(source, name, split="test")
    missing = [column for column in COLUMNS if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"{source}, set {name} lacks the column(s) {', '.join(missing)}; found: {', '.join(rows.column_names)}. "
            "Give MMEB-eval as it is published"
        )
    queries, pools = [], []
    numbers: dict[tuple[str, str], int] = {}  # text and path of a candidate -> its number: each is embedded once
    for number, row in enumerate(rows):
        if not len(row["tgt_text"]) == len(row["tgt_img_path"]) > 0:
            raise ValueError(
                f"MMEB {name}, row {number} has {len(row['tgt_text'])} texts and {len(row['tgt_img_path'])} pictures "
                "as candidates: give equally many of both, and at least one"
            )
        queries.append(mmeb_item(row["qry_text"], row["qry_img_path"], of_query))
        candidates = zip(row["tgt_text"], row["tgt_img_path"], strict=True)
        pools.append([numbers.setdefault(candidate, len(numbers)) for candidate in candidates])
    _check_pictures(name, root, [item["image"] for item in queries], [path for _, path in numbers])

    def stored(items: list[dict]) -> StoredItems:
        return StoredItems(
            items, lambda path: read_picture(path, f"MMEB {name}", root), lambda path: file_identity(root / path)
        )

    return RetrievalTask(
        name,
        meta_task,
        stored(queries),
        stored([mmeb_item(text, path, of_candidate) for text, path in numbers]),
        [pool[:1] for pool in pools],
        pools,
        distribution="IND" if in_distribution else "OOD",
    )


def _check_pictures(name: str, root: Path, of_queries: list[str | None], of_candidates: list[str]) -> None:
    """Refuse a set whose pictures are not there before any is embedded."""
    places = [(f"row {row}", path) for row, path in enumerate(of_queries)]
    places += [("a candidate", path) for path in of_candidates]
    for where, path in places:
        if not path or (root / path).exists():
            continue
        first = root / Path(path).parts[0]
        reason = f"there is no picture {root / path}" if first.exists() else f"there is no folder {first}"
        raise ValueError(
            f"MMEB {name}, {where}: {reason}: unpack images.zip of MMEB-eval, and give its place as image_root"
        )
