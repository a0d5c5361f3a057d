"""Minimal edits of captions and scenes: SugarCrepe's seven kinds of false caption (Hsieh et al., 2023).

A false caption is made from a true one by one edit and uses the same template, so that its text alone does not reveal
it. An edited scene looks like the original, but its caption is false.
"""

import random
from dataclasses import replace
from typing import cast

from .captions import Caption, Mention
from .scenes import CELLS, RELATIONS, Placed, Scene
from .splits import companions
from .vocabulary import COLOUR_NAMES


KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
_MAX_ATTEMPTS = 4
# Weights of the first edit that is tried. Position edits weigh most, as other rows of a batch never teach positions.
_CAPTION_EDITS = dict(zip(KINDS, (1, 1, 4, 4, 2, 2, 2), strict=True))
_SCENE_EDITS = {"swap_cells": 3, "move": 3, "swap_colours": 2, "recolour": 1, "replace": 1}


def false_caption(kind: str, caption: Caption, scene: Scene, split: str, rng: random.Random) -> Caption | None:
    """Return the caption with one edit that makes it false of the scene; `None` if the edit does not apply to it."""
    for _ in range(_MAX_ATTEMPTS):
        mentions = _edited_mentions(kind, list(caption.mentions), scene, split, rng)
        if mentions is None:
            return None
        edited = Caption(tuple(mentions), caption.wording)
        if not edited.holds(scene):
            return edited
    return None


def any_false_caption(caption: Caption, scene: Scene, split: str, rng: random.Random) -> Caption:
    """Return a false caption, by any kind of edit that applies to the caption."""
    for kind in _weighted_order(_CAPTION_EDITS, rng):
        edited = false_caption(kind, caption, scene, split, rng)
        if edited is not None:
            return edited
    raise ValueError(f"no edit makes {caption.text!r} false")


def _weighted_order(weights: dict[str, int], rng: random.Random) -> list[str]:
    """Return a random order in which each name comes first with a probability proportional to its weight."""
    return sorted(weights, key=lambda name: rng.random() ** (1 / weights[name]), reverse=True)


def _edited_mentions(
    kind: str, mentions: list[Mention], scene: Scene, split: str, rng: random.Random
) -> list[Mention] | None:
    coloured = [position for position, mention in enumerate(mentions) if mention.colour is not None]
    if kind == "replace_obj":
        position = rng.randrange(len(mentions))
        mentions[position] = replace(mentions[position], object=_absent_object(scene, split, rng))
    elif kind == "replace_att":
        if not coloured:
            return None
        position = rng.choice(coloured)
        colour = cast(int, mentions[position].colour)
        mentions[position] = replace(mentions[position], colour=_other_colour(colour, rng))
    elif kind == "replace_rel":
        located = [
            position for position, mention in enumerate(mentions) if mention.relation or mention.cell is not None
        ]
        if not located:
            return None
        position = rng.choice(located)
        mentions[position] = _moved_mention(mentions[position], {mention.cell for mention in mentions}, rng)
    elif kind == "swap_obj":
        first, second = rng.sample(range(len(mentions)), 2)
        objects = mentions[first].object, mentions[second].object
        mentions[first] = replace(mentions[first], object=objects[1])
        mentions[second] = replace(mentions[second], object=objects[0])
    elif kind == "swap_att":
        if len(coloured) < 2:
            return None
        first, second = rng.sample(coloured, 2)
        colours = mentions[first].colour, mentions[second].colour
        mentions[first] = replace(mentions[first], colour=colours[1])
        mentions[second] = replace(mentions[second], colour=colours[0])
    elif kind == "add_obj":
        mentions.append(_added_mention(mentions, scene, split, rng))
    elif kind == "add_att":
        plain = [position for position, mention in enumerate(mentions) if mention.colour is None]
        if not plain:
            return None
        position = rng.choice(plain)
        true_colour = cast(Placed, scene.find(mentions[position].object)).colour
        mentions[position] = replace(mentions[position], colour=_other_colour(true_colour, rng))
    return mentions


def _added_mention(mentions: list[Mention], scene: Scene, split: str, rng: random.Random) -> Mention:
    """Return a mention of an object that the scene does not show, worded like the other mentions of the caption."""
    last = mentions[-1]
    colour = None if last.colour is None else rng.randrange(len(COLOUR_NAMES))
    cell = rng.choice(scene.empty_cells()) if mentions[0].relation or last.cell is not None else None
    relation = None
    if mentions[0].relation and rng.random() < 0.5:
        cell, relation = None, (rng.choice(RELATIONS), rng.randrange(len(mentions)))
    return Mention(_absent_object(scene, split, rng), colour, cell, relation)


def _absent_object(scene: Scene, split: str, rng: random.Random) -> int:
    """Sample an object that the scene does not show and that the split allows beside all of its objects."""
    return int(rng.choice(companions([placed.object for placed in scene.placed], split)))


def _other_colour(colour: int, rng: random.Random) -> int:
    return rng.choice([other for other in range(len(COLOUR_NAMES)) if other != colour])


def _moved_mention(mention: Mention, mentioned_cells: set[int | None], rng: random.Random) -> Mention:
    """Return the mention with another relation, or with a cell that the caption does not mention.

    Two objects in one cell would reveal a false caption.
    """
    if mention.relation:
        current, reference = mention.relation
        other_relations = [relation for relation in RELATIONS if relation != current]
        return replace(mention, relation=(rng.choice(other_relations), reference))
    return replace(mention, cell=rng.choice([cell for cell in range(CELLS) if cell not in mentioned_cells]))


def edited_scene(scene: Scene, caption: Caption, split: str, rng: random.Random) -> Scene:
    """Return the scene with one edit that makes the caption false.

    Two objects swap positions, an object moves, two tiles swap colours, or a tile or an object is replaced.
    """
    for edit in _weighted_order(_SCENE_EDITS, rng):
        for _ in range(_MAX_ATTEMPTS):
            other = _edited_objects(edit, list(scene.placed), scene, split, rng)
            if not caption.holds(other):
                return other
    raise ValueError(f"no edit of {scene.spec!r} makes {caption.text!r} false")


def _edited_objects(edit: str, placed: list[Placed], scene: Scene, split: str, rng: random.Random) -> Scene:
    first, second = rng.sample(range(len(placed)), 2)
    a, b = placed[first], placed[second]
    if edit == "swap_cells":
        placed[first], placed[second] = replace(a, cell=b.cell), replace(b, cell=a.cell)
    elif edit == "swap_colours":
        placed[first], placed[second] = replace(a, colour=b.colour), replace(b, colour=a.colour)
    elif edit == "move" and scene.empty_cells():
        placed[first] = replace(a, cell=rng.choice(scene.empty_cells()))
    elif edit == "recolour":
        placed[first] = replace(a, colour=_other_colour(a.colour, rng))
    elif edit == "replace":
        placed[first] = replace(a, object=_absent_object(scene, split, rng))
    return Scene(tuple(placed))
