"""Tests of scenes with their captions, false captions, long captions and questions."""

import random
import time
from itertools import combinations

import numpy as np
import pytest

from unime.openmoji.captions import Caption, Mention, full_caption, sample_caption, sample_scene
from unime.openmoji.long_captions import LongCaption, family, sample_wording
from unime.openmoji.perturbations import KINDS, any_false_caption, edited_scene, false_caption
from unime.openmoji.questions import answers, sample_expression, sample_question
from unime.openmoji.scenes import POSITIONS, Placed, Scene, crop_spec, relation_of, render_crop
from unime.openmoji.splits import SPLITS, pair_splits
from unime.openmoji.vocabulary import COLOUR_NAMES, objects, sprites


RED, BLUE, GREEN = (COLOUR_NAMES.index(name) for name in ("red", "blue", "green"))
PIZZA, CAT, DOG = ([entry.name for entry in objects()].index(name) for name in ("pizza", "cat", "dog"))
# The pizza at the top left, the cat at the top right, the dog at the bottom right.
SCENE = Scene((Placed(PIZZA, 0, RED), Placed(CAT, 2, BLUE), Placed(DOG, 8, GREEN)))


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


def splits_of(scene):
    return [SPLITS[pair_splits()[a.object, b.object]] for a, b in combinations(scene.placed, 2)]


def test_the_vocabulary_has_300_names_without_colours_and_none_contains_another():
    names = [entry.name for entry in objects()]
    assert len(set(names)) == len(names) == 300 == len(sprites())
    assert not any(set(a.split()) <= set(b.split()) for a in names for b in names if a != b)
    assert not set(COLOUR_NAMES) & {word for name in names for word in name.split()}


def test_articles_follow_the_pronunciation():
    phrases = {entry.name: entry.with_article for entry in objects()}
    assert (phrases["unicorn"], phrases["octopus"], phrases["x-ray"]) == ("a unicorn", "an octopus", "an x-ray")


def test_a_scene_survives_a_round_trip_through_its_spec_in_any_order_of_objects():
    assert Scene.from_spec(SCENE.spec).spec == SCENE.spec == Scene(SCENE.placed[::-1]).spec


def test_an_image_shows_each_object_on_its_tile_and_grey_elsewhere():
    image = np.asarray(SCENE.render())
    assert image.shape == (96, 96, 3)
    assert np.array_equal(image[4:28, 4:28], sprites()[PIZZA])
    assert tuple(image[1, 16]) == (226, 30, 40)
    assert (image[32:64, 32:64] == 225).all()


def test_a_crop_is_the_cell_of_the_image():
    for placed in SCENE.placed:
        assert np.array_equal(np.asarray(SCENE.crop(placed.cell)), np.asarray(render_crop(crop_spec(placed))))


def test_relations_need_a_common_row_or_column():
    assert [relation_of(cell, 4) for cell in range(9)] == [
        None,
        "above",
        None,
        "left of",
        None,
        "right of",
        None,
        "below",
        None,
    ]


def test_drawing_a_thousand_scenes_takes_less_than_a_second(rng):
    scenes = [sample_scene("train", 9, rng) for _ in range(1000)]
    start = time.process_time()
    for scene in scenes:
        scene.render()
    assert time.process_time() - start < 1


@pytest.mark.parametrize("size", [2, 4, 9])
def test_training_scenes_contain_no_held_out_pair_and_other_scenes_at_least_one(size, rng):
    for _ in range(100):
        assert set(splits_of(sample_scene("train", size, rng))) == {"train"}
        validation = sample_scene("validation", size, rng)
        assert splits_of(validation)[0] == "validation" and "test" not in splits_of(validation)
        assert splits_of(sample_scene("test", size, rng))[0] == "test"


def test_captions_mention_objects_tiles_positions_and_relations():
    relational = Caption((Mention(PIZZA, RED, relation=("left of", 1)), Mention(CAT, BLUE)), wording=0)
    assert relational.text == "a pizza on a red tile to the left of a cat on a blue tile"
    with_third = Caption((*relational.mentions, Mention(DOG, relation=("below", 1))), wording=3)
    assert with_third.text == "there is a pizza on a red tile left of a cat on a blue tile and a dog under the cat"
    assert full_caption(SCENE, colours=False).text == (
        "a pizza at the top left, a cat at the top right and a dog at the bottom right"
    )
    assert with_third.holds(SCENE) and full_caption(SCENE).holds(SCENE)


