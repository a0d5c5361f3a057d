"""Minimal edits that make a caption or a scene wrong: SugarCrepe's seven kinds (Hsieh et al., 2023), and siblings.

A false caption is made from a true one by one edit and worded by the same template, so that its text alone does not
give it away. A sibling is a scene with the same look of which the caption is not true.
"""

import random
from dataclasses import replace

from .captions import Caption, Mention
from .scenes import CELLS, RELATIONS, Placed, Scene
from .splits import companions
from .vocabulary import COLOUR_NAMES


KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
_ATTEMPTS = 4
# How often an edit is tried first. What other rows of a batch never teach, where things are, comes most often.
_CAPTION_EDITS = dict(zip(KINDS, (1, 1, 4, 4, 2, 2, 2), strict=True))
_SCENE_EDITS = {"swap_cells": 3, "move": 3, "swap_colours": 2, "recolour": 1, "replace": 1}


def false_caption(kind: str, caption: Caption, scene: Scene, split: str, rng: random.Random) -> Caption | None:
    """The caption with one edit of a kind, false of the scene; None where the caption gives no room for it."""
    for _ in range(_ATTEMPTS):
        mentions = _edited(kind, list(caption.mentions), scene, split, rng)
        if mentions is None:
            return None
        edited = Caption(tuple(mentions), caption.wording)
        if not edited.holds(scene):
            return edited
    return None


def any_false_caption(caption: Caption, scene: Scene, split: str, rng: random.Random) -> Caption:
    """A false caption of whatever kind the caption has room for."""
    for kind in _weighted_order(_CAPTION_EDITS, rng):
        edited = false_caption(kind, caption, scene, split, rng)
        if edited is not None:
            return edited
    raise ValueError(f"no edit makes {caption.text!r} false")


def _weighted_order(weights: dict[str, int], rng: random.Random) -> list[str]:
    """A random order in which each comes first with a probability proportional to its weight."""
    return sorted(weights, key=lambda name: rng.random() ** (1 / weights[name]), reverse=True)


def _edited(kind: str, mentions: list[Mention], scene: Scene, split: str, rng: random.Random) -> list[Mention] | None:
    coloured = [position for position, mention in enumerate(mentions) if mention.colour is not None]
    if kind == "replace_obj":
        position = rng.randrange(len(mentions))
        mentions[position] = replace(mentions[position], object=_stranger(scene, split, rng))
    elif kind == "replace_att":
        if not coloured:
            return None
        position = rng.choice(coloured)
        mentions[position] = replace(mentions[position], colour=_other_colour(mentions[position].colour, rng))
    elif kind == "replace_rel":
        located = [
            position for position, mention in enumerate(mentions) if mention.relation or mention.cell is not None
        ]
        if not located:
            return None
        position = rng.choice(located)
        mentions[position] = _elsewhere(mentions[position], {mention.cell for mention in mentions}, rng)
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
        mentions.append(_added(mentions, scene, split, rng))
    elif kind == "add_att":
        plain = [position for position, mention in enumerate(mentions) if mention.colour is None]
        if not plain:
            return None
        position = rng.choice(plain)
        true_colour = scene.find(mentions[position].object).colour
        mentions[position] = replace(mentions[position], colour=_other_colour(true_colour, rng))
    return mentions


def _added(mentions: list[Mention], scene: Scene, split: str, rng: random.Random) -> Mention:
    """A mention of an object that the scene does not show, worded like the caption's others."""
    last = mentions[-1]
    colour = None if last.colour is None else rng.randrange(len(COLOUR_NAMES))
    cell = rng.choice(scene.empty_cells()) if mentions[0].relation or last.cell is not None else None
    relation = None
    if mentions[0].relation and rng.random() < 0.5:
        cell, relation = None, (rng.choice(RELATIONS), rng.randrange(len(mentions)))
    return Mention(_stranger(scene, split, rng), colour, cell, relation)


def _stranger(scene: Scene, split: str, rng: random.Random) -> int:
    """An object that the scene does not show and that may stand beside all of its objects."""
    return int(rng.choice(companions([placed.object for placed in scene.placed], split)))


def _other_colour(colour: int, rng: random.Random) -> int:
    return rng.choice([other for other in range(len(COLOUR_NAMES)) if other != colour])


def _elsewhere(mention: Mention, said: set[int | None], rng: random.Random) -> Mention:
    """The mention in another relation, or in a cell of which the caption says nothing: two in one cell would tell."""
    if mention.relation:
        relation, other = mention.relation
        return replace(mention, relation=(rng.choice([one for one in RELATIONS if one != relation]), other))
    return replace(mention, cell=rng.choice([cell for cell in range(CELLS) if cell not in said]))


def sibling(scene: Scene, caption: Caption, split: str, rng: random.Random) -> Scene:
    """A scene that differs from the given one in one thing, of which the caption is false.

    Two objects change places, an object moves, two tiles change colours, a tile or an object is replaced.
    """
    for edit in _weighted_order(_SCENE_EDITS, rng):
        for _ in range(_ATTEMPTS):
            other = _rearranged(edit, list(scene.placed), scene, split, rng)
            if not caption.holds(other):
                return other
    raise ValueError(f"no edit of {scene.spec!r} makes {caption.text!r} false")


def _rearranged(edit: str, placed: list[Placed], scene: Scene, split: str, rng: random.Random) -> Scene:
    first, second = rng.sample(range(len(placed)), 2)
    one, two = placed[first], placed[second]
    if edit == "swap_cells":
        placed[first], placed[second] = replace(one, cell=two.cell), replace(two, cell=one.cell)
    elif edit == "swap_colours":
        placed[first], placed[second] = replace(one, colour=two.colour), replace(two, colour=one.colour)
    elif edit == "move" and scene.empty_cells():
        placed[first] = replace(one, cell=rng.choice(scene.empty_cells()))
    elif edit == "recolour":
        placed[first] = replace(one, colour=_other_colour(one.colour, rng))
    elif edit == "replace":
        placed[first] = replace(one, object=_stranger(scene, split, rng))
    return Scene(tuple(placed))
