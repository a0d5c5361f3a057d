"""A study: steps are made when they are asked for, and once; scores become a table with paired differences."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


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
def study(script: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "recipes")
    yield script(ROOT / "recipes" / "study.py")
    for name in ("launch", "study_page"):
        sys.modules.pop(name, None)


@pytest.fixture
def page(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(ROOT / "recipes" / "study_page.py")


def seeds(*scores: float) -> dict[str, dict]:
    found = [{"means": {"swap": score}, "tasks": {"swap_obj": score / 2}, "curves": {}} for score in scores]
    return {str(seed): one for seed, one in enumerate(found)}


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


def test_a_study_writes_scores_and_a_page(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    asked = "question: Does it?\nanswer: It does.\nseeds: [0]\nsize: 5\nmodel: checkpoints/unime-tiny\nsteps: {}\n"
    asked += "claims: [{claim: It may, paper: not there, better: Two, than: One, measure: all tasks}]\n"
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
    assert (
        "| It may | not there |  | *not measured yet* |" in page
        and "![scores of every seed](scores/small.svg)" in page
    )
    assert "all tasks" in (tmp_path / "scores" / "small.svg").read_text()
    capfd.readouterr()
    before = (tmp_path / "scores" / "small.json").read_bytes()
    start("--cell", "Two", "--seed", "0")  # what it gives now stands beside what is kept, which stays
    assert (tmp_path / "scores" / "small.json").read_bytes() == before
    assert re.search(r"\| all tasks \| ([\d.]+) \| \1 \| \+0.0 \|", capfd.readouterr().out)
    start("--cell", "Two", "--seed", "0", "--keep")
    scores = json.loads((tmp_path / "scores" / "small.json").read_text())["scores"]
    assert scores["Two"]["0"]["again"] == [scores["Two"]["0"]["means"]] and "again" not in scores["One"]["0"]
    assert "on the mean of tasks 1 of the 1 did" in (tmp_path / "scores.md").read_text()
    start("--seed", "5")  # one more seed
    assert "*not measured yet*" not in (tmp_path / "scores.md").read_text()
    assert "![all tasks](scores/small-1.svg)" in (tmp_path / "scores.md").read_text()
    start()
    with pytest.raises(ValueError, match="has no cell 'Three': it has One, Two"):
        start("--cell", "Three")
    # What was asked otherwise than now is made again, the rest is not.
    (tmp_path / "small.yaml").write_text(asked + "cells:\n  One: {}\n  Two: {evaluation: {size: 6}}\n")
    scores = json.loads((tmp_path / "scores" / "small.json").read_text())["scores"]
    changed = study.read(tmp_path / "small.yaml")
    found = study.known(tmp_path / "scores" / "small.json", changed, tmp_path / "runs")
    assert found == {"One": scores["One"], "Two": {}} and scores["Two"].keys() == {"0", "5"}
    assert capfd.readouterr().out.count("The settings of 'Two' have changed since seed") == 2


def test_the_table_worked_by_hand(page: ModuleType):
    written = page.table({"Plain": seeds(0.1, 0.2, 0.3), "New": seeds(0.2, 0.2, 0.6)}).splitlines()
    assert written[2] == "| **Plain** | 3 | 20.0 ± 10.0 |"
    assert written[3] == "| **New** | 3 | 33.3 ± 23.1 |"
    # Differences of 10, 0 and 30 points; of all 27 resamples the lowest mean is 0 and the highest 30, once each.
    low, high = page.interval(np.array([10.0, 0.0, 30.0]))
    assert written[4] == f"| less Plain | 3 | +13.3 ({low:+.1f} … {high:+.1f}) |"
    means = sorted(np.mean([a, b, c]) for a in (10, 0, 30) for b in (10, 0, 30) for c in (10, 0, 30))
    assert (low, high) == pytest.approx((np.percentile(means, 2.5), np.percentile(means, 97.5)))
    assert page.interval(np.array([5.0, 5.0])) == (5.0, 5.0)
    filtering = seeds(0.1, 0.2)
    for share, found in zip((0.1, 0.3), filtering.values(), strict=True):  # the second half of the training counts
        found["curves"] = {"step": [5, 10, 15, 20], "filtered": [0.9, 0.9, share, share + 0.1]}
    written = page.table({"New": filtering}).splitlines()
    assert (
        written[0] == "|  | seeds | swap | filtered |" and written[2] == "| **New** | 2 | 15.0 ± 7.1 | 25.0 ± 14.1 |"
    )


def test_how_far_a_run_made_again_may_end_worked_by_hand(page: ModuleType):
    kept = seeds(0.3, 0.4, 0.5, 0.1)
    for seed, again in {"0": [0.31], "1": [0.39], "2": [0.52]}.items():
        kept[seed]["again"] = [{"swap": score} for score in again]
    pairs = page.made_again({"one": {"scores": {"A": kept, "B": seeds(0.2)}}})
    # Differences of 1, -1 and 2 points: the root of their mean square is 1.41; Student's t with three degrees is 3.18.
    assert page.apart(pairs, "swap") == pytest.approx([1, -1, 2])
    assert page.reach(pairs, "swap") == pytest.approx(3.1824 * 2**0.5, abs=1e-3)
    assert page.of_again(pairs).splitlines()[-1] == "| made again, within ± | 4.5 |"
    assert "on the mean of tasks 3 of the 3 did" in page.of_again(pairs)
    written = page.again(seeds(0.25)["0"], kept["3"], pairs).splitlines()
    assert written[0] == "|  | now | before | differs by | may differ by |"
    assert written[2] == "| swap | 25.0 | 10.0 | +15.0 | 4.5 |"


def test_the_page_says_how_far_runs_end_that_are_made_again(page: ModuleType):
    pairs = page.made_again(page.read_scores(ROOT / "studies"))
    assert len(pairs) > 10 and page.of_again(pairs) in (ROOT / "studies" / "README.md").read_text()


def test_a_name_with_a_bar_stays_in_its_column(page: ModuleType):
    assert page.table({"KL(a || b)": seeds(0.1)}).splitlines()[2] == "| **KL(a \\|\\| b)** | 1 | 10.0 |"


def test_what_becomes_of_a_claim(page: ModuleType):
    scores = {"A": seeds(0.3, 0.3, 0.4), "B": seeds(0.2, 0.1, 0.3), "C": seeds(0.35, 0.1, 0.4), "D": seeds(0.5)}

    def outcome(better: str, than: str, on: str = "swap") -> str:
        return page.verdict({"better": better, "than": than, "measure": on}, scores)[1]

    assert outcome("A", "B") == "confirmed" and outcome("B", "A") == "contrary"
    assert outcome("A", "C") == outcome("A", "C", "swap_obj") == "not seen"
    scores["F"] = seeds(0.304, 0.303, 0.404)
    assert outcome("F", "A") == "not seen"  # 0.37 points: rounding could do it
    assert outcome("A", "D") == outcome("A", "E") == "not measured yet"  # one seed in common, no such cell
    for cell, norms in {"A": (9, 1, 2, 3), "B": (9, 9, 1, 1)}.items():  # in the last two steps 2.5 and 1
        for found in scores[cell].values():
            found["curves"] = {"step": [1, 2, 3, 4], "grad_norm": list(norms)}
    measured, found = page.verdict({"better": "A", "than": "B", "measure": "grad_norm"}, scores)
    assert measured == "grad_norm +1.5 (+1.5 … +1.5; 3 seeds)" and found == "confirmed"


def test_curves_end_where_the_first_seed_s_does(page: ModuleType, tmp_path: Path):
    scores = {"Clock": seeds(0.1, 0.2), "Steps": seeds(0.1)}
    for steps, found in zip((3, 2), scores["Clock"].values(), strict=True):
        found["curves"] = {"step": list(range(steps)), "loss": [float(steps)] * steps, "accuracy": [0.5] * steps}
    scores["Steps"]["0"]["curves"] = {"step": [0, 1], "loss": [1.0, 0.5], "grad_norm": [1.0, 0.5]}
    page.draw_curves(scores, tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    assert "loss" in drawn and "norm of the gradient" in drawn and "Clock" in drawn and "accuracy" not in drawn


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_can_be_asked_and_its_scores_are_its_own(study: ModuleType, page: ModuleType, path: Path):
    asked = study.read(path)
    for settings in asked["steps"].values():
        assert (ROOT / settings["script"]).exists() and (ROOT / settings["config"]).exists()
    for cell in asked["cells"]:
        made, _ = study.maker(asked, cell, 1, Path("runs/study"))
        for settings in made.steps.values():
            script = settings["script"].removeprefix("-m unime.")
            assert (ROOT / script).exists() and (ROOT / settings.get("config", script)).exists()
    claims = asked.get("claims", [])
    for claim in claims:
        assert {claim["better"], claim["than"]} <= asked["cells"].keys() and claim["paper"], claim
    file = ROOT / "studies" / f"{path.stem}.json"
    assert file.exists(), "make study"
    kept, written = json.loads(file.read_text()), (ROOT / "studies" / "README.md").read_text()
    assert kept["answer"] == asked["answer"], "every study whose scores are kept says what they answer"
    assert kept["scores"].keys() == asked["cells"].keys()
    assert all(found.keys() >= set(map(str, asked["seeds"])) for found in kept["scores"].values())
    assert kept["claims" if claims else "question"] == asked["claims" if claims else "question"]
    for cell, found in kept["scores"].items():
        for seed, scores in found.items():
            made, _ = study.maker(asked, cell, int(seed), Path("runs/study"))
            assert scores["made"] == made.name("evaluation"), f"{cell}, seed {seed}: its settings have changed since"
    assert page.section(path.stem, kept, "study") in written
    for claim in claims:
        assert all(words in written for words in page.verdict(claim, kept["scores"])), claim
