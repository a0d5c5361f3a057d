"""Short captions of scenes: statements that can be checked against a scene, and their wording."""

import random
from dataclasses import dataclass

from .scenes import CELLS, GRID, POSITIONS, RELATIONS, Placed, Scene, relation_of
from .splits import companions, partners
from .vocabulary import COLOUR_NAMES, objects


_WORDS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_FRAMES = ("{}", "{}", "a picture of {}", "there is {}", "this shows {}", "we see {}")
WORDINGS = len(_FRAMES)


@dataclass(frozen=True)
class Mention:
    """One object of a caption: perhaps its tile's colour, its cell, or how it lies to an earlier mention.

    `relation` is (a key of `RELATIONS`, the position of the other mention in the caption).
    """

    object: int
    colour: int | None = None
    cell: int | None = None
    relation: tuple[str, int] | None = None

    def holds(self, scene: Scene, mentions: tuple["Mention", ...]) -> bool:
        """Whether the scene shows what is said of this object."""
        there = scene.find(self.object)
        if there is None or self.colour not in (None, there.colour) or self.cell not in (None, there.cell):
            return False
        if self.relation is None:
            return True
        relation, other = self.relation
        return there in scene.related(relation, mentions[other].object)


@dataclass(frozen=True)
class Caption:
    """Mentions in the order of the text, and which of the `WORDINGS` says them."""

    mentions: tuple[Mention, ...]
    wording: int

    def holds(self, scene: Scene) -> bool:
        """Whether everything that the caption says is true of the scene."""
        return all(mention.holds(scene, self.mentions) for mention in self.mentions)

    @property
    def text(self) -> str:
        """The caption in English."""
        phrases = []
        for mention in self.mentions:
            phrase = objects()[mention.object].with_article
            if mention.colour is not None:
                phrase += f" on {_tile(mention.colour)}"
            if mention.cell is not None:
                phrase += f" {POSITIONS[mention.cell]}"
            if mention.relation is not None:
                relation, other = mention.relation
                phrase += f" {_WORDS[relation][self.wording % 2]} {self._reference(other)}"
            phrases.append(phrase)
        # The first two mentions of a relational caption are one phrase: "a pizza to the left of a cat".
        if self._is_relational:
            phrases = phrases[1:]
        listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
        return _FRAMES[self.wording].format(listed)

    @property
    def _is_relational(self) -> bool:
        return len(self.mentions) > 1 and self.mentions[1].relation is not None

    def _reference(self, position: int) -> str:
        mention = self.mentions[position]
        introduced = not (self._is_relational and position == 0) or len(self.mentions) == 0
        if introduced:
            return f"the {objects()[mention.object].name}"
        phrase = objects()[mention.object].with_article
        return phrase if mention.colour is None else f"{phrase} on {_tile(mention.colour)}"
