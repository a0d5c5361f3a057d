"""Questions about scenes with their answers, and expressions that refer to one object of a scene."""

import random
from dataclasses import dataclass
from typing import cast

from .captions import sample_scene
from .scenes import POSITIONS, Placed, Scene, relation_of
from .vocabulary import COLOUR_NAMES, objects


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_RELATION_PHRASES = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
}
_KINDS = {"position": 4, "relation": 4, "tile": 4, "colour": 4, "count": 1}


@dataclass(frozen=True)
class Question:
    """A question about a scene; `other_answers` are correct for other objects of the scene and wrong here."""

    scene: Scene
    kind: str
    text: str
    answer: str
    other_answers: tuple[str, ...]


@dataclass(frozen=True)
class Expression:
    """A phrase that is true of exactly one object of a scene."""

    scene: Scene
    text: str
    target: Placed


def answers() -> list[str]:
    """Return every possible answer: objects, colours and numbers."""
    return [*dict.fromkeys([entry.name for entry in objects()]), *COLOUR_NAMES, *NUMBERS[2:6]]


def sample_question(split: str, rng: random.Random, kind: str | None = None) -> Question:
    """Sample a question about a new scene of three to five objects, of a random kind unless one is given.

    The question asks for the first object of the scene's pair (see `captions.sample_scene`); a question of kind
    "relation" names the second one.
    """
    kind = kind or rng.choices(list(_KINDS), weights=list(_KINDS.values()))[0]
    while True:
        scene = sample_scene(split, rng.randint(2 if kind == "count" else 3, 5), rng)
        if kind in ("position", "relation", "tile"):
            location = _location_phrase(kind, scene)
            if location is None:
                continue
            text = rng.choice(("What is {}?", "Which object is {}?", "What can be seen {}?")).format(location)
            names = [_name(placed) for placed in scene.placed]
            return Question(scene, kind, text, names[0], tuple(names[1:]))
        if kind == "colour":
            wordings = ("What colour is the tile of the {}?", "On which colour is the {}?")
            colours = [COLOUR_NAMES[placed.colour] for placed in scene.placed]
            others = tuple(colour for colour in dict.fromkeys(colours) if colour != colours[0])
            return Question(scene, kind, rng.choice(wordings).format(_name(scene.placed[0])), colours[0], others)
        count = len(scene.placed)
        wordings = (
            "How many objects are there?",
            "How many things does the picture show?",  # codespell:ignore picture
        )
        others = tuple(NUMBERS[number] for number in range(2, 6) if number != count)
        return Question(scene, kind, rng.choice(wordings), NUMBERS[count], others)


def sample_expression(split: str, rng: random.Random) -> Expression:
    """Sample an expression for the first object of a new scene of three to five objects."""
    kind = rng.choice(("name", "position", "relation", "tile"))
    while True:
        scene = sample_scene(split, rng.randint(3, 5), rng)
        target = scene.placed[0]
        if kind == "name":
            return Expression(scene, f"the {_name(target)}", target)
        location = _location_phrase(kind, scene)
        if location is not None:
            return Expression(scene, f"the object {location}", target)


def _location_phrase(kind: str, scene: Scene) -> str | None:
    """Return a phrase for the location of the scene's first object; `None` if it would fit another object too."""
    target, reference = scene.placed[:2]
    if kind == "position":
        return POSITIONS[target.cell]
    if kind == "tile":
        if sum(placed.colour == target.colour for placed in scene.placed) > 1:
            return None
        return f"on the {COLOUR_NAMES[target.colour]} tile"
    relation = cast(str, relation_of(target.cell, reference.cell))
    if len(scene.related(relation, reference.object)) > 1:
        return None
    return f"{_RELATION_PHRASES[relation]} the {_name(reference)}"


def _name(placed: Placed) -> str:
    return objects()[placed.object].name
