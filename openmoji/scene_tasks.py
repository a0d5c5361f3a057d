"""The world's training tasks: one function each, from a split and a random source to a row of queries and candidates.

Rows hold images as specs (see `world.draw`); `world.rows` draws them when they are read. The tasks on scenes are
here, those on single images in `single_tasks`.
"""

import functools
import itertools
import random

from .captions import WORDINGS, Caption, Mention, full_caption, sample_caption, sample_scene
from .image_tasks import category, composed, name_i2t, name_t2i, people_composed, people_i2t, people_t2i, subcategory
from .items import CROP, CROP_TARGET, IMAGE_OF_TEXT, QUESTION, TEXT_OF_IMAGE, image_target, item, sample_up_to
from .long_captions import LongCaption, family, sample_wording
from .perturbations import any_false_caption, sibling
from .questions import sample_expression, sample_question
from .scenes import CELLS, Placed, Scene, crop_spec, relation_of
from .splits import SPLITS, companions, pair_splits, partners
from .vocabulary import COLOUR_NAMES


def scene_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """Caption -> scene; siblings of which the caption is false are the hard negatives."""
    scene = sample_scene(split, rng.randint(2, 4), rng)
    caption = sample_caption(scene, rng)
    siblings = [sibling(scene, caption, split, rng) for _ in range(negatives)]
    return {
        "query": item(caption.text, instruction=IMAGE_OF_TEXT),
        "positive": image_target(scene.spec),
        "negatives": [image_target(other.spec) for other in siblings],
        "label": None,
    }


def scene_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Scene -> caption; minimally edited false captions are the hard negatives."""
    scene = sample_scene(split, rng.randint(2, 4), rng)
    caption = sample_caption(scene, rng)
    edited = [any_false_caption(caption, scene, split, rng) for _ in range(negatives)]
    return {
        "query": item(image=scene.spec, instruction=TEXT_OF_IMAGE),
        "positive": item(caption.text),
        "negatives": [item(other.text) for other in edited],
        "label": None,
    }


@functools.cache
def _few(split: str) -> tuple[int, ...]:
    """Four objects that may stand beside each other in a scene of the split; the first two are a pair of its own."""
    chosen = [0, int(partners(0, split)[0])]
    while len(chosen) < 4:
        chosen.append(int(companions(chosen, split)[0]))
    return tuple(chosen)


def _scene_of_few(split: str, size: int, in_line: bool, rng: random.Random) -> Scene:
    """A scene of some of the same four objects, a pair of the split among them, perhaps in one row or column.

    In a block of a batch the objects then tell next to nothing, and how they are arranged everything. One hard
    negative beside hundreds that show other objects does not make a fresh model look where things are.
    """
    own, present, cells = SPLITS.index(split), [], []
    while not any(pair_splits()[pair] == own for pair in itertools.combinations(present, 2)):
        present = rng.sample(_few(split), size)
    while not cells or in_line and not relation_of(*cells):
        cells = rng.sample(range(CELLS), size)
    colours = [rng.randrange(len(COLOUR_NAMES)) for _ in present]
    return Scene(tuple(map(Placed, present, cells, colours)))


def _to_image(scene: Scene, caption: str, label: str) -> dict:
    return {
        "query": item(caption, instruction=IMAGE_OF_TEXT),
        "positive": image_target(scene.spec),
        "negatives": [],
        "label": label,  # another image of the same arrangement is right too
    }


def _to_caption(scene: Scene, caption: str, label: str) -> dict:
    return {
        "query": item(image=scene.spec, instruction=TEXT_OF_IMAGE),
        "positive": item(caption),
        "negatives": [],
        "label": label,
    }


def _arrangement(split: str, rng: random.Random) -> tuple[Scene, str, str]:
    """A scene of few objects, a caption of their places or of their tiles, and what is right for both."""
    scene = _scene_of_few(split, rng.choice((2, 2, 3)), False, rng)
    places = rng.random() < 0.5
    caption = full_caption(scene, colours=not places, cells=places).text
    return scene, caption, caption


def arrangement_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """Caption of an arrangement -> scene."""
    return _to_image(*_arrangement(split, rng))


def arrangement_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Scene -> caption of its arrangement."""
    return _to_caption(*_arrangement(split, rng))


