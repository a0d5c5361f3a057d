"""Queries of an index: the item for a search by text, by image or by both, with its default instruction."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..checkpoint import PROMPTS


def query_item(
    text: str | None = None,
    image: Image.Image | None = None,
    has_images: bool = True,
    instruction: str | None = None,
    prompts: Mapping[str, str] = PROMPTS,
) -> dict[str, Any]:
    """Return a query as an item for `UniMEModel.encode`.

    Args:
        text (`str`, *optional*): Text to search for; with an image, the requested change to that image.
        image (`PIL.Image`, *optional*): Image to find similar images or matching texts for.
        has_images (`bool`, defaults to `True`): Whether the index contains images, and not only texts.
        instruction (`str`, *optional*): Instruction of the query. Defaults to the instruction that UniME was trained
            with for this kind of query.
        prompts (`Mapping[str, str]`, *optional*, defaults to UniME's): The default instructions, those of
            [`named_prompts`] for the model.

    Raises:
        ValueError: Both `text` and `image` are missing.
    """
    text = text if text is not None and text.strip() else None
    if text is None and image is None:
        raise ValueError("there is nothing to search for: give a text, an image (--image), or both")
    if instruction is None:
        instruction = _default_instruction(text is not None, image is not None, has_images, prompts)
    item = {"text": text, "image": image, "instruction": instruction}
    return {key: value for key, value in item.items() if value}


def _default_instruction(has_text: bool, has_image: bool, index_has_images: bool, prompts: Mapping[str, str]) -> str:
    if not index_has_images:
        return prompts["image_to_text"] if has_image and not has_text else prompts["query"]
    if has_text and has_image:
        return prompts["composed"]
    return prompts["image"] if has_image else prompts["text_to_image"]
