"""Single images by what they may teach in a split: their names, their categories and their skin tones."""

import functools
import re

from .catalogue import LANGUAGES, Emoji, catalogue, same_drawing
from .splits import category_split, tone_split


@functools.cache
def named(split: str) -> tuple[Emoji, ...]:
    """Emoji whose names belong to a split: all but held-out skin tones in "train", the held-out ones elsewhere."""
    return tuple(entry for entry in catalogue() if tone_split(entry) == split)


@functools.cache
def categorised(split: str) -> tuple[Emoji, ...]:
    """Emoji whose category and subcategory belong to a split."""
    return tuple(entry for entry in catalogue() if category_split(entry) == split)


@functools.cache
def roles() -> dict[int, tuple[Emoji, ...]]:
    """The skin tones of each role: index of the base emoji -> the base and its five single tones.

    Of roles that are drawn exactly alike ("student", "man student") only the first is there.
    """
    groups = {}
    for entry in catalogue():
        single = entry.tone is None or ", " not in entry.tone
        if single and same_drawing()[entry.index] == entry.index:
            groups.setdefault(entry.base, []).append(entry)
    return {base: tuple(group) for base, group in groups.items() if len(group) > 1}


@functools.cache
def toned(split: str) -> tuple[Emoji, ...]:
    """The members of `roles` that belong to a split."""
    return tuple(entry for group in roles().values() for entry in group if tone_split(entry) == split)


def other_tones(entry: Emoji, split: str) -> list[Emoji]:
    """The same role in other skin tones; in "train" only those of the training split."""
    return [
        other
        for other in roles().get(entry.base, ())
        if other != entry and (split != "train" or tone_split(other) == "train")
    ]


# The words for who does something; what is left of a name is what they do.
_WHO = re.compile(r"\b(man|woman|men|women|person|people|boy|girl)\b")


@functools.cache
def crowds() -> dict[str, tuple[Emoji, ...]]:
    """Who does the same: a name without its gender and skin tone -> men, women and persons in all tones."""
    groups = {}
    for entry in catalogue():
        groups.setdefault(_deed(entry), []).append(entry)
    return {deed: tuple(group) for deed, group in groups.items() if len({entry.base for entry in group}) > 1}


@functools.cache
def crowded(split: str) -> tuple[Emoji, ...]:
    """The members of `crowds` that belong to a split."""
    return tuple(entry for group in crowds().values() for entry in group if tone_split(entry) == split)


def _deed(entry: Emoji) -> str:
    return _WHO.sub("", catalogue()[entry.base].name)


def other_genders(entry: Emoji, split: str) -> list[Emoji]:
    """Others who do the same in the same skin tone, of another gender; in "train" only those of the training split."""
    return [
        other
        for other in crowds().get(_deed(entry), ())
        if other.tone == entry.tone
        and same_drawing()[other.index] != same_drawing()[entry.index]
        and (split != "train" or tone_split(other) == "train")
    ]


def texts_of(entry: Emoji) -> list[tuple[str, str]]:
    """All (language code, name) of an emoji: its name, its English aliases, its names in other languages."""
    english = dict.fromkeys([entry.name, *entry.aliases])
    others = [
        (language, entry.names[language]) for language in LANGUAGES if language != "en" and language in entry.names
    ]
    return [*[("en", text) for text in english], *others]


def tone_request(tone: str | None, wording: int) -> str:
    """Words that ask for a skin tone, or for none."""
    if tone is None:
        return ("without a skin tone", "with the default skin", "remove the skin tone")[wording % 3]
    return ("with {} skin tone", "with {} skin", "change the skin tone to {}")[wording % 3].format(tone)