def _relation(split: str, rng: random.Random) -> tuple[Scene, str, str]:
    """A scene of two objects, a caption of how one lies to the other, and the same said in one way for both."""
    scene = _scene_of_few(split, 2, True, rng)
    one, other = rng.sample(scene.placed, 2)
    mentions = Mention(one.object, relation=(relation_of(one.cell, other.cell), 1)), Mention(other.object)
    first, second = sorted(scene.placed, key=lambda placed: placed.cell)
    label = f"{first.object} {relation_of(first.cell, second.cell)} {second.object}"
    return scene, Caption(mentions, rng.randrange(WORDINGS)).text, label


def relation_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """Caption of a relation -> scene."""
    return _to_image(*_relation(split, rng))


def relation_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Scene -> caption of the relation of its two objects."""
    return _to_caption(*_relation(split, rng))


def long_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """Long caption -> scene of nine objects; scenes that differ only at the caption's end are the hard negatives."""
    scene, *others = family(sample_scene(split, 9, rng), 1 + negatives, split, rng)
    return {
        "query": item(LongCaption(scene, sample_wording(rng)).text, instruction=IMAGE_OF_TEXT),
        "positive": image_target(scene.spec),
        "negatives": [image_target(other.spec) for other in others],
        "label": None,
    }


def long_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Scene of nine objects -> long caption; captions that differ only at the end are the hard negatives."""
    scene, *others = family(sample_scene(split, 9, rng), 1 + negatives, split, rng)
    wording = sample_wording(rng)
    return {
        "query": item(image=scene.spec, instruction=TEXT_OF_IMAGE),
        "positive": item(LongCaption(scene, wording).text),
        "negatives": [item(LongCaption(other, wording).text) for other in others],
        "label": None,
    }


def question(split: str, negatives: int, rng: random.Random) -> dict:
    """Scene and question -> answer; what would be right for other objects of the scene is the hard negative."""
    asked = sample_question(split, rng)
    return {
        "query": item(asked.text, asked.scene.spec, QUESTION),
        "positive": item(asked.answer),
        "negatives": [item(answer) for answer in sample_up_to(list(asked.other_answers), negatives, rng)],
        "label": asked.answer,
    }


def crop(split: str, negatives: int, rng: random.Random) -> dict:
    """Scene and expression -> crop of the object it means; the scene's other objects are the hard negatives."""
    pointed = sample_expression(split, rng)
    others = [placed for placed in pointed.scene.placed if placed != pointed.target]
    return {
        "query": item(f'"{pointed.text}"', pointed.scene.spec, CROP),
        "positive": item(image=crop_spec(pointed.target), instruction=CROP_TARGET),
        "negatives": [
            item(image=crop_spec(placed), instruction=CROP_TARGET) for placed in sample_up_to(others, negatives, rng)
        ],
        "label": crop_spec(pointed.target),
    }


# task -> (its rows, its weight in the mixture)
TASKS = {
    "subcategory": (subcategory, 5),
    "category": (category, 2),
    "name_t2i": (name_t2i, 20),
    "name_i2t": (name_i2t, 22),
    "composed": (composed, 10),
    "people_t2i": (people_t2i, 12),
    "people_i2t": (people_i2t, 16),
    "people_composed": (people_composed, 10),
    "scene_t2i": (scene_t2i, 14),
    "scene_i2t": (scene_i2t, 14),
    "arrangement_t2i": (arrangement_t2i, 6),
    "arrangement_i2t": (arrangement_i2t, 6),
    "relation_t2i": (relation_t2i, 8),
    "relation_i2t": (relation_i2t, 8),
    "long_t2i": (long_t2i, 5),
    "long_i2t": (long_i2t, 4),
    "question": (question, 7),
    "crop": (crop, 6),
}
