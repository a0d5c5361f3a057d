"""The OpenMoji world's training tasks on single images: categories, names, changed skin tones."""

import random
from collections.abc import Callable, Sequence

from .catalogue import LANGUAGES, Emoji, catalogue, same_drawing
from .items import CATEGORISE, CHANGED_IMAGE, CLASSIFY, IDENTIFY, IMAGE_OF_TEXT, image_target, item, sample_up_to
from .names import categorised, crowded, named, other_genders, other_tones, texts_of, tone_request, toned
from .splits import tone_split
from .views import View


def identify_in(language: str) -> str:
    """The instruction that asks for a name in a language of `LANGUAGES`."""
    return IDENTIFY if language == "en" else f"{IDENTIFY} in {LANGUAGES[language]}"


def answer_of(entry: Emoji) -> str:
    """The label of an image: emoji that are drawn exactly alike are one answer."""
    return catalogue()[same_drawing()[entry.index]].code


def _view(entry: Emoji, rng: random.Random) -> str:
    return View.sample(entry.index, rng).spec


def subcategory(split: str, negatives: int, rng: random.Random) -> dict:
    """Image -> subcategory."""
    entry = rng.choice(categorised(split))
    return {
        "query": item(image=_view(entry, rng), instruction=CLASSIFY),
        "positive": item(entry.subcategory),
        "negatives": [],
        "label": entry.subcategory,
    }


def category(split: str, negatives: int, rng: random.Random) -> dict:
    """Image -> one of nine categories."""
    entry = rng.choice(categorised(split))
    return {
        "query": item(image=_view(entry, rng), instruction=CATEGORISE),
        "positive": item(entry.category),
        "negatives": [],
        "label": entry.category,
    }


def _named_image(entry: Emoji, others: list[Emoji], negatives: int, rng: random.Random) -> dict:
    return {
        "query": item(rng.choice(texts_of(entry))[1], instruction=IMAGE_OF_TEXT),
        "positive": image_target(_view(entry, rng)),
        "negatives": [image_target(_view(other, rng)) for other in sample_up_to(others, negatives, rng)],
        "label": answer_of(entry),
    }


def _image_named(
    entry: Emoji, called: tuple[str, str], others: list[Emoji], negatives: int, rng: random.Random
) -> dict:
    language, text = called
    others = sample_up_to(others, negatives, rng)
    return {
        "query": item(image=_view(entry, rng), instruction=identify_in(language)),
        "positive": item(text),
        "negatives": [item(other.names[language]) for other in others if language in other.names],
        "label": answer_of(entry),
    }


def _changed_image(
    entries: Sequence[Emoji],
    others_of: Callable[[Emoji, str], list[Emoji]],
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
            image_target(_view(other, rng)) for other in sample_up_to(others_of(target, split), negatives, rng)
        ],
        "label": answer_of(target),
    }


def name_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """A name in any language -> image; the same role in another skin tone is the hard negative."""
    entry = rng.choice(named(split))
    return _named_image(entry, other_tones(entry, split), negatives, rng)


def name_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Image -> name in the language that the instruction asks for."""
    entry = rng.choice(named(split))
    return _image_named(entry, rng.choice(texts_of(entry)), other_tones(entry, split), negatives, rng)


def composed(split: str, negatives: int, rng: random.Random) -> dict:
    """Image and "with dark skin tone" -> image; the same role in other tones are the hard negatives."""
    return _changed_image(toned(split), other_tones, split, negatives, rng)


def people_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """A name of someone -> image; another gender that does the same in the same skin tone is the hard negative."""
    entry = rng.choice(crowded(split))
    return _named_image(entry, other_genders(entry, split), negatives, rng)


def people_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Image of someone -> name, every other one English."""
    entry = rng.choice(crowded(split))
    called = rng.choice((("en", entry.name), rng.choice(texts_of(entry))))
    return _image_named(entry, called, other_genders(entry, split), negatives, rng)


def people_composed(split: str, negatives: int, rng: random.Random) -> dict:
    """Image of someone and a skin tone -> image; another gender in that tone is the hard negative."""
    return _changed_image(crowded(split), other_genders, split, negatives, rng)
