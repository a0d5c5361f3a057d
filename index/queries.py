"""Queries of an index: the item for a search by text, by image or by both, with its default instruction."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from ..checkpoint import PROMPTS


def query_item(
    text: str | None = None,
    image: Image.Image | None = None,
    kind: str = "image",
    instruction: str | None = None,
    prompts: Mapping[str, str] = PROMPTS,
) -> dict[str, Any]:
    """Return a query as an item for `UniMEModel.encode`.

    Args:
        text (`str`, *optional*): Text to search for; with an image, the requested change to that image.
        image (`PIL.Image`, *optional*): Image to find similar images or matching texts for.
        kind (`str`, defaults to `"image"`): Kind of the entries to search, one of `KINDS`.
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
        instruction = _default_instruction(text is not None, image is not None, kind, prompts)
    item = {"text": text, "image": image, "instruction": instruction}
    return {key: value for key, value in item.items() if value}


def query_items(
    kinds: Iterable[str],
    text: str | None = None,
    image: Image.Image | None = None,
    instruction: str | None = None,
    prompts: Mapping[str, str] = PROMPTS,
) -> dict[str, dict[str, Any]]:
    """Return the query for each kind of entries, see [`query_item`]. Embed them by [`embed_queries`].

    Args:
        kinds (`Iterable[str]`): Kinds of the entries to search, such as those of [`Index.kinds`].
        text (`str`, *optional*): As in [`query_item`], and so are the others.
        image (`PIL.Image`, *optional*): See there.
        instruction (`str`, *optional*): Instruction of all queries. Defaults to the one for each kind.
        prompts (`Mapping[str, str]`, *optional*, defaults to UniME's): See there.

    Raises:
        ValueError: Both `text` and `image` are missing.
    """
    return {kind: query_item(text, image, kind, instruction, prompts) for kind in kinds}


def embed_queries(
    model: PreTrainedModel, processor: ProcessorMixin, items: Mapping[str, dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Return the embedding of the query for each kind of entries, as [`Index.search`] takes them.

    Args:
        model ([`UniMEModel`]): Model of the index.
        processor (`ProcessorMixin`): Its processor.
        items (`Mapping[str, dict]`): Kind -> query.
    """
    return dict(zip(items, model.encode(list(items.values()), processor), strict=True))


def shown_instruction(items: Mapping[str, dict[str, Any]]) -> str | None:
    """Return the instruction of a query as users see it: with the kinds, where theirs differ.

    Args:
        items (`Mapping[str, dict]`): Kind -> query.
    """
    instructions = {kind: item.get("instruction") for kind, item in items.items()}
    distinct = set(instructions.values())
    if len(distinct) <= 1:
        return next(iter(distinct), None)
    return "; ".join(f"{kind}: {instruction or '(one-word prompt)'}" for kind, instruction in instructions.items())


def _default_instruction(has_text: bool, has_image: bool, kind: str, prompts: Mapping[str, str]) -> str:
    if kind == "text":
        return prompts["image_to_text"] if has_image and not has_text else prompts["query"]
    if has_text and has_image:
        return prompts["composed"]
    return prompts["image"] if has_image else prompts["text_to_image"]
