"""The OpenMoji benchmark: its tasks, sizes and positives."""

from functools import cache

import numpy as np

from unime.eval.tasks import SUPPLEMENTARY_META_TASKS
from unime.openmoji.benchmark import tasks
from unime.openmoji.perturbations import KINDS


cached_tasks = cache(tasks)


def by_name(split="test", size=60):
    return {task.name: task for task in cached_tasks(split, size)[0]}


def test_the_benchmark_has_all_tasks_under_their_meta_tasks():
    meta_tasks = {
        name: task.meta_task for name, task in by_name().items() if task.meta_task not in SUPPLEMENTARY_META_TASKS
    }
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


def test_tasks_have_the_requested_sizes():
    tasks_by_name = by_name()
    for name in ("scene_t2i", "scene_i2t", "name_t2i", "name_i2t"):
        assert len(tasks_by_name[name].queries) == len(tasks_by_name[name].candidates) == 60
    assert len(tasks_by_name["long_t2i"].candidates) == len(tasks_by_name["composed"].candidates) == 30
    assert len(tasks_by_name["question"].candidates) == 312
    assert len(tasks_by_name["subcategory"].candidates) == 99 and len(tasks_by_name["category"].candidates) == 9


def test_text_candidates_have_an_instruction_with_target_prompts():
    (plain, plain_edits), (prompted, prompted_edits) = (
        cached_tasks("test", 60),
        cached_tasks("test", 60, target_prompts=True),
    )
    instructions = {}
    for without, with_prompts in zip(plain, prompted, strict=True):
        assert without.queries.stored == with_prompts.queries.stored and without.positives == with_prompts.positives
        instructions[with_prompts.name] = {item["instruction"] for item in with_prompts.candidates}
        for before, after in zip(without.candidates.stored, with_prompts.candidates.stored, strict=True):
            assert before["instruction"] in (None, after["instruction"])
            assert before | {"instruction": after["instruction"]} == after
    assert instructions["category"] == instructions["name_i2t"] == {"Represent the class label:"}
    assert instructions["plain_name_i2t"] == instructions["dark_subcategory"] == {"Represent the class label:"}
    assert instructions["question"] == {"Represent the answer:"}
    assert instructions["scene_t2i"] == {"Represent the given image."}
    assert instructions["scene_i2t"] == instructions["long_i2t"] == {"Represent the image caption:"}
    for without, with_prompts in zip(plain_edits, prompted_edits, strict=True):
        assert without.images.stored == with_prompts.images.stored
        for name in ("captions", "negatives"):
            before, after = getattr(without, name), getattr(with_prompts, name)
            assert [item | {"instruction": "Represent the image caption:"} for item in before] == list(after)


def test_candidates_are_distinct():
    for task in by_name().values():
        keys = {
            (item.get("text"), np.asarray(item["image"]).tobytes() if "image" in item else None)
            for item in task.candidates
        }
        assert len(keys) == len(task.candidates), task.name


def test_a_pool_contains_the_positive_crop():
    crop = by_name(size=400)["crop"]
    assert len(crop.pools) == len(crop.queries) == 200
    assert all(
        len(set(pool)) == 300 and set(positives) <= set(pool)
        for pool, positives in zip(crop.pools, crop.positives, strict=True)
    )


def test_long_captions_come_in_families_with_the_same_beginning():
    texts = [candidate["text"] for candidate in by_name()["long_i2t"].candidates]
    for start in range(0, len(texts), 5):
        beginnings = {" ".join(text.split()[:60]) for text in texts[start : start + 5]}
        assert len(beginnings) == 1 and len(set(texts[start : start + 5])) == 5


def test_every_kind_of_edit_has_a_task_with_captions_that_differ_from_their_negatives():
    compositional = cached_tasks("test", 60)[1]
    assert [task.name for task in compositional] == list(KINDS)
    for task in compositional:
        assert len(task.images) == 30
        assert all(
            caption["text"] != negative["text"]
            for caption, negative in zip(task.captions, task.negatives, strict=True)
        )


def test_an_item_has_the_same_key_in_every_task():
    scenes = by_name()["scene_i2t"]
    compositional = cached_tasks("test", 60)[1]
    assert set(compositional[0].images.keys()) <= set(scenes.queries.keys())
    assert not set(scenes.queries.keys()) & set(by_name()["scene_t2i"].candidates.keys())  # different instructions


def test_equal_arguments_give_equal_tasks():
    first, second = tasks("validation", 20, seed=3), tasks("validation", 20, seed=3)
    for task, again in zip(first[0], second[0], strict=True):
        assert task.positives == again.positives and task.pools == again.pools
        assert [item.get("text") for item in task.queries] == [item.get("text") for item in again.queries]
        assert all(
            np.array_equal(np.asarray(a["image"]), np.asarray(b["image"]))
            for a, b in zip(task.queries, again.queries, strict=True)
            if "image" in a
        )
