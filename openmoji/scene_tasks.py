"""The OpenMoji training tasks: each function samples a row (query, positive, negatives, label) of a split.

Rows store images as specs, which `dataset.openmoji_rows` draws when a row is read. This module holds the tasks on
scenes and the list of all tasks; the tasks on single images are in `image_tasks`.
"""

import functools
import itertools
import random
from typing import cast

from .captions import WORDINGS, Caption, Mention, full_caption, sample_caption, sample_scene
from .image_tasks import category, composed, name_i2t, name_t2i, people_composed, people_i2t, people_t2i, subcategory
from .items import CROP, CROP_TARGET, IMAGE_OF_TEXT, QUESTION, TEXT_OF_IMAGE, image_target, item, sample_up_to
from .long_captions import LongCaption, family, sample_wording
from .perturbations import any_false_caption, edited_scene
from .questions import sample_expression, sample_question
from .scenes import CELLS, Placed, Scene, crop_spec, relation_of
from .splits import SPLITS, companions, pair_splits, partners
from .vocabulary import COLOUR_NAMES


def scene_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample a caption with its scene; hard negatives are edited scenes for which the caption is false."""
    scene = sample_scene(split, rng.randint(2, 4), rng)
    caption = sample_caption(scene, rng)
    others = [edited_scene(scene, caption, split, rng) for _ in range(negatives)]
    return {
        "query": item(caption.text, instruction=IMAGE_OF_TEXT),
        "positive": image_target(scene.spec),
        "negatives": [image_target(other.spec) for other in others],
        "label": None,
    }


def scene_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample a scene with its caption; hard negatives are minimally edited false captions."""
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
def _arrangement_objects(split: str) -> tuple[int, ...]:
    """Return four objects that the split allows in one scene; the first two are a pair of the split."""
    chosen = [0, int(partners(0, split)[0])]
    while len(chosen) < 4:
        chosen.append(int(companions(chosen, split)[0]))
    return tuple(chosen)


def _arrangement_scene(split: str, size: int, in_line: bool, rng: random.Random) -> Scene:
    """Sample a scene of some of the same four objects, including a pair of the split, on request in a row or column.

    Within a task block of a batch the objects then say almost nothing and their arrangement everything. A single hard
    negative among hundreds with other objects does not make an untrained model attend to positions.
    """
    split_index, present, cells = SPLITS.index(split), [], []
    while not any(pair_splits()[pair] == split_index for pair in itertools.combinations(present, 2)):
        present = rng.sample(_arrangement_objects(split), size)
    while not cells or in_line and not relation_of(*cells):
        cells = rng.sample(range(CELLS), size)
    colours = [rng.randrange(len(COLOUR_NAMES)) for _ in present]
    return Scene(tuple(map(Placed, present, cells, colours)))


def _to_image(scene: Scene, caption: str, label: str) -> dict:
    return {
        "query": item(caption, instruction=IMAGE_OF_TEXT),
        "positive": image_target(scene.spec),
        "negatives": [],
        "label": label,  # another image of the same arrangement is correct too
    }


def _to_caption(scene: Scene, caption: str, label: str) -> dict:
    return {
        "query": item(image=scene.spec, instruction=TEXT_OF_IMAGE),
        "positive": item(caption),
        "negatives": [],
        "label": label,
    }


def _arrangement(split: str, rng: random.Random) -> tuple[Scene, str, str]:
    """Sample a scene of two or three objects, a caption of their positions or of their tiles, and the label."""
    scene = _arrangement_scene(split, rng.choice((2, 2, 3)), False, rng)
    with_positions = rng.random() < 0.5
    caption = full_caption(scene, colours=not with_positions, cells=with_positions).text
    return scene, caption, caption


def arrangement_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample the caption of an arrangement with its scene."""
    return _to_image(*_arrangement(split, rng))


def arrangement_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample a scene with the caption of its arrangement."""
    return _to_caption(*_arrangement(split, rng))


def _relation(split: str, rng: random.Random) -> tuple[Scene, str, str]:
    """Sample a scene of two objects, a caption of their spatial relation, and a label in canonical order."""
    scene = _arrangement_scene(split, 2, True, rng)
    target, reference = rng.sample(scene.placed, 2)
    relation = cast(str, relation_of(target.cell, reference.cell))  # all cells of an arrangement share a line
    mentions = Mention(target.object, relation=(relation, 1)), Mention(reference.object)
    first, second = sorted(scene.placed, key=lambda placed: placed.cell)
    label = f"{first.object} {relation_of(first.cell, second.cell)} {second.object}"
    return scene, Caption(mentions, rng.randrange(WORDINGS)).text, label


def relation_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample the caption of a spatial relation with its scene."""
    return _to_image(*_relation(split, rng))


def relation_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample a scene with the caption of the relation of its two objects."""
    return _to_caption(*_relation(split, rng))


def long_t2i(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample a long caption with its scene; hard negatives differ in the last sentences of the caption only."""
    scene, *others = family(sample_scene(split, 9, rng), 1 + negatives, split, rng)
    return {
        "query": item(LongCaption(scene, sample_wording(rng)).text, instruction=IMAGE_OF_TEXT),
        "positive": image_target(scene.spec),
        "negatives": [image_target(other.spec) for other in others],
        "label": None,
    }


def long_i2t(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample a scene of nine objects with its long caption; hard negatives differ in the last sentences only."""
    scene, *others = family(sample_scene(split, 9, rng), 1 + negatives, split, rng)
    wording = sample_wording(rng)
    return {
        "query": item(image=scene.spec, instruction=TEXT_OF_IMAGE),
        "positive": item(LongCaption(scene, wording).text),
        "negatives": [item(LongCaption(other, wording).text) for other in others],
        "label": None,
    }


def question(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample a scene and a question with the answer; hard negatives are correct for other objects of the scene."""
    sampled = sample_question(split, rng)
    return {
        "query": item(sampled.text, sampled.scene.spec, QUESTION),
        "positive": item(sampled.answer),
        "negatives": [item(answer) for answer in sample_up_to(list(sampled.other_answers), negatives, rng)],
        "label": sampled.answer,
    }


def crop(split: str, negatives: int, rng: random.Random) -> dict:
    """Sample a scene and an expression with the crop of its object; hard negatives are the scene's other objects."""
    expression = sample_expression(split, rng)
    others = [placed for placed in expression.scene.placed if placed != expression.target]
    return {
        "query": item(f'"{expression.text}"', expression.scene.spec, CROP),
        "positive": item(image=crop_spec(expression.target), instruction=CROP_TARGET),
        "negatives": [
            item(image=crop_spec(placed), instruction=CROP_TARGET) for placed in sample_up_to(others, negatives, rng)
        ],
        "label": crop_spec(expression.target),
    }


# task -> (function that samples a row, weight in the mixture)
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
