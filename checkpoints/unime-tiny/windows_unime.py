"""Read items in windows of bounded size, with threads that decode the next window while the model embeds this one."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from .processing_unime import Item, item_hash, normalize_item, to_item_dict


READER_THREADS = min(8, os.cpu_count() or 1)
MAX_WINDOW_PIXELS = 2**25  # 134 MB, as Pillow takes 4 bytes for a pixel; two windows are in memory
MAX_HASHED_PIXELS = 2**21  # larger photographs are seldom equal, and hashing one takes a sixth of the time to read it

T = TypeVar("T")


def windows(
    values: Iterable[T], num_pixels: Callable[[T], int], max_values: int, max_pixels: int
) -> Iterator[list[T]]:
    """Split values into lists, in order.

    Args:
        values (`Iterable`): The values.
        num_pixels (`Callable`): Returns the number of pixels of a value.
        max_values (`int`): Maximum number of values in a window.
        max_pixels (`int`): Maximum number of pixels in a window; a single value may exceed it.
    """
    window: list[T] = []
    total = 0
    for value in values:
        pixels = num_pixels(value)
        if window and (len(window) == max_values or total + pixels > max_pixels):
            yield window
            window, total = [], 0
        window.append(value)
        total += pixels
    if window:
        yield window


def item_pixels(item: Item) -> int:
    """Return the number of pixels of an item's images, without decoding them; 0 for a malformed item."""
    try:
        images = to_item_dict(item)["images"]
    except ValueError:
        return 0
    return sum(image.width * image.height for image in images)


def read_windows(items: Sequence[Item], max_items: int) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Read items window by window. The images of the next window are decoded while the caller works on this one.

    Two windows of decoded images are in memory at a time: at most 4 bytes times 2 times `MAX_WINDOW_PIXELS`, or two
    items if these are larger. The images of the caller stay as they are.

    Args:
        items (`list`): The items.
        max_items (`int`): Maximum number of items in a window.

    Yields:
        `list[tuple[int, dict]]`: The key of each item of a window, and the normalized item (see [`normalize_item`]).
        Items with one key are equal. It is their hash (see [`item_hash`]), but an item of more than
        `MAX_HASHED_PIXELS` has a key of its own.

    Raises:
        ValueError: An item is malformed, or one of its images is damaged.
    """
    with ThreadPoolExecutor(READER_THREADS) as readers:
        previous: Sequence[Callable[[], tuple[int, dict[str, Any]]]] = []
        for window in windows(enumerate(items), lambda value: item_pixels(value[1]), max_items, MAX_WINDOW_PIXELS):
            # A text is read when its turn comes: a thread would cost more than it saves.
            current = [
                readers.submit(_read, item, index).result if item_pixels(item) else partial(_read, item, index)
                for index, item in window
            ]
            if previous:
                yield [read() for read in previous]
            previous = current
        if previous:
            yield [read() for read in previous]


def _read(item: Item, index: int) -> tuple[int, dict[str, Any]]:
    normalized = normalize_item(item, index)
    if sum(image.width * image.height for image in normalized["images"]) > MAX_HASHED_PIXELS:
        return -1 - index, normalized  # hashes are not negative
    return item_hash(normalized), normalized


__all__ = ["MAX_HASHED_PIXELS", "MAX_WINDOW_PIXELS", "READER_THREADS", "item_pixels", "read_windows", "windows"]
