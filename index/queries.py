"""What is asked of an index: the item of a query by text, by image or by both, with the instruction it needs."""

from typing import Any

from PIL import Image

from ..checkpoint import PROMPTS


def query_item(
    text: str | None = None,
    image: Image.Image | None = None,
    images: bool = True,
    instruction: str | None = None,
) -> dict[str, Any]:
    """Make a query for `UniMEModel.encode`.

    Args:
        text (`str`, *optional*): What is looked for; beside an image, how that is to be changed.
        image (`PIL.Image`, *optional*): An image like which others are looked for, or whose text is.
        images (`bool`): Whether the index holds images, or texts alone.
        instruction (`str`, *optional*, defaults to the one that UniME was trained with for such a query):
            What is asked of the query.

    Raises:
        ValueError: There is neither text nor image.
    """
    text = text if text is not None and text.strip() else None
    if text is None and image is None:
        raise ValueError("there is nothing to search for: give a text, an image (--image), or both")
    if instruction is None:
        instruction = default_instruction(text is not None, image is not None, images)
    item = {"text": text, "image": image, "instruction": instruction}
    return {name: value for name, value in item.items() if value}


def default_instruction(text: bool, image: bool, images: bool) -> str:
    """The instruction for a query that has a text, an image, or both, in an index of images or of texts alone."""
    if not images:
        return PROMPTS["image_to_text"] if image and not text else PROMPTS["query"]
    if text and image:
        return PROMPTS["composed"]
    return PROMPTS["image"] if image else PROMPTS["text_to_image"]
