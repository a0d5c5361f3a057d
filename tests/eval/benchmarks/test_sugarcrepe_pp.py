"""SugarCrepe++ on small files in the published layout."""

import json
from pathlib import Path

import numpy as np
import pytest

from unime.eval.benchmarks import sugarcrepe_pp
from unime.eval.benchmarks.sugarcrepe_pp import KINDS
from unime.eval.miniatures.caption_miniature import write_sugarcrepe_pp
from unime.eval.suites import suite_results
from unime.eval.tasks import CompositionalTask, evaluate


# Directions of the texts and of every image: similarities are cosines of the differences of these angles, in degrees.
ANGLES = {"image": 0, "near": 10, "left": -30, "right": 30, "far": 50}


def encode(items):
    angles = np.radians([ANGLES[item.get("text", "image")] for item in items])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


ROWS = [  # two true captions and the false one
    ("near", "left", "far"),  # image right; text wrong: "near" is 40 degrees from both
    ("near", "right", "far"),  # image right; text wrong: "right" is 20 degrees from both
    ("near", "far", "right"),  # image wrong: one true caption is farther away than the false one; text wrong
    ("far", "near", "left"),  # image wrong; text wrong: "near" is 40 degrees from both
    ("near", "near", "far"),  # image right; text right
]


def write(folder: Path) -> CompositionalTask:
    write_sugarcrepe_pp(folder / "data", folder / "val2017", dict.fromkeys(KINDS, ROWS))
    return sugarcrepe_pp.tasks(folder / "data", folder / "val2017")


def test_both_true_captions_must_be_closer_than_the_false_one(tmp_path: Path):
    results, rankings = evaluate(encode, [], write(tmp_path), model="angles", progress=False)
    assert results["compositional"]["swap_att"] == 3 / 5
    assert results["compositional"]["text_swap_att"] == 1 / 5
    assert list(results["compositional_groups"]) == ["replace", "text", "swap"]
    assert results["compositional_groups"]["text"] == pytest.approx(1 / 5)
    assert set(results["compositional_chance"].values()) == {1 / 3}
    assert results["compositional_rows"] == dict.fromkeys(results["compositional"], 5)
    first = rankings["compositional"]["swap_att"]["examples"][0]
    assert first == {"row": 0, "true": round(np.cos(np.radians(30)), 4), "false": round(np.cos(np.radians(50)), 4)}


def test_a_suite_keeps_the_accuracies_of_both_sugarcrepes(tmp_path: Path):
    results, _ = evaluate(encode, [], write(tmp_path), model="angles", progress=False)
    first = results | {"compositional": {"swap_att": 0.25, "add_obj": 0.5}}
    first |= {"compositional_groups": {"swap": 0.25, "add": 0.5}, "compositional_rows": {"swap_att": 9, "add_obj": 9}}
    joined = suite_results("compositional", "angles", {"sugarcrepe": first, "sugarcrepe-pp": results})
    assert joined["compositional"]["sugarcrepe: swap_att"] == 0.25 and joined["compositional"]["add_obj"] == 0.5
    assert joined["compositional"]["sugarcrepe-pp: swap_att"] == 3 / 5
    assert joined["compositional_rows"]["sugarcrepe-pp: swap_att"] == 5
    assert (joined["scores"]["SugarCrepe: swap"], joined["scores"]["SugarCrepe++: swap"]) == (0.25, 3 / 5)


def test_a_constant_embedding_scores_zero(tmp_path: Path):
    results, _ = evaluate(lambda items: np.ones((len(items), 1)), [], write(tmp_path), model="one", progress=False)
    assert set(results["compositional"].values()) == {0.0}


def test_random_scores_reach_a_third():
    roles = [[f"{role} {row}" for row in range(2000)] for role in ("image", "caption", "negative", "paraphrase")]
    task = CompositionalTask("swap_obj", *roles)
    vectors = np.random.default_rng(0).normal(size=(8000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = {text: vectors[index] for index, text in enumerate(text for texts in roles for text in texts)}
    results, _ = evaluate(
        lambda items: np.stack([rows[item] for item in items]), [], [task], model="random", progress=False
    )
    assert results["compositional"]["swap_obj"] == pytest.approx(task.chance, abs=0.03)
    assert results["compositional"]["text_swap_obj"] == pytest.approx(task.chance, abs=0.03)


def test_incomplete_files_are_refused_before_anything_is_embedded(tmp_path: Path):
    write(tmp_path)
    (tmp_path / "val2017" / "000000000002.jpg").unlink()
    with pytest.raises(ValueError, match="replace_obj, row 2: the image .* does not exist; give COCO's val2017"):
        sugarcrepe_pp.tasks(tmp_path / "data", tmp_path / "val2017")
    (tmp_path / "data" / "replace_obj.json").write_text(json.dumps([{"filename": "0.jpg", "caption": "a"}]))
    with pytest.raises(ValueError, match="row 0: missing caption2, negative_caption; use the published file"):
        sugarcrepe_pp.tasks(tmp_path / "data", tmp_path / "val2017")
    (tmp_path / "data" / "replace_obj.json").unlink()
    with pytest.raises(ValueError, match="^SugarCrepe\\+\\+ replace_obj: there is no file .*replace_obj.json"):
        sugarcrepe_pp.tasks(tmp_path / "data", tmp_path / "val2017")
