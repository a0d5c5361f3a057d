"""Tests of the OpenMoji rows, texts and conversations."""

import os
import pickle
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from unime.openmoji.catalogue import catalogue
from unime.openmoji.dataset import draw_image, openmoji_conversations, openmoji_rows, openmoji_texts
from unime.openmoji.scene_tasks import TASKS
from unime.openmoji.scenes import Scene
from unime.openmoji.splits import SPLITS, category_split, pair_splits, tone_split
from unime.openmoji.vocabulary import objects


def stored(dataset):
    return dataset.with_format(None)


def images_of(row):
    items = [row["query"], row["positive"], *row["negatives"]]
    return [item["image"] for item in items if item["image"]]


def test_rows_follow_the_row_format_and_contain_images():
    dataset = openmoji_rows("train", 300)
    assert dataset.column_names == ["query", "positive", "negatives", "task", "label"]
    assert {row["task"] for row in stored(dataset)} == set(TASKS)
    for row in dataset:
        for item in (row["query"], row["positive"], *row["negatives"]):
            assert set(item) <= {"text", "image", "instruction"} and ("text" in item or "image" in item)
            assert None not in item.values()
            if "image" in item:
                assert isinstance(item["image"], Image.Image) and item["image"].size in ((96, 96), (32, 32))


def test_a_negative_is_never_the_positive():
    for row in stored(openmoji_rows("train", 2000, negatives=2)):
        assert row["positive"] not in row["negatives"]


def test_tasks_and_the_number_of_negatives_can_be_chosen():
    dataset = stored(openmoji_rows("train", 60, tasks=["scene_t2i", "long_i2t"], negatives=3))
    assert {row["task"] for row in dataset} == {"scene_t2i", "long_i2t"}
    assert all(len(row["negatives"]) == 3 for row in dataset)


def test_text_candidates_have_an_instruction_with_target_prompts():
    plain, prompted = (stored(openmoji_rows("train", 300, target_prompts=value)) for value in (False, True))
    instructions = {}
    for before, after in zip(plain, prompted, strict=True):
        assert before["query"] == after["query"] and before["task"] == after["task"]
        candidates = [[row["positive"], *row["negatives"]] for row in (before, after)]
        for without, with_prompt in zip(*candidates, strict=True):
            assert without["instruction"] == (None if without["image"] is None else with_prompt["instruction"])
            assert without | {"instruction": with_prompt["instruction"]} == with_prompt
            instructions.setdefault(after["task"], set()).add(with_prompt["instruction"])
    assert all(len(values) == 1 and None not in values for values in instructions.values())
    assert instructions["question"] == {"Represent the answer:"}
    assert instructions["category"] == instructions["people_i2t"] == {"Represent the class label:"}
    assert instructions["long_i2t"] == {"Represent the image caption:"}
    assert instructions["composed"] == {"Represent the given image."}


def test_equal_arguments_give_equal_rows_in_another_process():
    code = "from unime.openmoji.dataset import openmoji_rows\n"
    code += "print(list(openmoji_rows('test', 40, seed=7).with_format(None)))"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == str(list(stored(openmoji_rows("test", 40, seed=7))))
    assert list(stored(openmoji_rows("test", 40, seed=8))) != list(stored(openmoji_rows("test", 40, seed=7)))


def test_a_larger_dataset_begins_with_the_smaller_one():
    assert list(stored(openmoji_rows("train", 100)))[:50] == list(stored(openmoji_rows("train", 50)))


def test_rows_draw_the_same_images_in_data_workers():
    dataset, unpickled = openmoji_rows("train", 50), pickle.loads(pickle.dumps(openmoji_rows("train", 50)))
    index = next(index for index, row in enumerate(stored(dataset)) if row["query"]["image"])
    assert np.array_equal(np.asarray(dataset[index]["query"]["image"]), np.asarray(unpickled[index]["query"]["image"]))


