"""Image-caption retrieval in both directions, as reported by E5-V and UniME.

Short captions: Flickr30K (1,000 images) and COCO 5K, five captions per image. Long captions: ShareGPT4V-1k and
Urban1K (Long-CLIP, arXiv 2403.15378), the 5,000 test images of DOCCI (arXiv 2404.19753), and all of DCI (arXiv
2312.08578) as LoTLIP (arXiv 2410.05249) reads it, one caption per image. An image query is a hit if any of its
captions is among the first k, a caption query if its image is; R@k is the share of hits for k = 1, 5, 10. Items have
no instruction: the prompts for images and for texts are the paper's.
"""

import os
import re
from pathlib import Path

from ...data.hub_tables import check_text_columns, open_hub_table, read_json
from ...data.jsonl import json_lines, parse_object
from ..image_folder import ImageFolder, table_images
from ..lazy_items import LazyItems
from ..tasks import RetrievalTask


CAPTIONS_PER_IMAGE = 5  # a few COCO images have six; the paper uses the first five
_DCI_CAPTIONS = ("short_caption", "extra_caption")
SHAREGPT4V_ITEMS = 1000  # the first items of the file, which ShareGPT4V holds out from its training


def flickr30k(source: str = "royokong/flickr30k_test") -> list[RetrievalTask]:
    """Open the Flickr30K test images.

    Args:
        source (`str`, *optional*, defaults to `"royokong/flickr30k_test"`): Hub id or folder; split `test` with the
            columns `image` and `text` (a list).
    """
    return _short_captions("flickr30k", source)


def coco(source: str = "royokong/coco_test") -> list[RetrievalTask]:
    """Open COCO 5K.

    Args:
        source (`str`, *optional*, defaults to `"royokong/coco_test"`): Hub id or folder; split `test` with the columns
            `image` and `text` (a list).
    """
    return _short_captions("coco", source)


def _short_captions(name: str, source: str) -> list[RetrievalTask]:
    rows = open_hub_table(name, source, ("image", "text"))
    check_text_columns(name, rows, several=("text",))
    texts = [list(captions)[:CAPTIONS_PER_IMAGE] for captions in rows["text"]]
    images = table_images(rows, lambda row: f"{name}, row {row}", source)
    return _both_directions(name, "retrieval", images, texts)


def sharegpt4v(captions: str | Path, image_root: str | Path) -> list[RetrievalTask]:
    """Open ShareGPT4V-1k.

    Args:
        captions (`str` or `Path`): `share-captioner_coco_lcs_sam_1246k_1107.json`.
        image_root (`str` or `Path`): Folder that holds `coco`, `llava` and `sam`.
    """
    texts, paths = [], []
    for row, item in enumerate(read_json("sharegpt4v", captions, list)[:SHAREGPT4V_ITEMS]):
        try:
            texts.append([item["conversations"][1]["value"].replace("\n", " ")])
            paths.append(os.fspath(item["image"]))
        except (LookupError, TypeError, AttributeError):
            raise ValueError(
                f"sharegpt4v, row {row}: expected an object with an image, and a caption as the second of its "
                "conversations; use the published file"
            ) from None
    images = ImageFolder("sharegpt4v", Path(image_root), "give the folder of images as --sharegpt4v-images")
    return _both_directions("sharegpt4v", "long", images.lazy_items(({"image": path} for path in paths), _row), texts)


