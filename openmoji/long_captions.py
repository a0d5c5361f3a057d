"""Long captions of nine objects, and families of scenes with captions that differ at the end only."""

import random
from dataclasses import dataclass, replace
from typing import cast

from .captions import tile
from .scenes import CELLS, GRID, POSITIONS, Placed, Scene
from .splits import companions
from .vocabulary import COLOUR_NAMES, objects


_OPENINGS = (
    "This picture shows nine objects in three rows.",  # codespell:ignore picture
    "Nine tiles lie in a square, each with something on it.",
    "The picture is full: there are nine things in it, one in every place.",  # codespell:ignore picture
)
_ANYWHERE = (
    "{At} there is {a} on {tile}.",
    "{At} we see {a}, which stands on {tile}.",
    "{A} on {tile} can be seen {at}.",
    "The tile {at} is {colour} and shows {a}.",
)
_AFTER_ANOTHER = (
    "To the right of the {left} there is {a} on {tile}.",
    "Next to the {left}, {at}, comes {a}, and its tile is {colour}.",
)
_UNDER_ANOTHER = (
    "Below the {above}, {at}, there is {a} on {tile}.",
    "{A} on {tile} is under the {above}.",
)


@dataclass(frozen=True)
class LongCaption:
    """A scene of nine objects with the wording of its caption: one number for the opening and one for each cell."""

    scene: Scene
    wording: tuple[int, ...]

    @property
    def text(self) -> str:
        """Return the caption in reading order, about 150 to 200 tokens."""
        sentences = [_OPENINGS[self.wording[0] % len(_OPENINGS)]]
        for cell in range(CELLS):
            sentences.append(_sentence(self.scene, cell, self.wording[1 + cell]))
        return " ".join(sentences)


def sample_wording(rng: random.Random) -> tuple[int, ...]:
    """Sample the wording of a whole caption."""
    return tuple(rng.randrange(1000) for _ in range(1 + CELLS))


def _at(scene: Scene, cell: int) -> Placed:
    return cast(Placed, scene.at(cell))  # the scenes of long captions fill every cell


def _name(placed: Placed) -> str:
    return objects()[placed.object].name


def _sentence(scene: Scene, cell: int, wording: int) -> str:
    templates: tuple[str, ...] = _ANYWHERE
    words = {}
    # A sentence refers to earlier cells only, so that changing the last cells changes the last sentences only.
    if cell % GRID:
        templates += _AFTER_ANOTHER
        words["left"] = _name(_at(scene, cell - 1))
    if cell >= GRID:
        templates += _UNDER_ANOTHER
        words["above"] = _name(_at(scene, cell - GRID))
    placed = _at(scene, cell)
    a, at = objects()[placed.object].with_article, POSITIONS[cell]
    return templates[wording % len(templates)].format(
        a=a,
        A=a.capitalize(),
        at=at,
        At=at.capitalize(),
        tile=tile(placed.colour),
        colour=COLOUR_NAMES[placed.colour],
        **words,
    )


def family(scene: Scene, size: int, split: str, rng: random.Random) -> list[Scene]:
    """Return the scene and `size - 1` distinct variants that differ from it in the last two or three cells."""
    members = [scene]
    while len(members) < size:
        member = _with_other_ending(scene, split, rng)
        if all(member.spec != other.spec for other in members):
            members.append(member)
    return members


def _with_other_ending(scene: Scene, split: str, rng: random.Random) -> Scene:
    ordered = sorted(scene.placed, key=lambda placed: placed.cell)
    end = CELLS - rng.choice((2, 3))
    head, tail = ordered[:end], ordered[end:]
    edit = rng.choice(("objects", "colours", "objects", "colours", "recolour", "replace"))
    if edit == "objects":
        shuffled = rng.sample([placed.object for placed in tail], len(tail))
        tail = [replace(placed, object=object) for placed, object in zip(tail, shuffled, strict=True)]
    elif edit == "colours":
        shuffled = rng.sample([placed.colour for placed in tail], len(tail))
        tail = [replace(placed, colour=colour) for placed, colour in zip(tail, shuffled, strict=True)]
    elif edit == "recolour":
        position = rng.randrange(len(tail))
        tail[position] = replace(tail[position], colour=rng.randrange(len(COLOUR_NAMES)))
    else:
        position = rng.randrange(len(tail))
        newcomer = rng.choice(companions([placed.object for placed in ordered], split))
        tail[position] = replace(tail[position], object=int(newcomer))
    return Scene(tuple(head + tail))
