"""The supplementary tasks of the OpenMoji benchmark, and their untrained baseline."""

import hashlib
import io
import json
import logging
import random
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from unime.openmoji import drawing_features, styles
from unime.openmoji.catalogue import catalogue
from unime.openmoji.drawing_features import class_mean_hits
from unime.openmoji.drawing_features import drawing_features as features
from unime.openmoji.supplementary_tasks import supplementary_tasks
from unime.openmoji.vocabulary import objects, sprites


SIZE = 50


def build():
    return {task.name: task for task in supplementary_tasks("test", SIZE, lambda name: random.Random(name))}


def clear():
    for function in (styles.style_drawings, styles.has_drawing, drawing_features.style_features, sprites):
        function.cache_clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder for the packages and what is made of them."""
    for module in (styles, drawing_features):
        monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    clear()
    yield tmp_path
    clear()


@pytest.fixture
def fetch(folder, monkeypatch):
    """Write small packages: squares of one colour for the objects of scenes, and for each base of a role."""
    chosen = {entry.image for entry in objects()} | {entry.base for entry in catalogue() if entry.tone is not None}
    drawn = [catalogue()[index] for index in chosen if catalogue()[index].version <= 3]
    colours = random.Random(0)
    bodies = {entry: f'<path fill="#{colours.randrange(2**24):06x}" d="M0 0h16v16H0z"/>' for entry in drawn}
    icons = {styles._slug(entry.name): {"body": body} for entry, body in bodies.items()}
    chars = {entry.code.lower(): styles._slug(entry.name) for entry in drawn}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        for name, content in (("icons", {"icons": icons, "aliases": {}}), ("chars", chars)):
            encoded = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(encoded)
            opened.addfile(member, io.BytesIO(encoded))

    def write(*names):
        for style in names:
            package = replace(styles.PACKAGES[style], sha256=hashlib.sha256(archive.getvalue()).hexdigest())
            monkeypatch.setitem(styles.PACKAGES, style, package)
            package.archive.write_bytes(archive.getvalue())

    return write


def test_without_the_packages_there_is_no_unseen_style_and_a_message_names_the_command(folder, caplog):
    with caplog.at_level(logging.WARNING):
        tasks = build()
    assert [name for name, task in tasks.items()] == [
        f"{group}_{task}" for group in ("plain", "dark") for task in ("name_t2i", "name_i2t", "subcategory")
    ]
    assert all(task.baseline is None and task.meta_task == name.split("_")[0] for name, task in tasks.items())
    assert "leaves out the untrained baseline and the tasks in an unseen style" in caplog.text
    assert f"npm pack --pack-destination {folder} @iconify-json/twemoji@1.2.5" in caplog.text


def test_dark_tasks_differ_from_plain_ones_in_the_background_only(folder):
    tasks = build()
    for task in ("name_t2i", "name_i2t", "subcategory"):
        plain, dark = tasks[f"plain_{task}"], tasks[f"dark_{task}"]
        assert plain.positives == dark.positives and len(plain.queries) == len(dark.queries)
        for role in plain.roles:
            for first, second in zip(plain.roles[role].stored, dark.roles[role].stored, strict=True):
                image, other = first["image"] or "", second["image"] or ""
                assert first | {"image": None} == second | {"image": None}
                assert image.rpartition(".")[0] == other.rpartition(".")[0] and (image != other or not image)
    light, dark = (np.asarray(tasks[f"{kind}_name_t2i"].candidates[0]["image"]) for kind in ("plain", "dark"))
    assert (light[0, 0] == 255).all() and dark[0, 0].max() < 80
    names = {item["text"] for item in tasks["plain_name_i2t"].candidates.stored}
    assert len(names) == 2 * SIZE // 5 and not any("skin" in name for name in names)


def test_the_unseen_style_has_all_its_tasks(fetch, caplog):
    fetch("emojione")
    tasks = build()
    unseen = {name: task for name, task in tasks.items() if task.meta_task == "unseen"}
    kinds = ("name_t2i", "name_i2t", "subcategory", "scene_t2i", "scene_i2t", "composed")
    assert list(unseen) == [f"unseen_{kind}" for kind in kinds]
    assert "leaves out the untrained baseline: the drawings of twemoji, noto, fluent are missing" in caplog.text
    for name, task in unseen.items():
        images = [item["image"] for items in task.roles.values() for item in items.stored if item["image"]]
        styled = [image.endswith(" @emojione") for image in images]
        composed = [True] * len(task.queries) + [False] * len(task.candidates)  # OpenMoji's: it has all tones
        assert styled == (composed if name == "unseen_composed" else [True] * len(images)), name
        assert task.baseline is None
    assert unseen["unseen_scene_t2i"].positives == [[index] for index in range(2 * SIZE // 5)]


@pytest.mark.slow
def test_the_baseline_recognises_the_drawings_of_another_artist(fetch, caplog):
    fetch(*styles.PACKAGES)
    tasks = build()
    # Squares of one colour are as similar to the mean of those of three other artists as their colours are.
    assert tasks["unseen_name_t2i"].baseline > 0.4 and tasks["unseen_name_i2t"].baseline > 0.4
    assert tasks["plain_name_t2i"].baseline < 0.4  # OpenMoji does not draw squares
    assert all(0 <= tasks[f"{kind}_subcategory"].baseline <= 1 for kind in ("plain", "unseen")) and not caplog.records
    assert tasks["unseen_scene_t2i"].baseline is None and tasks["dark_name_t2i"].baseline is None


def test_a_drawing_is_recognised_whatever_its_size_and_place():
    def drawing(colour, box):
        image = Image.new("RGBA", (96, 96))
        image.paste(colour, box)
        return np.asarray(image)

    shown = [drawing("red", (0, 0, 96, 96)), drawing("red", (0, 0, 60, 30)), drawing("blue", (0, 0, 96, 96))]
    moved = [drawing("red", (10, 10, 50, 50)), drawing("red", (30, 40, 90, 70)), drawing("blue", (40, 40, 50, 50))]
    similarities = features(np.stack(moved)) @ features(np.stack(shown)).T
    assert similarities.shape == (3, 3) and features(np.stack(shown)).shape == (3, 948)
    assert (similarities.argmax(axis=1) == range(3)).all()
    assert np.allclose(similarities.diagonal(), similarities.max(axis=1))


def test_the_baseline_compares_with_class_means():
    classes = [np.array([[1.0, 0.0], [0.8, 0.2]]), np.array([[0.0, 1.0]]), np.zeros((0, 2))]
    shown = np.array([[0.9, 0.1], [0.1, 0.9], [0.2, 0.6], [0.7, 0.4]])
    # The third drawing belongs to a class without members, the last looks like the first class.
    assert class_mean_hits(classes, shown, [0, 1, 2, 1]) == (2 / 3, 0.5)
    assert class_mean_hits(classes, np.zeros((2, 2)), [0, 1]) == (0.0, 0.5)  # equal drawings are ties
