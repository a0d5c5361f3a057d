"""Retrieval between images and captions, in both directions, as E5-V and UniME report it.

Short captions: Flickr30K (1,000 images) and COCO 5K, five captions each. Long captions: ShareGPT4V-1k and Urban1K
(Long-CLIP, arXiv 2403.15378), one each. An image is found if one of its captions stands among the first k, and a
caption if its image does: R@k is the share of queries with a hit, k = 1, 5, 10. No instructions: the prompts of
images and of texts are those of the paper.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets
from pyarrow import ArrowException

from ...data.hub_tables import check_text_columns, open_hub_table, read_json
from ...data.image_files import default_image_root, read_image
from ..lazy_items import LazyItems, file_identity
from ..tasks import RetrievalTask


CAPTIONS = 5  # of an image of Flickr30K and COCO; COCO has a few images with six, of which the paper takes five
SHARED = 1000  # items of ShareGPT4V that are held out from its training


def flickr30k(source: str = "royokong/flickr30k_test") -> list[RetrievalTask]:
    """Flickr30K's test images: Hub id, or a folder, with the columns `image` and `text` (a list), split `test`."""
    return _captioned("flickr30k", source)


def coco(source: str = "royokong/coco_test") -> list[RetrievalTask]:
    """COCO 5K: Hub id, or a folder, with the columns `image` and `text` (a list), split `test`."""
    return _captioned("coco", source)


def _captioned(name: str, source: str) -> list[RetrievalTask]:
    rows = open_hub_table(name, source, ("image", "text"))
    check_text_columns(name, rows, several=("text",))
    try:
        rows = rows.cast_column("image", datasets.Image(decode=False))  # decoded here, so that a bad one is named
    except ArrowException:
        held = rows.features["image"]
        raise ValueError(f"{name}: its column image holds {held}, not images: give it as published") from None
    texts = [list(captions)[:CAPTIONS] for captions in rows["text"]]
    root = default_image_root(source)
    images = LazyItems(
        [{"image": row} for row in range(len(rows))],
        lambda row: read_image(rows[row]["image"], f"{name}, row {row}", root),
        lambda row: f"{rows._fingerprint}/{row}",
    )
    return both_ways(name, "retrieval", images, texts)


def sharegpt4v(captions: str | Path, image_root: str | Path) -> list[RetrievalTask]:
    """ShareGPT4V-1k: `share-captioner_coco_lcs_sam_1246k_1107.json`, and the folder of `coco`, `llava` and `sam`."""
    texts, paths = [], []
    for row, item in enumerate(read_json("sharegpt4v", captions, list)[:SHARED]):
        try:
            texts.append([item["conversations"][1]["value"].replace("\n", " ")])
            paths.append(Path(item["image"]).as_posix())
        except (LookupError, TypeError, AttributeError):
            raise ValueError(
                f"sharegpt4v, row {row} has no image, or no caption as the second of its conversations: give the file "
                "as it is published"
            ) from None
    return both_ways("sharegpt4v", "long", _files("sharegpt4v", image_root, paths), texts)


def urban1k(folder: str | Path) -> list[RetrievalTask]:
    """Urban1K: a folder with `image/*.jpg` and `caption/*.txt`; a caption is the first line of its file."""
    folder = Path(folder)
    paths = sorted((folder / "image").glob("*.jpg"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise ValueError(f"there are no images {folder}/image/*.jpg: give the folder that Urban1K was unpacked to")
    texts = []
    for path in paths:
        caption = folder / "caption" / f"{path.stem}.txt"
        if not caption.exists():
            raise ValueError(f"urban1k: the image {path.name} has no caption {caption}: unpack the set again")
        lines = caption.read_text(encoding="utf-8", errors="surrogateescape").splitlines()  # the task refuses such
        if not lines:
            raise ValueError(f"urban1k: the caption {caption} is empty: unpack the set again")
        texts.append([lines[0]])
    return both_ways("urban1k", "long", _files("urban1k", folder / "image", [path.name for path in paths]), texts)


def _files(name: str, root: str | Path, paths: Sequence[str]) -> LazyItems:
    root = Path(root)
    for row, path in enumerate(paths):
        if not os.path.exists(root / path):  # which says no of what cannot be a path, too
            raise ValueError(f"{name}, row {row}: there is no image {root / path}: give the folder it starts from")
    return LazyItems(
        [{"image": path} for path in paths],
        lambda path: read_image(path, name, root),
        lambda path: file_identity(root / path),
    )


def both_ways(name: str, meta_task: str, images: LazyItems, texts: list[list[str]]) -> list[RetrievalTask]:
    """Text to image and image to text, where `texts` are the captions of each image."""
    captions = [{"text": caption} for own in texts for caption in own]
    of_caption = [[image] for image, own in enumerate(texts) for _ in own]
    of_image: list[list[int]] = [[] for _ in texts]
    for caption, (image,) in enumerate(of_caption):
        of_image[image].append(caption)
    captions = LazyItems(captions, images.read)
    return [
        RetrievalTask(f"{name}_t2i", meta_task, captions, images, of_caption),
        RetrievalTask(f"{name}_i2t", meta_task, images, captions, of_image),
    ]
