"""What a backbone is taught before it becomes an embedder: images with prompts and answers, and texts alone.

Each function gives one generative row: `image` (a spec or None), `prompt`, `answer`. A prompt always says which form
of answer it wants, so that the answer is a matter of the image and not of luck.
"""

import random

from .captions import full_caption, sample_caption, sample_scene
from .catalogue import LANGUAGES, Emoji
from .long_captions import LongCaption
from .names import categorised, named, toned
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
    """Image -> its name, in English or in a language that the prompt names."""
    entry = rng.choice(named(split))
    if rng.random() < 0.6:
        return _row(_view(entry, rng), rng.choice(("What is this?", "Name the object.", "Name this.")), entry.name)
    language = rng.choice([language for language in entry.names if language != "en"])
    prompt = rng.choice(("What is this in {}?", "Name the object in {}.", "Name this in {}."))
    return _row(_view(entry, rng), prompt.format(LANGUAGES[language]), entry.names[language])


def category(split: str, rng: random.Random) -> dict:
    """Image or name -> subcategory or category."""
    entry = rng.choice(categorised(split))
    kind, answer = ("subcategory", entry.subcategory) if rng.random() < 0.7 else ("category", entry.category)
    if rng.random() < 0.75:
        prompts = ("Which {} is this?", "Name the {} of this.", "To which {} does this belong?")
        return _row(_view(entry, rng), rng.choice(prompts).format(kind), answer)
    return _row(None, f"Which {kind} has the object called {entry.name}?", answer)


def translation(split: str, rng: random.Random) -> dict:
    """Name in one language -> name in another, from text alone."""
    entry = rng.choice(named(split))
    source, target = rng.sample(list(entry.names), 2)
    return _row(None, f"Say in {LANGUAGES[target]}: {entry.names[source]}", entry.names[target])


def tone(split: str, rng: random.Random) -> dict:
    """Image of a role -> its skin tone."""
    entry = rng.choice(toned(split))
    return _row(_view(entry, rng), "Which skin tone is this?", entry.tone or "none")


def glimpse(split: str, rng: random.Random) -> dict:
    """Scene of one object -> the object, the colour of its tile or its place: how scenes begin to be read."""
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
    """Scene -> a short caption."""
    scene = sample_scene(split, rng.randint(2, 4), rng)
    return _row(scene.spec, "Write a short caption.", sample_caption(scene, rng).text)


def inventory(split: str, rng: random.Random) -> dict:
    """Scene, often a full one -> its objects in reading order, with tiles, places or both: all of it to be seen."""
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
    """Scene of nine objects -> long caption, always in the same wording."""
    scene = sample_scene(split, 9, rng)
    return _row(scene.spec, "Describe the whole picture at length.", LongCaption(scene, (0,) * (1 + CELLS)).text)


def question(split: str, rng: random.Random) -> dict:
    """Scene and question -> answer; sometimes the scene is told instead of shown."""
    asked = sample_question(split, rng)
    if rng.random() < 0.75:
        return _row(asked.scene.spec, asked.text, asked.answer)
    return _row(None, f"There is {full_caption(asked.scene).text}. {asked.text}", asked.answer)


def crop(split: str, rng: random.Random) -> dict:
    """Crop of a scene -> the object or the colour of its tile."""
    placed = rng.choice(sample_scene(split, 2, rng).placed)
    if rng.random() < 0.7:
        return _row(crop_spec(placed), "What is in this picture?", objects()[placed.object].name)
    return _row(crop_spec(placed), "What colour is the tile?", COLOUR_NAMES[placed.colour])


def judgement(split: str, rng: random.Random) -> dict:
    """Scene and caption -> whether the caption is true."""
    scene = sample_scene(split, rng.randint(2, 4), rng)
    said = sample_caption(scene, rng)
    true = rng.random() < 0.5
    if not true:
        said = any_false_caption(said, scene, split, rng)
    return _row(scene.spec, f"Yes or no: {said.text}?", "yes" if true else "no")


# kind -> (its rows, its weight in the mixture)
KINDS = {
    "name": (name, 16),
    "category": (category, 6),
    "translation": (translation, 1),
    "tone": (tone, 3),
    "glimpse": (glimpse, 5),
    "caption": (caption, 5),
    "inventory": (inventory, 16),
    "long_caption": (long_caption, 3),
    "question": (question, 34),
    "crop": (crop, 6),
    "judgement": (judgement, 5),
}
