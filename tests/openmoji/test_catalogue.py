"""Tests of the OpenMoji catalogue, its splits, and views of single emoji."""

import itertools
import random

import numpy as np
import pytest

from unime.openmoji.catalogue import LANGUAGES, catalogue, drawings, same_drawing
from unime.openmoji.names import gender_groups, localized_names, other_genders, other_tones, roles, tone_request
from unime.openmoji.splits import category_split, tone_split
from unime.openmoji.views import View


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


def entry_named(name):
    return next(entry for entry in catalogue() if entry.name == name)


def test_every_emoji_has_a_drawing_and_names_in_six_languages():
    assert len(catalogue()) > 3700
    assert drawings().shape == (len(catalogue()), 96, 96, 4)
    assert [entry.index for entry in catalogue()] == list(range(len(catalogue())))
    assert all(set(entry.names) == set(LANGUAGES) for entry in catalogue())
    assert (drawings()[..., 3].reshape(len(catalogue()), -1).max(axis=1) > 0).all()


def test_names_categories_and_tones_are_read_from_their_sources():
    pizza = entry_named("pizza")
    assert (pizza.code, pizza.category, pizza.subcategory, pizza.tone) == (
        "1F355",
        "Food & Drink",
        "food prepared",
        None,
    )
    astronaut = entry_named("woman astronaut dark skin tone")
    assert astronaut.tone == "dark" and catalogue()[astronaut.base].name == "woman astronaut"
    assert ("de", "astronautin dunkle hautfarbe") in localized_names(astronaut)
    assert entry_named("kiss woman man dark skin tone light skin tone").tone == "dark, light"


def test_the_base_of_every_emoji_has_no_tone_and_the_same_subcategory():
    for entry in catalogue():
        base = catalogue()[entry.base]
        assert base.tone is None and base.subcategory == entry.subcategory


def test_emoji_with_the_same_drawing_share_a_split():
    student, man_student = entry_named("student dark skin tone"), entry_named("man student dark skin tone")
    assert same_drawing()[student.index] == same_drawing()[man_student.index]
    assert np.array_equal(drawings()[student.index], drawings()[man_student.index])
    for entry in catalogue():
        first = catalogue()[same_drawing()[entry.index]]
        assert tone_split(entry) == tone_split(first)
        assert category_split(entry) == category_split(first)


def test_the_splits_hold_out_15_percent_of_tones_and_categories():
    tones = [tone_split(entry) for entry in catalogue() if entry.tone]
    assert 0.12 < tones.count("test") / len(tones) < 0.18
    bases = [category_split(entry) for entry in catalogue() if entry.tone is None]
    assert 0.12 < bases.count("test") / len(bases) < 0.18
    assert all(tone_split(entry) == "train" for entry in catalogue() if entry.tone is None)


def test_the_training_split_has_every_subcategory():
    trained = {entry.subcategory for entry in catalogue() if category_split(entry) == "train"}
    assert trained == {entry.subcategory for entry in catalogue()}


def test_a_role_has_a_base_and_five_single_tones_with_different_drawings():
    for base, group in roles().items():
        assert group[0].index == base and [entry.tone is None for entry in group] == [True] + [False] * 5
        assert len({same_drawing()[entry.index] for entry in group}) == 6


def test_training_contains_no_held_out_tone_of_a_role():
    for group in roles().values():
        assert all(tone_split(other) == "train" for other in other_tones(group[0], "train"))


def test_other_genders_have_the_same_activity_and_tone_and_another_drawing():
    by_name = {entry.name: entry for entry in catalogue()}
    kneeling = by_name["woman kneeling medium skin tone"]
    assert {"man kneeling medium skin tone"} <= {other.name for other in other_genders(kneeling, "test")}
    # "person cook" has the drawing of one of the other two, so it cannot be a negative.
    assert [other.name for other in other_genders(by_name["woman cook"], "test")] == ["man cook"]
    assert not other_genders(by_name["pizza"], "test")
    for entry in itertools.chain(*gender_groups().values()):
        others = other_genders(entry, "train")
        assert all(tone_split(other) == "train" and other.tone == entry.tone for other in others)


def test_a_tone_request_names_the_tone_or_asks_to_remove_it():
    assert tone_request("medium-dark", 0) == "with medium-dark skin tone"
    assert tone_request(None, 0) == "without a skin tone"


def test_a_view_lies_inside_its_frame_and_survives_a_round_trip_through_its_spec(rng):
    for _ in range(200):
        view = View.sample(rng.randrange(len(catalogue())), rng)
        assert 58 <= view.size <= 96 and 0 <= view.left <= 96 - view.size and 0 <= view.top <= 96 - view.size
        assert View.from_spec(view.spec) == view


def test_a_view_shows_its_image_on_its_background():
    rendered = np.asarray(View(entry_named("pizza").index, size=96, left=0, top=0, background=4).render())
    image = drawings()[entry_named("pizza").index]
    assert rendered.shape == (96, 96, 3)
    assert tuple(rendered[0, 0]) == (222, 245, 222)
    opaque = image[..., 3] == 255
    assert np.array_equal(rendered[opaque], image[..., :3][opaque])
