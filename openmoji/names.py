"""The emoji of each split by task: names, categories, skin tones and genders."""

import functools
import re

from .catalogue import LANGUAGES, Emoji, catalogue, same_drawing
from .splits import category_split, tone_split


@functools.cache
def emoji_with_name(split: str) -> tuple[Emoji, ...]:
    """Return the emoji with names in a split: held-out skin tones in their split, everything else in "train"."""
    return tuple(entry for entry in catalogue() if tone_split(entry) == split)


@functools.cache
def emoji_with_category(split: str) -> tuple[Emoji, ...]:
    """Return the emoji with category and subcategory in a split."""
    return tuple(entry for entry in catalogue() if category_split(entry) == split)


@functools.cache
def roles() -> dict[int, tuple[Emoji, ...]]:
    """Return the skin tones of each role: index of the base emoji -> the base and its five single tones.

    Only the first of several roles with the same drawings ("student", "man student") is included.
    """
    groups = {}
    for entry in catalogue():
        single = entry.tone is None or ", " not in entry.tone
        if single and same_drawing()[entry.index] == entry.index:
            groups.setdefault(entry.base, []).append(entry)
    return {base: tuple(group) for base, group in groups.items() if len(group) > 1}


@functools.cache
def emoji_with_tone(split: str) -> tuple[Emoji, ...]:
    """Return the members of `roles` that belong to a split."""
    return tuple(entry for group in roles().values() for entry in group if tone_split(entry) == split)


def other_tones(entry: Emoji, split: str) -> list[Emoji]:
    """Return the same role in other skin tones; in "train" only tones of the training split."""
    return [
        other
        for other in roles().get(entry.base, ())
        if other != entry and (split != "train" or tone_split(other) == "train")
    ]


# Without these words the name of a person is an activity or occupation.
_PERSON_WORDS = re.compile(r"\b(man|woman|men|women|person|people|boy|girl)\b")


@functools.cache
def gender_groups() -> dict[str, tuple[Emoji, ...]]:
    """Group people by activity: name without gender and skin tone -> men, women and persons in all tones."""
    groups = {}
    for entry in catalogue():
        groups.setdefault(_activity(entry), []).append(entry)
    return {activity: tuple(group) for activity, group in groups.items() if len({entry.base for entry in group}) > 1}


@functools.cache
def emoji_with_gender(split: str) -> tuple[Emoji, ...]:
    """Return the members of `gender_groups` that belong to a split."""
    return tuple(entry for group in gender_groups().values() for entry in group if tone_split(entry) == split)


def _activity(entry: Emoji) -> str:
    return _PERSON_WORDS.sub("", catalogue()[entry.base].name)


def other_genders(entry: Emoji, split: str) -> list[Emoji]:
    """Return people of other genders with the same activity and skin tone; in "train" only of the training split."""
    return [
        other
        for other in gender_groups().get(_activity(entry), ())
        if other.tone == entry.tone
        and same_drawing()[other.index] != same_drawing()[entry.index]
        and (split != "train" or tone_split(other) == "train")
    ]


def localized_names(entry: Emoji) -> list[tuple[str, str]]:
    """Return all (language code, name) pairs: the name, the English aliases, the names in other languages."""
    english = dict.fromkeys([entry.name, *entry.aliases])
    others = [
        (language, entry.names[language]) for language in LANGUAGES if language != "en" and language in entry.names
    ]
    return [*[("en", text) for text in english], *others]


def tone_request(tone: str | None, wording: int) -> str:
    """Return the words that ask for a skin tone, or for none."""
    if tone is None:
        return ("without a skin tone", "with the default skin", "remove the skin tone")[wording % 3]
    return ("with {} skin tone", "with {} skin", "change the skin tone to {}")[wording % 3].format(tone)
