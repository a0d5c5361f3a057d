"""Short captions of scenes: statements that can be checked against a scene, and their wording."""

import random
from dataclasses import dataclass

import numpy as np

from .scenes import CELLS, POSITIONS, Placed, Scene, relation_of
from .splits import companions, partners
from .vocabulary import COLOUR_NAMES, objects


_RELATION_PHRASES = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_FRAMES = ("{}", "{}", "a picture of {}", "there is {}", "this shows {}", "we see {}")  # codespell:ignore picture
WORDINGS = len(_FRAMES)


@dataclass(frozen=True)
class Mention:
    """One object of a caption, optionally with its tile's colour, its cell, or its relation to another mention.

    Args:
        object (`int`): Id in the vocabulary.
        colour (`int`, *optional*): Index of the tile's colour in `COLOUR_NAMES`.
        cell (`int`, *optional*): Cell in reading order, 0 to 8.
        relation (`tuple[str, int]`, *optional*): One of `RELATIONS` and the position of the other mention.
    """

    object: int
    colour: int | None = None
    cell: int | None = None
    relation: tuple[str, int] | None = None

    def holds(self, scene: Scene, mentions: tuple["Mention", ...]) -> bool:
        """Return whether the mention is true of the scene."""
        placed = scene.find(self.object)
        if placed is None or self.colour not in (None, placed.colour) or self.cell not in (None, placed.cell):
            return False
        if self.relation is None:
            return True
        relation, other = self.relation
        return placed in scene.related(relation, mentions[other].object)


@dataclass(frozen=True)
class Caption:
    """Mentions in the order of the text, and the number of the wording (below `WORDINGS`)."""

    mentions: tuple[Mention, ...]
    wording: int

    def holds(self, scene: Scene) -> bool:
        """Return whether every mention is true of the scene."""
        return all(mention.holds(scene, self.mentions) for mention in self.mentions)

    @property
    def text(self) -> str:
        """Return the caption in English."""
        # "a pizza to the left of a cat" is one phrase with two mentions.
        positions = [0, *range(2, len(self.mentions))] if self.mentions[0].relation else range(len(self.mentions))
        phrases = [self._phrase(position) for position in positions]
        return _FRAMES[self.wording].format(" and ".join([", ".join(phrases[:-1]), phrases[-1]][len(phrases) == 1 :]))

    def _phrase(self, position: int) -> str:
        mention = self.mentions[position]
        phrase = objects()[mention.object].with_article
        if mention.colour is not None:
            phrase += f" on {tile(mention.colour)}"
        if mention.cell is not None:
            phrase += f" {POSITIONS[mention.cell]}"
        if mention.relation is not None:
            relation, other = mention.relation
            reference = self._phrase(other) if position == 0 else f"the {objects()[self.mentions[other].object].name}"
            phrase += f" {_RELATION_PHRASES[relation][self.wording % 2]} {reference}"
        return phrase


def tile(colour: int) -> str:
    """Return the words for a tile of a colour, with the article."""
    name = COLOUR_NAMES[colour]
    return f"{'an' if name[0] == 'o' else 'a'} {name} tile"


def sample_scene(split: str, size: int, rng: random.Random) -> Scene:
    """Sample a scene of `size` objects; the first two are a pair of the split and share a row or a column."""
    first = rng.randrange(len(objects()))
    present = [first, _choose(partners(first, split), rng)]
    while len(present) < size:
        present.append(_choose(companions(present, split), rng))
    start = rng.randrange(CELLS)
    second = rng.choice([cell for cell in range(CELLS) if relation_of(start, cell)])
    others = rng.sample([cell for cell in range(CELLS) if cell not in (start, second)], size - 2)
    return Scene(
        tuple(
            Placed(object, cell, rng.randrange(len(COLOUR_NAMES)))
            for object, cell in zip(present, [start, second, *others], strict=True)
        )
    )


def sample_caption(scene: Scene, rng: random.Random) -> Caption:
    """Sample a true caption of two or more of the scene's objects, including the first two."""
    mentioned = list(scene.placed[: rng.randint(2, len(scene.placed))])
    colours = rng.choice(("all", "all", "none", "some"))
    relational = rng.random() < 0.5
    if relational:
        pair = mentioned[:2]
        rng.shuffle(pair)
        mentioned[:2] = pair
    else:
        rng.shuffle(mentioned)
    # A caption that names all colours may omit the positions.
    placed_in_cells = colours != "all" or rng.random() < 0.7
    mentions = []
    for position, placed in enumerate(mentioned):
        colour = placed.colour if colours == "all" or (colours == "some" and rng.random() < 0.5) else None
        if relational and position < 2:
            relation = relation_of(placed.cell, mentioned[1].cell) if position == 0 else None
            mentions.append(Mention(placed.object, colour, relation=None if relation is None else (relation, 1)))
            continue
        earlier = [
            (name, other)
            for other in range(position)
            if (name := relation_of(placed.cell, mentioned[other].cell)) is not None
        ]
        if relational and earlier and rng.random() < 0.5:
            mentions.append(Mention(placed.object, colour, relation=rng.choice(earlier)))
        else:
            mentions.append(Mention(placed.object, colour, cell=placed.cell if placed_in_cells else None))
    return Caption(tuple(mentions), rng.randrange(WORDINGS))


def _choose(ids: np.ndarray, rng: random.Random) -> int:
    return int(ids[rng.randrange(len(ids))])


def full_caption(scene: Scene, colours: bool = True, cells: bool = True) -> Caption:
    """Return the caption of all objects in reading order, with tile colours, positions, or both."""
    ordered = sorted(scene.placed, key=lambda placed: placed.cell)
    mentions = [
        Mention(placed.object, placed.colour if colours else None, placed.cell if cells else None)
        for placed in ordered
    ]
    return Caption(tuple(mentions), wording=0)
