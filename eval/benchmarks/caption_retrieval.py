"""Image-caption retrieval in both directions, as reported by E5-V and UniME.

Short captions: Flickr30K (1,000 images) and COCO 5K, five captions per image. Long captions: ShareGPT4V-1k and
Urban1K (Long-CLIP, arXiv 2403.15378), one caption per image. An image query is a hit if any of its captions is among
the first k, a caption query if its image is; R@k is the share of hits for k = 1, 5, 10. Items have no instruction:
the prompts for images and for texts are the paper's.
"""

import os
from pathlib import Path

from ...data.hub_tables import check_text_columns, open_hub_table, read_json
from ..image_folder import ImageFolder, table_images
from ..lazy_items import LazyItems
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
    return _both_directions(
        "sharegpt4v", "long", images.lazy_items(({"image": path} for path in paths), "row {}".format), texts
    )


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
