"""The forms in which people have rows: pairs and triplets, texts and images, images with captions or classes."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..image_formats import IMAGE_SUFFIXES
from ..processing_unime import ITEM_KEYS


STORED_KEYS = tuple(key for key in ITEM_KEYS if key != "video")  # of an item in a row of training data
CAPTION_COLUMNS = ("caption", "text")  # beside `image`
_NEGATIVE = re.compile(r"negative(_\d+)?")


def standard_names(columns: Iterable[str]) -> list[str]:
    """Return the names that [`standard_row`] gives to columns; those that it does not know stay."""
    names = dict.fromkeys(columns)
    if "image" in names and not names.keys() & {"query", "anchor", "positive", "positives"}:
        if names.keys() & {*CAPTION_COLUMNS, "label"}:
            return ["query", "positive", *(name for name in names if name not in ("image", *CAPTION_COLUMNS))]
    standard = {"anchor": "query", "positives": "positive"}
    return list(
        dict.fromkeys("negatives" if _NEGATIVE.fullmatch(name) else standard.get(name, name) for name in names)
    )


def to_item(value: Any) -> Any:
    """Return a text, a path of an image or an image as an item; anything else is returned as it is.

    A string that ends with the suffix of an image format is a path, and any other string a text.
    """
    if isinstance(value, str):
        return {"image" if Path(value).suffix.lower() in IMAGE_SUFFIXES else "text": value}
    if isinstance(value, Mapping):
        # What `datasets` stores for an image; a struct of Arrow has all keys, with `None` for those without a value.
        return {"image": value} if value.keys() == {"bytes", "path"} else value
    if isinstance(value, list):
        return {"content": value}
    return {"image": value} if isinstance(value, Image.Image) else value


def row_positives(row: Mapping[str, Any], where: str) -> list[Any]:
    """Return the positives of a row, which may have `positive` instead of `positives`.

    Raises:
        ValueError: The row has both, or `positives` is not a list of at least one item.
    """
    positive, positives = row.get("positive"), row.get("positives")
    if positives is None:
        return [positive]
    if positive is not None:
        raise ValueError(f"{where}: it has both 'positive' and 'positives': remove one of them")
    if not isinstance(positives, list) or not positives:
        raise ValueError(f"{where}: 'positives' must be a list of at least one item, got {positives!r:.80}")
    return positives


def standard_row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a row with the columns `query`, `positives` and `negatives`, whose values are items.

    It may have these forms:

    - `query` or `anchor`; `positive`, or `positives` (a list); optionally `negatives` (a list), or `negative`,
      `negative_1`, `negative_2` and so on, as in sentence-transformers;
    - `image` and `caption` (or `text`), as an image folder has them: the caption retrieves the image;
    - `image` and `label`: the image retrieves the name of its class.

    Other columns stay.

    Args:
        row (`Mapping`): The row.
        where (`str`): Start of every error message, such as `"pairs.jsonl, row 7"`.

    Raises:
        ValueError: The row has none of these forms, or two columns for one part.
    """
    row = {name: value for name, value in row.items() if value is not None}
    given = [name for name in row if name not in ("task", "where")]
    if "image" in row and not row.keys() & {"query", "anchor", "positive", "positives"}:
        caption = next((name for name in CAPTION_COLUMNS if name in row), None)
        if caption is not None:
            row |= {"query": row.pop(caption), "positive": row.pop("image")}
        elif "label" in row:
            row |= {"query": row.pop("image"), "positive": {"text": str(row["label"])}}
    negatives = [name for name in row if _NEGATIVE.fullmatch(name)]
    for names in (("query", "anchor"), ("negatives", *negatives[:1])):
        if len(row.keys() & set(names)) > 1:
            raise ValueError(f"{where}: it has both '{names[0]}' and '{names[1]}': remove one of them")
    query = row.pop("anchor", row.get("query"))
    positives = row_positives(row, where)
    if query is None or positives == [None]:
        missing = "'query' (or 'anchor')" if query is None else "'positive' (or 'positives')"
        raise ValueError(
            f"{where}: it has no {missing}; its columns are {', '.join(given) or 'all empty'}: rename them, or name "
            "them by `columns` in the recipe"
        )
    row["negatives"] = [row.pop(name) for name in negatives] if negatives else row.get("negatives", [])
    if not isinstance(row["negatives"], list):
        kind = type(row["negatives"]).__name__
        raise ValueError(f"{where}: 'negatives' must be a list of items, got {kind}: fix the row")
    row.pop("positive", None)
    items = {"positives": list(map(to_item, positives)), "negatives": list(map(to_item, row["negatives"]))}
    return row | {"query": to_item(query)} | items
