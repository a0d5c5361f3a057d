"""Train, validation and test splits of object pairs, of skin tone x role combinations, and of emoji categories.

Each decision is a hash of its subject, so it does not depend on an order, a seed or a sample size. Emoji with the same
drawing ("student", "man student") share one decision; otherwise training on one would leak the test of the other.
"""

import functools
import hashlib
import itertools

import numpy as np

from .catalogue import Emoji, catalogue, same_drawing
from .vocabulary import objects


SPLITS = ("train", "validation", "test")


def check_split(split: str) -> None:
    """Raise a `ValueError` for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"the OpenMoji data has no split {split!r}: choose one of {', '.join(SPLITS)}")


def _hash_fraction(*parts: str) -> float:
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_of(fraction: float, test: float, validation: float) -> str:
    return "test" if fraction < test else "validation" if fraction < test + validation else "train"


@functools.cache
def pair_splits() -> np.ndarray:
    """Return the split of each pair of scene objects as an index into `SPLITS`, `(300, 300)` int8.

    10% are test, 3% validation. The diagonal, an object with itself, is -1.
    """
    codes = [catalogue()[entry.image].code for entry in objects()]
    table = np.full((len(codes), len(codes)), -1, dtype=np.int8)
    for first, second in itertools.combinations(range(len(codes)), 2):
        fraction = _hash_fraction("pair", *sorted((codes[first], codes[second])))
        table[first, second] = table[second, first] = SPLITS.index(_split_of(fraction, test=0.10, validation=0.03))
    return table


def companions(present: list[int], split: str) -> np.ndarray:
    """Return the ids of the objects that a scene of the split may contain beside those present; `(n,)`.

    A training scene contains training pairs only; a validation scene contains no test pair.
    """
    allowed = pair_splits()[present]
    return np.flatnonzero(((allowed >= 0) & (allowed <= SPLITS.index(split))).all(axis=0))


def partners(object: int, split: str) -> np.ndarray:
    """Return the ids of the objects that form a pair of exactly this split with the object; `(n,)`."""
    return np.flatnonzero(pair_splits()[object] == SPLITS.index(split))


def _drawing(entry: Emoji) -> Emoji:
    return catalogue()[same_drawing()[entry.index]]


def tone_split(entry: Emoji) -> str:
    """Return the split of a skin tone x role combination (15% test, 3% validation); everything else is "train"."""
    if entry.tone is None:
        return "train"
    return _split_of(_hash_fraction("tone", _drawing(entry).code), test=0.15, validation=0.03)


@functools.cache
def _category_splits() -> tuple[str, ...]:
    """Return the split of each emoji's base for the category tasks; the first of each subcategory is in "train"."""
    splits, trained = {}, set()
    for entry in catalogue():
        if entry.tone is None and _drawing(entry) == entry:
            split = _split_of(_hash_fraction("category", entry.code), test=0.15, validation=0.03)
            splits[entry.index] = split if entry.subcategory in trained else "train"
            trained.add(entry.subcategory)
        elif entry.tone is None:
            splits[entry.index] = splits[_drawing(entry).base]
    return tuple(splits[entry.base] for entry in catalogue())


def category_split(entry: Emoji) -> str:
    """Return the split of an emoji for the category tasks: the split of its base, unless its tone is held out."""
    base = _category_splits()[entry.index]
    return base if base != "train" else tone_split(entry)
