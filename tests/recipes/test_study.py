"""A study: steps are made when they are asked for, and once; scores become a table with paired differences."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml


ROOT = Path(__file__).resolve().parents[2]
STEP = """
import argparse, pathlib
parser = argparse.ArgumentParser()
for name in ("output_dir", "seed", "start", "rate"):
    parser.add_argument(f"--{name}")
options = parser.parse_args()
output = pathlib.Path(options.output_dir)
output.mkdir(parents=True)
before = pathlib.Path(options.start, "text").read_text() if options.start else ""
(output / "text").write_text(f"{before}[{options.rate}, seed {options.seed}]")
"""


@pytest.fixture
def study(script: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "recipes")
    yield script(ROOT / "recipes" / "study.py")
    sys.modules.pop("launch", None)


def test_steps_are_made_when_asked_for_and_once(study: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture):
    (tmp_path / "step.py").write_text(STEP)
    run = str(tmp_path / "step.py")
    steps = {
        "first": {"script": run, "rate": 1},
        "second": {"script": run, "start": "{first}", "rate": 2, "seed": "{seed}"},
        "never": {"script": "not/there.py"},
    }
    second = study.Maker(steps, 7, tmp_path / "made").make("second")
    assert (second / "text").read_text() == "[1, seed None][2, seed 7]"
    assert capfd.readouterr().out.count("$ accelerate launch") == 2
    other_seed = study.Maker(steps, 8, tmp_path / "made").make("second")  # shares the first step
    assert other_seed != second and (other_seed / "text").read_text() == "[1, seed None][2, seed 8]"
    assert study.Maker(steps, 7, tmp_path / "made").make("second") == second
    assert capfd.readouterr().out.count("$ accelerate launch") == 1
    with pytest.raises(ValueError, match="no step 'third': the study has first, second, never"):
        study.Maker(steps, 7, tmp_path / "made").filled("{third}/file")


def test_a_study_writes_scores_and_a_page(study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = "question: Does it?\nanswer: It does.\nseeds: [0]\nsize: 5\nmodel: checkpoints/unime-tiny\nsteps: {}\n"
    (tmp_path / "small.yaml").write_text(asked + "cells:\n  One: {}\n  Two: {}\n")

    def start(*words: str) -> None:
        folders = ["--output_dir", str(tmp_path / "runs"), "--scores", str(tmp_path / "scores")]
        monkeypatch.setattr(sys, "argv", ["study.py", str(tmp_path / "small.yaml"), *folders, *words])
        study.main()

    start("--cell", "One")
    scores = json.loads((tmp_path / "scores" / "small.json").read_text())["scores"]
    assert scores.keys() == {"One"} and 0 < scores["One"]["0"]["means"]["all tasks"] <= 1
    monkeypatch.delattr(study, "launch")  # what is there is not made again: both cells evaluate the same model
    start()
    scores = json.loads((tmp_path / "scores" / "small.json").read_text())["scores"]
    assert scores["One"] == scores["Two"]
    page = (tmp_path / "scores.md").read_text()
    assert "## Does it?" in page and "It does." in page and "| **Two** | 1 |" in page
    with pytest.raises(ValueError, match="has no cell 'Three': it has One, Two"):
        start("--cell", "Three")


def test_the_table_worked_by_hand(study: ModuleType):
    def seeds(*scores: float) -> dict:
        return {str(seed): {"means": {"swap": score}} for seed, score in enumerate(scores)}

    written = study.table({"Plain": seeds(0.1, 0.2, 0.3), "New": seeds(0.2, 0.2, 0.6)}).splitlines()
    assert written[2] == "| **Plain** | 3 | 20.0 ± 10.0 |"
    assert written[3] == "| **New** | 3 | 33.3 ± 23.1 |"
    # Differences of 10, 0 and 30 points; of all 27 resamples the lowest mean is 0 and the highest 30, once each.
    low, high = study.interval(np.array([10.0, 0.0, 30.0]))
    assert written[4] == f"| less Plain | 3 | +13.3 ({low:+.1f} … {high:+.1f}) |"
    means = sorted(np.mean([a, b, c]) for a in (10, 0, 30) for b in (10, 0, 30) for c in (10, 0, 30))
    assert (low, high) == pytest.approx((np.percentile(means, 2.5), np.percentile(means, 97.5)))
    assert study.interval(np.array([5.0, 5.0])) == (5.0, 5.0)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_can_be_asked_and_has_its_scores(study: ModuleType, path: Path):
    asked = yaml.safe_load(path.read_text())
    assert asked["answer"]
    for cell, changes in asked["cells"].items():
        assert changes.keys() <= {"model", *asked["steps"]}, cell
    for settings in asked["steps"].values():
        assert (ROOT / settings["script"]).exists() and (ROOT / settings["config"]).exists()
    kept = json.loads((ROOT / "model_cards" / "study" / f"{path.stem}.json").read_text())
    assert {cell: sorted(map(int, seeds)) for cell, seeds in kept["scores"].items()} == dict.fromkeys(
        asked["cells"], asked["seeds"]
    )
    assert study.table(kept["scores"]) in (ROOT / "model_cards" / "study.md").read_text()
