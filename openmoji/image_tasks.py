"""Training tasks on single OpenMoji images: categories, names, changed skin tones."""

import random
from collections.abc import Callable, Sequence

from .catalogue import LANGUAGES, Emoji, catalogue, same_drawing
from .items import CATEGORISE, CHANGED_IMAGE, CLASSIFY, IDENTIFY, IMAGE_OF_TEXT, image_target, item, sample_up_to
from .names import (
    emoji_with_category,
    emoji_with_gender,
    emoji_with_name,
    emoji_with_tone,
    localized_names,
    other_genders,
    other_tones,
    tone_request,
)
from .splits import tone_split
from .views import View


def naming_instruction(language: str) -> str:
    """Return the instruction that asks for a name in a language of `LANGUAGES`."""
    return IDENTIFY if language == "en" else f"{IDENTIFY} in {LANGUAGES[language]}"


def emoji_label(entry: Emoji) -> str:
    """Return the label of an emoji; emoji with the same drawing share one."""
    return catalogue()[same_drawing()[entry.index]].code


def _view(entry: Emoji, rng: random.Random) -> str:
    return View.sample(entry.index, rng).spec


def subcategory(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample an image with its subcategory."""
    entry = rng.choice(emoji_with_category(split))
    return {
        "query": item(image=_view(entry, rng), instruction=CLASSIFY),
        "positive": item(entry.subcategory),
        "negatives": [],
        "label": entry.subcategory,
    }


def category(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample an image with one of nine categories."""
    entry = rng.choice(emoji_with_category(split))
    return {
        "query": item(image=_view(entry, rng), instruction=CATEGORISE),
        "positive": item(entry.category),
        "negatives": [],
        "label": entry.category,
    }


def _name_to_image(entry: Emoji, others: list[Emoji], negatives: int, rng: random.Random) -> dict:
    return {
        "query": item(rng.choice(localized_names(entry))[1], instruction=IMAGE_OF_TEXT),
        "positive": image_target(_view(entry, rng)),
        "negatives": [image_target(_view(other, rng)) for other in sample_up_to(others, negatives, rng)],
        "label": emoji_label(entry),
    }


def _image_to_name(
    entry: Emoji, name: tuple[str, str], others: list[Emoji], negatives: int, rng: random.Random
) -> dict:
    language, text = name
    others = sample_up_to(others, negatives, rng)
    return {
        "query": item(image=_view(entry, rng), instruction=naming_instruction(language)),
        "positive": item(text),
        "negatives": [item(other.names[language]) for other in others if language in other.names],
        "label": emoji_label(entry),
    }


def _changed_tone(
    entries: Sequence[Emoji],
    negatives_of: Callable[[Emoji, str], list[Emoji]],
    split: str,
    negatives: int,
    rng: random.Random,
) -> dict:
    while True:
        target = rng.choice(entries)
        sources = [other for other in other_tones(target, split) if tone_split(other) == "train"]
        if sources:
            break
    request = tone_request(target.tone, rng.randrange(3))
    return {
        "query": item(request, _view(rng.choice(sources), rng), CHANGED_IMAGE),
        "positive": image_target(_view(target, rng)),
        "negatives": [
            image_target(_view(other, rng)) for other in sample_up_to(negatives_of(target, split), negatives, rng)
        ],
        "label": emoji_label(target),
    }


def name_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample a name in any language with its image; hard negatives are the same role in other skin tones."""
    entry = rng.choice(emoji_with_name(split))
    return _name_to_image(entry, other_tones(entry, split), negatives, rng)


def name_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample an image with its name in the language of the instruction."""
    entry = rng.choice(emoji_with_name(split))
    return _image_to_name(entry, rng.choice(localized_names(entry)), other_tones(entry, split), negatives, rng)


def composed(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample an image and "with dark skin tone" with the resulting image; hard negatives are other tones."""
    return _changed_tone(emoji_with_tone(split), other_tones, split, negatives, rng)


def people_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample the name of a person with its image; hard negatives differ in gender only."""
    entry = rng.choice(emoji_with_gender(split))
    return _name_to_image(entry, other_genders(entry, split), negatives, rng)


def people_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample the image of a person with its name, half of them in English."""
    entry = rng.choice(emoji_with_gender(split))
    name = rng.choice((("en", entry.name), rng.choice(localized_names(entry))))
    return _image_to_name(entry, name, other_genders(entry, split), negatives, rng)


def people_composed(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample the image of a person and a skin tone with the resulting image; hard negatives differ in gender only."""
    return _changed_tone(emoji_with_gender(split), other_genders, split, negatives, rng)
