"""Image-caption retrieval in both directions, as reported by E5-V and UniME.

Short captions: Flickr30K (1,000 images) and COCO 5K, five captions per image. Long captions: ShareGPT4V-1k and
Urban1K (Long-CLIP, arXiv 2403.15378), one caption per image. An image query is a hit if any of its captions is among
the first k, a caption query if its image is; R@k is the share of hits for k = 1, 5, 10. Items have no instruction:
the prompts for images and for texts are the paper's.
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


CAPTIONS_PER_IMAGE = 5  # a few COCO images have six; the paper uses the first five
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
    try:
        # `read_image` decodes, so that the error for a broken image names its row.
        rows = rows.cast_column("image", datasets.Image(decode=False))
    except ArrowException:
        raise ValueError(
            f"{name}: expected images in the column image, got {rows.features['image']}; use the published dataset"
        ) from None
    texts = [list(captions)[:CAPTIONS_PER_IMAGE] for captions in rows["text"]]
    root = default_image_root(source)
    images = LazyItems(
        [{"image": row} for row in range(len(rows))],
        lambda row: read_image(rows[row]["image"], f"{name}, row {row}", root),
        lambda row: f"{rows._fingerprint}/{row}",
    )
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
            paths.append(Path(item["image"]).as_posix())
        except (LookupError, TypeError, AttributeError):
            raise ValueError(
                f"sharegpt4v, row {row}: expected an object with an image, and a caption as the second of its "
                "conversations; use the published file"
            ) from None
    return _both_directions("sharegpt4v", "long", _image_items("sharegpt4v", image_root, paths), texts)


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
        # The task rejects invalid Unicode and names the query.
        lines = caption.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        if not lines:
            raise ValueError(f"urban1k: the caption {caption} is empty; unpack the dataset again")
        texts.append([lines[0]])
    images = _image_items("urban1k", folder / "image", [path.name for path in paths])
    return _both_directions("urban1k", "long", images, texts)


def _image_items(name: str, root: str | Path, paths: Sequence[str]) -> LazyItems:
    root = Path(root)
    for row, path in enumerate(paths):
        if not os.path.exists(root / path):  # False for invalid paths too, where `Path.exists` raises
            raise ValueError(f"{name}, row {row}: the image {root / path} does not exist; give the folder of images")
    return LazyItems(
        [{"image": path} for path in paths],
        lambda path: read_image(path, name, root),
        lambda path: file_identity(root / path),
    )


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
