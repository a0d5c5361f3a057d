"""What train, validation and test keep apart: object pairs, skin tone x role, and emoji without a taught category.

Every decision is a hash of what it is about, so that it depends on no order, seed or sample size. Emoji that are
drawn exactly alike ("student", "man student") share one decision: else the one would teach what the other tests.
"""

import functools
import hashlib
import itertools

import numpy as np

from .catalogue import Emoji, catalogue, same_drawing
from .vocabulary import objects


SPLITS = ("train", "validation", "test")


def check_split(split: str) -> None:
    """Raises for a name that is no split."""
    if split not in SPLITS:
        raise ValueError(f"the OpenMoji world has no split {split!r}: choose one of {', '.join(SPLITS)}")


def _share(*parts: str) -> float:
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_of(share: float, test: float, validation: float) -> str:
    return "test" if share < test else "validation" if share < test + validation else "train"


@functools.cache
def pair_splits() -> np.ndarray:
    """The split of each pair of scene objects as its position in `SPLITS`, (300, 300) int8.

    10 % are test, 3 % validation. The diagonal, an object with itself, belongs to no split (-1).
    """
    codes = [catalogue()[entry.image].code for entry in objects()]
    table = np.full((len(codes), len(codes)), -1, dtype=np.int8)
    for first, second in itertools.combinations(range(len(codes)), 2):
        share = _share("pair", *sorted((codes[first], codes[second])))
        table[first, second] = table[second, first] = SPLITS.index(_split_of(share, test=0.10, validation=0.03))
    return table


def companions(present: list[int], split: str) -> np.ndarray:
    """Objects that may join those present in a scene of a split; (n,) ids.

    A training scene holds no pair of another split, a validation scene none of test.
    """
    allowed = pair_splits()[present]
    return np.flatnonzero(((allowed >= 0) & (allowed <= SPLITS.index(split))).all(axis=0))


def partners(object: int, split: str) -> np.ndarray:
    """Objects that make a pair of exactly this split with the object; (n,) ids."""
    return np.flatnonzero(pair_splits()[object] == SPLITS.index(split))


def _drawing(entry: Emoji) -> Emoji:
    return catalogue()[same_drawing()[entry.index]]


def tone_split(entry: Emoji) -> str:
    """The split of a skin tone x role combination (15 % test, 3 % validation); all else is "train"."""
    if entry.tone is None:
        return "train"
    return _split_of(_share("tone", _drawing(entry).code), test=0.15, validation=0.03)


@functools.cache
def _category_splits() -> tuple[str, ...]:
    """The split of each emoji's base for the category tasks; the first of each subcategory is always taught."""
    splits, taught = {}, set()
    for entry in catalogue():
        if entry.tone is None and _drawing(entry) == entry:
            split = _split_of(_share("category", entry.code), test=0.15, validation=0.03)
            splits[entry.index] = split if entry.subcategory in taught else "train"
            taught.add(entry.subcategory)
        elif entry.tone is None:
            splits[entry.index] = splits[_drawing(entry).base]
    return tuple(splits[entry.base] for entry in catalogue())


def category_split(entry: Emoji) -> str:
    """The split of an emoji for category and subcategory: that of its base, unless its own tone is held out."""
    base = _category_splits()[entry.index]
    return base if base != "train" else tone_split(entry)
