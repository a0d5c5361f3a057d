"""The OpenMoji benchmark: its tasks, sizes and positives."""

from functools import cache

import numpy as np

from unime.openmoji.benchmark import tasks
from unime.openmoji.perturbations import KINDS


made = cache(tasks)


def by_name(split="test", size=60):
    return {task.name: task for task in made(split, size)[0]}


def test_the_benchmark_has_all_tasks_under_their_meta_tasks():
    meta_tasks = {name: task.meta_task for name, task in by_name().items()}
    assert meta_tasks == {
        "subcategory": "classification",
        "category": "classification",
        "question": "vqa",
        "scene_t2i": "retrieval",
        "scene_i2t": "retrieval",
        "name_t2i": "retrieval",
        "name_i2t": "retrieval",
        "name_languages_t2i": "retrieval",
        "composed": "retrieval",
        "crop": "grounding",
        "long_t2i": "long",
        "long_i2t": "long",
    }


def test_sizes_are_as_asked():
    found = by_name()
    for name in ("scene_t2i", "scene_i2t", "name_t2i", "name_i2t"):
        assert len(found[name].queries) == len(found[name].candidates) == 60
    assert len(found["long_t2i"].candidates) == len(found["composed"].candidates) == 30
    assert len(found["question"].candidates) == 312
    assert len(found["subcategory"].candidates) == 99 and len(found["category"].candidates) == 9


def test_texts_that_are_searched_for_have_an_instruction_when_asked():
    (plain, plain_probes), (prompted, prompted_probes) = made("test", 60), made("test", 60, target_prompts=True)
    found = {}
    for one, other in zip(plain, prompted, strict=True):
        assert one.queries.stored == other.queries.stored and one.positives == other.positives
        found[other.name] = {item["instruction"] for item in other.candidates}
        for before, after in zip(one.candidates.stored, other.candidates.stored, strict=True):
            assert before["instruction"] in (None, after["instruction"])
            assert before | {"instruction": after["instruction"]} == after
    assert found["category"] == found["name_i2t"] == {"Represent the class label:"}
    assert found["question"] == {"Represent the answer:"} and found["scene_t2i"] == {"Represent the given image."}
    assert found["scene_i2t"] == found["long_i2t"] == {"Represent the image caption:"}
    for one, other in zip(plain_probes, prompted_probes, strict=True):
        assert one.images.stored == other.images.stored
        for before, after in zip((one.captions, one.negatives), (other.captions, other.negatives), strict=True):
            assert [item | {"instruction": "Represent the image caption:"} for item in before] == list(after)


def test_candidates_are_distinct():
    for task in by_name().values():
        keys = {
            (item.get("text"), np.asarray(item["image"]).tobytes() if "image" in item else None)
            for item in task.candidates
        }
        assert len(keys) == len(task.candidates), task.name


def test_right_crops_are_in_their_pools_with_the_crops_of_the_same_scene():
    crop = by_name(size=400)["crop"]
    assert len(crop.pools) == len(crop.queries) == 200
    assert all(
        len(set(pool)) == 300 and set(right) <= set(pool)
        for pool, right in zip(crop.pools, crop.positives, strict=True)
    )


def test_long_captions_come_in_families_with_the_same_beginning():
    texts = [candidate["text"] for candidate in by_name()["long_i2t"].candidates]
    for start in range(0, len(texts), 5):
        beginnings = {" ".join(text.split()[:60]) for text in texts[start : start + 5]}
        assert len(beginnings) == 1 and len(set(texts[start : start + 5])) == 5


def test_there_are_probes_of_every_kind_with_true_captions_unlike_the_false():
    probes = made("test", 60)[1]
    assert [probe.name for probe in probes] == list(KINDS)
    for probe in probes:
        assert len(probe.images) == 30
        assert all(
            caption["text"] != negative["text"]
            for caption, negative in zip(probe.captions, probe.negatives, strict=True)
        )


def test_an_item_that_several_tasks_use_has_one_key():
    scenes = by_name()["scene_i2t"]
    probes = made("test", 60)[1]
    assert set(probes[0].images.keys()) <= set(scenes.queries.keys())
    assert not set(scenes.queries.keys()) & set(by_name()["scene_t2i"].candidates.keys())  # another instruction


def test_equal_arguments_give_equal_tasks():
    first, second = tasks("validation", 20, seed=3), tasks("validation", 20, seed=3)
    for one, two in zip(first[0], second[0], strict=True):
        assert one.positives == two.positives and one.pools == two.pools
        assert [item.get("text") for item in one.queries] == [item.get("text") for item in two.queries]
        assert all(
            np.array_equal(np.asarray(a["image"]), np.asarray(b["image"]))
            for a, b in zip(one.queries, two.queries, strict=True)
            if "image" in a
        )