def urban1k(folder: str | Path) -> list[RetrievalTask]:
    """Open Urban1K.

    Args:
        folder (`str` or `Path`): Holds `image/*.jpg` and `caption/*.txt`; a caption is the first line of its file.
    """
    folder = Path(folder)
    paths = sorted((folder / "image").glob("*.jpg"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise ValueError(f"no images match {folder}/image/*.jpg; give the folder that Urban1K was unpacked to")
    texts = []
    for path in paths:
        caption = folder / "caption" / f"{path.stem}.txt"
        if not caption.exists():
            raise ValueError(f"urban1k: the image {path.name} has no caption {caption}; unpack the dataset again")
        # The task rejects invalid Unicode and names the query. A line ends as in Python's text files, as in the
        # published code: `splitlines` would also cut a caption at characters such as U+2028.
        first_line = caption.read_text(encoding="utf-8", errors="surrogateescape").split("\n", 1)[0]
        if not first_line.strip():
            raise ValueError(f"urban1k: the caption {caption} is empty; unpack the dataset again")
        texts.append([first_line])
    images = ImageFolder("urban1k", folder / "image", "unpack the dataset again")
    return _both_directions(
        "urban1k", "long", images.lazy_items(({"image": path.name} for path in paths), "image {}".format), texts
    )


def docci(captions: str | Path, image_root: str | Path) -> list[RetrievalTask]:
    """Open the test split of DOCCI.

    Layout: `index.html` of google/docci on GitHub, and `docci.py` of google/docci on the Hub.

    Args:
        captions (`str` or `Path`): `docci_descriptions.jsonlines`; lines of `split`, `image_file` and `description`.
        image_root (`str` or `Path`): The folder `images` of `docci_images.tar.gz`.
    """
    path = Path(captions)
    if not path.is_file():
        raise ValueError(f"docci: there is no file {path}: use the file as published")
    texts, paths = [], []
    for number, line in json_lines(path):
        row = parse_object(line) or {}
        missing = [key for key in ("split", "image_file", "description") if not isinstance(row.get(key), str)]
        if missing:
            raise ValueError(f"docci, line {number}: missing {', '.join(missing)}; use the published file")
        if row["split"] == "test":
            texts.append([row["description"]])
            paths.append(row["image_file"])
    if not texts:
        raise ValueError(f"docci: {path} has no row of the split test; use the published file")
    images = ImageFolder("docci", Path(image_root), "give the unpacked images as --docci-images")
    return _both_directions("docci", "long", images.lazy_items(({"image": path} for path in paths), _row), texts)


def dci(folder: str | Path) -> list[RetrievalTask]:
    """Open all images of DCI, each with its short and its extra caption as one text.

    Layout: README of facebookresearch/DCI on GitHub. Splits and text: `dataloaders/dci_retrieval.py` of
    wuw2019/LoTLIP, which joins the sentences by ". " and leaves out empty ones. FG-CLIP scores the extra caption
    alone, in lower case.

    Args:
        folder (`str` or `Path`): `densely_captioned_images`, which holds `splits.json`, `annotations` and `photos`.
    """
    folder = Path(folder)
    texts, paths = [], []
    for split, names in read_json("dci", folder / "splits.json", dict).items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"dci: the split {split!r} of {folder / 'splits.json'} is not a list of files; use the published file"
            )
        for name in names:
            row = read_json("dci", folder / "annotations" / name, dict)
            missing = [key for key in ("image", *_DCI_CAPTIONS) if not isinstance(row.get(key), str)]
            if missing:
                raise ValueError(f"dci, {name}: missing {', '.join(missing)}; use the published file")
            sentences = re.split(r"\n|</s>|\.", "\n".join(row[key] for key in _DCI_CAPTIONS))
            texts.append([". ".join(sentence.strip() for sentence in sentences if sentence.strip())])
            paths.append(row["image"])
    images = ImageFolder("dci", folder / "photos", "unpack sa_000138.tar of SA-1B there")
    return _both_directions("dci", "long", images.lazy_items(({"image": path} for path in paths), _row), texts)


def _row(index: int) -> str:
    return f"row {index}"


def _both_directions(name: str, meta_task: str, images: LazyItems, texts: list[list[str]]) -> list[RetrievalTask]:
    """Return the tasks text to image and image to text, given the captions of each image."""
    captions = LazyItems([{"text": caption} for of_image in texts for caption in of_image], images.read)
    image_of_caption = [[image] for image, of_image in enumerate(texts) for _ in of_image]
    captions_of_image: list[list[int]] = [[] for _ in texts]
    for caption, (image,) in enumerate(image_of_caption):
        captions_of_image[image].append(caption)
    return [
        RetrievalTask(f"{name}_t2i", meta_task, captions, images, image_of_caption),
        RetrievalTask(f"{name}_i2t", meta_task, images, captions, captions_of_image),
    ]