@pytest.mark.parametrize(
    "mention",
    [Mention(PIZZA, BLUE), Mention(PIZZA, cell=1), Mention(PIZZA, relation=("right of", 1)), Mention(4 + DOG)],
)
def test_a_caption_with_one_wrong_statement_is_false(mention):
    assert not Caption((mention, Mention(CAT)), wording=0).holds(SCENE)


def test_sampled_captions_are_true_and_mention_the_pair(rng):
    for _ in range(500):
        scene = sample_scene("test", rng.randint(2, 4), rng)
        caption = sample_caption(scene, rng)
        assert caption.holds(scene)
        assert {placed.object for placed in scene.placed[:2]} <= {mention.object for mention in caption.mentions}


@pytest.mark.parametrize("kind", KINDS)
def test_every_edit_makes_a_caption_false_and_keeps_its_wording(kind, rng):
    edits = 0
    for _ in range(200):
        scene = sample_scene("train", rng.randint(2, 4), rng)
        caption = sample_caption(scene, rng)
        edited = false_caption(kind, caption, scene, "train", rng)
        if edited is not None:
            edits += 1
            assert not edited.holds(scene) and edited.text != caption.text and edited.wording == caption.wording
            changed = sum(before != after for before, after in zip(caption.mentions, edited.mentions, strict=False))
            changed += len(edited.mentions) - len(caption.mentions)
            assert changed == (2 if kind.startswith("swap") else 1)
    assert edits > 50


def test_false_captions_and_siblings_in_training_name_no_held_out_pair(rng):
    train = SPLITS.index("train")
    for _ in range(300):
        scene = sample_scene("train", rng.randint(2, 4), rng)
        caption = sample_caption(scene, rng)
        mentioned = [mention.object for mention in any_false_caption(caption, scene, "train", rng).mentions]
        assert all(pair_splits()[a, b] == train for a, b in combinations(mentioned, 2))
        other = edited_scene(scene, caption, "train", rng)
        assert not caption.holds(other) and set(splits_of(other)) == {"train"}


def test_the_captions_of_a_family_differ_at_the_end_only(rng):
    for split in ("train", "test"):
        scenes = family(sample_scene(split, 9, rng), 5, split, rng)
        wording = sample_wording(rng)
        texts = [LongCaption(scene, wording).text for scene in scenes]
        assert len(set(texts)) == len({scene.spec for scene in scenes}) == 5
        sentences = [text.split(". ") for text in texts]
        # The opening and six of the nine sentences, far more than 77 tokens.
        assert len({tuple(caption[:7]) for caption in sentences}) == 1
        assert len(" ".join(sentences[0][:7]).split()) > 60


def test_long_captions_mention_every_object_and_colour(rng):
    scene = sample_scene("train", 9, rng)
    text = LongCaption(scene, sample_wording(rng)).text.lower()
    for placed in scene.placed:
        assert objects()[placed.object].name in text and COLOUR_NAMES[placed.colour] in text
    assert 90 < len(text.split()) < 200


def test_a_question_has_one_correct_answer(rng):
    for _ in range(500):
        question = sample_question("test", rng)
        names = [objects()[placed.object].name for placed in question.scene.placed]
        assert question.answer in answers() and question.answer not in question.other_answers
        if question.kind == "position":
            cell = next(cell for cell, position in enumerate(POSITIONS) if position in question.text)
            assert objects()[question.scene.at(cell).object].name == question.answer
        elif question.kind == "tile":
            colour = next(index for index, name in enumerate(COLOUR_NAMES) if name in question.text)
            on_tile = [placed for placed in question.scene.placed if placed.colour == colour]
            assert [objects()[placed.object].name for placed in on_tile] == [question.answer]
        elif question.kind == "relation":
            reference = question.scene.placed[1]
            assert names[1] in question.text
            relation = relation_of(question.scene.placed[0].cell, reference.cell)
            assert question.scene.related(relation, reference.object) == [question.scene.placed[0]]
        elif question.kind == "colour":
            assert question.answer == COLOUR_NAMES[question.scene.placed[0].colour] and names[0] in question.text
        else:
            assert question.answer == ["two", "three", "four", "five"][len(names) - 2]


def test_an_expression_by_tile_fits_its_target_only(rng):
    for _ in range(300):
        expression = sample_expression("train", rng)
        if "tile" in expression.text:
            assert [placed for placed in expression.scene.placed if placed.colour == expression.target.colour] == [
                expression.target
            ]
        assert expression.target in expression.scene.placed
