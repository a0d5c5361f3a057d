"""Generative training data for a backbone: prompts with answers, with and without an image.

Each function returns one row: `image` (a spec or `None`), `prompt`, `answer`. A prompt always says which form of
answer it expects, so that the answer depends on the image alone.
"""

import random

from .captions import full_caption, sample_caption, sample_scene
from .catalogue import LANGUAGES, Emoji
from .long_captions import LongCaption
from .names import emoji_with_category, emoji_with_name, emoji_with_tone
from .perturbations import any_false_caption
from .questions import sample_question
from .scenes import CELLS, POSITIONS, Placed, Scene, crop_spec
from .views import View
from .vocabulary import COLOUR_NAMES, objects


def _row(image: str | None, prompt: str, answer: str) -> dict:
    return {"image": image, "prompt": prompt, "answer": answer}


def _view(entry: Emoji, rng: random.Random) -> str:
    return View.sample(entry.index, rng).spec


def name(split: str, rng: random.Random) -> dict:
    """Ask for the name of an image, in English or in a language that the prompt names."""
    entry = rng.choice(emoji_with_name(split))
    if rng.random() < 0.6:
        return _row(_view(entry, rng), rng.choice(("What is this?", "Name the object.", "Name this.")), entry.name)
    language = rng.choice([language for language in entry.names if language != "en"])
    prompt = rng.choice(("What is this in {}?", "Name the object in {}.", "Name this in {}."))
    return _row(_view(entry, rng), prompt.format(LANGUAGES[language]), entry.names[language])


def category(split: str, rng: random.Random) -> dict:
    """Ask for the subcategory or category of an image or a name."""
    entry = rng.choice(emoji_with_category(split))
    kind, answer = ("subcategory", entry.subcategory) if rng.random() < 0.7 else ("category", entry.category)
    if rng.random() < 0.75:
        prompts = ("Which {} is this?", "Name the {} of this.", "To which {} does this belong?")
        return _row(_view(entry, rng), rng.choice(prompts).format(kind), answer)
    return _row(None, f"Which {kind} has the object called {entry.name}?", answer)


def translation(split: str, rng: random.Random) -> dict:
    """Ask to translate a name into another language, without an image."""
    entry = rng.choice(emoji_with_name(split))
    source, target = rng.sample(list(entry.names), 2)
    return _row(None, f"Say in {LANGUAGES[target]}: {entry.names[source]}", entry.names[target])


def tone(split: str, rng: random.Random) -> dict:
    """Ask for the skin tone of an image."""
    entry = rng.choice(emoji_with_tone(split))
    return _row(_view(entry, rng), "Which skin tone is this?", entry.tone or "none")


def single_object(split: str, rng: random.Random) -> dict:
    """Ask for the object, the tile colour or the position in a scene with one object, the simplest kind of scene."""
    placed = Placed(rng.randrange(len(objects())), rng.randrange(CELLS), rng.randrange(len(COLOUR_NAMES)))
    prompt, answer = rng.choice(
        (
            ("What is there?", objects()[placed.object].name),
            ("What is there?", objects()[placed.object].name),
            ("What colour is the tile?", COLOUR_NAMES[placed.colour]),
            ("Where is the object?", POSITIONS[placed.cell]),
        )
    )
    return _row(Scene((placed,)).spec, prompt, answer)


def caption(split: str, rng: random.Random) -> dict:
    """Ask for a short caption of a scene."""
    scene = sample_scene(split, rng.randint(2, 4), rng)
    return _row(scene.spec, "Write a short caption.", sample_caption(scene, rng).text)


def inventory(split: str, rng: random.Random) -> dict:
    """Ask for all objects of a scene in reading order, with tiles, positions or both; the grid is often full."""
    scene = sample_scene(split, rng.choice((2, 3, 4, 5, CELLS, CELLS)), rng)
    prompt, tiles, places = rng.choice(
        (
            ("List the objects with their tiles and places.", True, True),
            ("List the objects with their tiles.", True, False),
            ("List the objects with their places.", False, True),
            ("List the objects.", False, False),
            ("List the objects.", False, False),
        )
    )
    return _row(scene.spec, prompt, full_caption(scene, colours=tiles, cells=places).text)


def long_caption(split: str, rng: random.Random) -> dict:
    """Ask for the long caption of a scene of nine objects, always in the same wording."""
    scene = sample_scene(split, 9, rng)
    prompt = "Describe the whole picture at length."  # codespell:ignore picture
    return _row(scene.spec, prompt, LongCaption(scene, (0,) * (1 + CELLS)).text)


def question(split: str, rng: random.Random) -> dict:
    """Ask a question about a scene; a quarter of the rows describe the scene in words instead of showing it."""
    sampled = sample_question(split, rng)
    if rng.random() < 0.75:
        return _row(sampled.scene.spec, sampled.text, sampled.answer)
    return _row(None, f"There is {full_caption(sampled.scene).text}. {sampled.text}", sampled.answer)


def crop(split: str, rng: random.Random) -> dict:
    """Ask for the object in the crop of a scene, or for the colour of its tile."""
    placed = rng.choice(sample_scene(split, 2, rng).placed)
    if rng.random() < 0.7:
        prompt = "What is in this picture?"  # codespell:ignore picture
        return _row(crop_spec(placed), prompt, objects()[placed.object].name)
    return _row(crop_spec(placed), "What colour is the tile?", COLOUR_NAMES[placed.colour])


def judgement(split: str, rng: random.Random) -> dict:
    """Ask whether a caption is true of a scene."""
    scene = sample_scene(split, rng.randint(2, 4), rng)
    statement = sample_caption(scene, rng)
    true = rng.random() < 0.5
    if not true:
        statement = any_false_caption(statement, scene, split, rng)
    return _row(scene.spec, f"Yes or no: {statement.text}?", "yes" if true else "no")


# kind -> (function that samples a row, weight in the mixture)
KINDS = {
    "name": (name, 16),
    "category": (category, 6),
    "translation": (translation, 1),
    "tone": (tone, 3),
    "single_object": (single_object, 5),
    "caption": (caption, 5),
    "inventory": (inventory, 16),
    "long_caption": (long_caption, 3),
    "question": (question, 34),
    "crop": (crop, 6),
    "judgement": (judgement, 5),
}