@pytest.mark.parametrize("split", SPLITS)
def test_images_belong_to_their_split(split):
    train, current = SPLITS.index("train"), SPLITS.index(split)
    for row in stored(openmoji_rows(split, 1500)):
        answers = [row["positive"]] if "composed" in row["task"] else [row["query"], row["positive"]]
        for spec in [item["image"] for item in answers if item["image"]]:
            if spec.startswith("scene"):
                present = [placed.object for placed in Scene.from_spec(spec).placed]
                pairs = {pair_splits()[a, b] for a in present for b in present if a != b}
                assert current in pairs and (split != "train" or pairs == {train})
            elif spec.startswith("view"):
                entry = catalogue()[int(spec.split()[1].split(".")[0])]
                held_out = category_split if row["task"] in ("subcategory", "category") else tone_split
                assert held_out(entry) == split


def test_texts_are_distinct_and_as_many_as_requested():
    texts = openmoji_texts("train", 2000)["text"]
    assert len(set(texts)) == len(texts) == 2000


def test_training_texts_contain_no_name_of_a_held_out_tone():
    tested = {name for entry in catalogue() if tone_split(entry) == "test" for name in entry.names.values()}
    trained = {name for entry in catalogue() if tone_split(entry) == "train" for name in entry.names.values()}
    assert not (tested - trained) & set(openmoji_texts("train", 5000)["text"])


def test_conversations_have_images_prompts_and_short_answers():
    dataset = openmoji_conversations("train", 400)
    assert dataset.column_names == ["image", "prompt", "answer"]
    text_only = [row for row in dataset if row["image"] is None]
    assert 10 < len(text_only) < 150
    for row in dataset:
        assert row["prompt"] and row["answer"]
        assert row["image"] is None or isinstance(row["image"], Image.Image)


def test_one_column_can_be_read_alone():
    assert set(openmoji_conversations("train", 400)["answer"][:3]) and len(openmoji_rows("train", 50)["task"]) == 50


def test_unknown_names_are_rejected():
    with pytest.raises(ValueError, match="no split 'dev': choose one of train, validation, test"):
        openmoji_rows("dev", 10)
    with pytest.raises(ValueError, match="no task 'poetry': choose from subcategory"):
        openmoji_rows("train", 10, tasks=["poetry"])
    with pytest.raises(ValueError, match="'photo 1' is not the spec of an OpenMoji image"):
        draw_image("photo 1")


RELATION_WORDS = {"left of": "left of", "right of": "right of"}
RELATION_WORDS |= {"above": "above", "over": "above", "below": "below", "under": "below"}
INVERSE = {"right of": "left of", "below": "above"}


@pytest.mark.parametrize("task", ["relation_t2i", "relation_i2t"])
def test_the_label_of_a_relation_agrees_with_its_caption_and_its_scene(task: str):
    names = {index: object.name for index, object in enumerate(objects())}
    labels = set()
    for seed in range(200):
        row = TASKS[task][0]("train", 0, random.Random(seed))
        caption, image = (row["query"], row["positive"])[:: 1 if task == "relation_t2i" else -1]
        first, *relation, second = row["label"].split()
        scene, relation = Scene.from_spec(image["image"]), " ".join(relation)
        assert [placed.object for placed in scene.related(relation, int(second))] == [int(first)]
        (word,) = (word for word in RELATION_WORDS if f" {word} a" in caption["text"])
        target, reference = names[int(first)], names[int(second)]
        mentioned = sorted((target, reference), key=lambda name: re.search(rf"\b{name}\b", caption["text"]).start())
        statement = (mentioned[0], RELATION_WORDS[word], mentioned[1])
        if statement[1] in INVERSE:
            statement = (statement[2], INVERSE[statement[1]], statement[0])
        assert statement == (target, relation, reference)
        labels.add(row["label"])
    assert len(labels) > 20  # of 24 (six pairs of four objects, two relations, two orders), minus held-out pairs
