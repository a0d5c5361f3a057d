"""Tests of studies: steps run once and on demand; scores become tables with paired differences."""

import json
import re
import sys
from collections.abc import Callable
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
def study(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(ROOT / "recipes" / "study.py")


@pytest.fixture
def page(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(ROOT / "recipes" / "study_page.py")


def seeds(*scores: float) -> dict[str, dict]:
    results = [{"means": {"swap": score}, "tasks": {"swap_obj": score / 2}, "curves": {}} for score in scores]
    return {str(seed): result for seed, result in enumerate(results)}


@pytest.mark.slow
def test_a_step_runs_once_and_only_if_it_is_needed(study: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture):
    (tmp_path / "step.py").write_text(STEP)
    script = str(tmp_path / "step.py")
    steps = {
        "first": {"script": script, "rate": 1},
        "second": {"script": script, "start": "{first}", "rate": 2, "seed": "{seed}"},
        "never": {"script": "not/there.py"},
    }
    second = study.StepRunner(steps, 7, tmp_path / "runs").run("second")
    assert (second / "text").read_text() == "[1, seed None][2, seed 7]"
    assert capfd.readouterr().out.count("$ accelerate launch") == 2
    other_seed = study.StepRunner(steps, 8, tmp_path / "runs").run("second")  # shares the first step
    assert other_seed != second and (other_seed / "text").read_text() == "[1, seed None][2, seed 8]"
    assert study.StepRunner(steps, 7, tmp_path / "runs").run("second") == second
    assert capfd.readouterr().out.count("$ accelerate launch") == 1
    with pytest.raises(ValueError, match="unknown step 'third': the study has first, second, never"):
        study.StepRunner(steps, 7, tmp_path / "runs").resolve("{third}/file")


@pytest.mark.slow
def test_a_study_writes_scores_and_a_page(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    text = "question: Does it?\nanswer: It does.\nseeds: [0]\nsize: 5\nmodel: checkpoints/unime-tiny\nsteps: {}\n"
    text += "claims: [{claim: It may, paper: not reported, better: Two, than: One, measure: all tasks}]\n"
    (tmp_path / "small.yaml").write_text(text + "cells:\n  One: {}\n  Two: {}\n")

    def start(*words: str) -> None:
        folders = ["--output", str(tmp_path / "runs"), "--scores", str(tmp_path / "scores")]
        monkeypatch.setattr(sys, "argv", ["study.py", str(tmp_path / "small.yaml"), *folders, *words])
        study.main()

    start("--cell", "One")
    scores = json.loads((tmp_path / "scores" / "small.json").read_text())["scores"]
    assert scores.keys() == {"One"} and 0 < scores["One"]["0"]["means"]["all tasks"] <= 1
    monkeypatch.delattr(study, "launch")  # nothing runs again: both cells evaluate the same model
    start()
    scores = json.loads((tmp_path / "scores" / "small.json").read_text())["scores"]
    assert scores["One"] == scores["Two"]
    page = (tmp_path / "scores" / "README.md").read_text()
    assert "## Does it?" in page and "It does." in page and "| **Two** | 1 |" in page
    assert "| It may | not reported |  | *not measured yet* |" in page
    assert "![scores of all seeds](small.svg)" in page
    assert "all tasks" in (tmp_path / "scores" / "small.svg").read_text()
    capfd.readouterr()
    before = (tmp_path / "scores" / "small.json").read_bytes()
    start("--cell", "Two", "--seed", "0")  # prints both results and keeps the saved one
    assert (tmp_path / "scores" / "small.json").read_bytes() == before
    assert re.search(r"\| all tasks \| ([\d.]+) \| \1 \| \+0.0 \|", capfd.readouterr().out)
    start("--cell", "Two", "--seed", "0", "--save-rerun")
    scores = json.loads((tmp_path / "scores" / "small.json").read_text())["scores"]
    assert scores["Two"]["0"]["again"] == [scores["Two"]["0"]["means"]] and "again" not in scores["One"]["0"]
    assert "on the mean of all tasks 1 of\nthe 1 did" in (tmp_path / "scores" / "README.md").read_text()
    start("--seed", "5")  # one more seed
    assert "*not measured yet*" not in (tmp_path / "scores" / "README.md").read_text()
    assert "![all tasks](small-1.svg)" in (tmp_path / "scores" / "README.md").read_text()
    start()
    with pytest.raises(ValueError, match="has no cell 'Three': it has One, Two"):
        start("--cell", "Three")
    # Scores of changed settings are dropped, the others are kept.
    (tmp_path / "small.yaml").write_text(text + "cells:\n  One: {}\n  Two: {evaluation: {size: 6}}\n")
    scores = json.loads((tmp_path / "scores" / "small.json").read_text())["scores"]
    changed = study.read_study(tmp_path / "small.yaml")
    kept = study.load_scores(tmp_path / "scores" / "small.json", changed, tmp_path / "runs")
    assert kept == {"One": scores["One"], "Two": {}} and scores["Two"].keys() == {"0", "5"}
    assert capfd.readouterr().out.count("The settings of 'Two' have changed since its run with seed") == 2


def test_the_table_matches_a_manual_calculation(page: ModuleType):
    written = page.table({"Plain": seeds(0.1, 0.2, 0.3), "New": seeds(0.2, 0.2, 0.6)}).splitlines()
    assert written[2] == "| **Plain** | 3 | 20.0 ± 10.0 |"
    assert written[3] == "| **New** | 3 | 33.3 ± 23.1 |"
    # Differences of 10, 0 and 30 points; of all 27 resamples the lowest mean is 0 and the highest 30, once each.
    low, high = page.interval(np.array([10.0, 0.0, 30.0]))
    assert written[4] == f"| vs. Plain | 3 | +13.3 ({low:+.1f} … {high:+.1f}) |"
    means = sorted(np.mean([a, b, c]) for a in (10, 0, 30) for b in (10, 0, 30) for c in (10, 0, 30))
    assert (low, high) == pytest.approx((np.percentile(means, 2.5), np.percentile(means, 97.5)))
    assert page.interval(np.array([5.0, 5.0])) == (5.0, 5.0)
    filtering = seeds(0.1, 0.2)
    for share, result in zip((0.1, 0.3), filtering.values(), strict=True):  # the second half of the training counts
        result["curves"] = {"step": [5, 10, 15, 20], "filtered": [0.9, 0.9, share, share + 0.1]}
    written = page.table({"New": filtering}).splitlines()
    assert (
        written[0] == "|  | seeds | swap | filtered |" and written[2] == "| **New** | 2 | 15.0 ± 7.1 | 25.0 ± 14.1 |"
    )


def test_the_margin_of_a_rerun_matches_a_manual_calculation(page: ModuleType):
    saved = seeds(0.3, 0.4, 0.5, 0.1)
    for seed, score in {"0": 0.31, "1": 0.39, "2": 0.52}.items():
        saved[seed]["again"] = [{"swap": score}]
    pairs = page.rerun_pairs({"one": {"scores": {"A": saved, "B": seeds(0.2)}}})
    # Differences of 1, -1 and 2 points: the root of their mean square is 1.41; Student's t with three degrees is 3.18.
    assert page.rerun_differences(pairs, "swap") == pytest.approx([1, -1, 2])
    assert page.rerun_margin(pairs, "swap") == pytest.approx(3.1824 * 2**0.5, abs=1e-3)
    assert page.rerun_section(pairs).splitlines()[-1] == "| margin of a rerun, ± | 4.5 |"
    assert "on the mean of all tasks 3 of\nthe 3 did" in page.rerun_section(pairs)
    written = page.rerun_table(seeds(0.25)["0"], saved["3"], pairs).splitlines()
    assert written[0] == "|  | new | saved | difference | margin |"
    assert written[2] == "| swap | 25.0 | 10.0 | +15.0 | 4.5 |"


def test_the_committed_page_states_the_margin_of_reruns(page: ModuleType):
    pairs = page.rerun_pairs(page.read_scores(ROOT / "studies"))
    assert len(pairs) > 10 and page.rerun_section(pairs) in (ROOT / "studies" / "README.md").read_text()


def test_a_name_with_a_pipe_stays_in_its_column(page: ModuleType):
    assert page.table({"KL(a || b)": seeds(0.1)}).splitlines()[2] == "| **KL(a \\|\\| b)** | 1 | 10.0 |"


def test_verdicts_on_claims(page: ModuleType):
    scores = {"A": seeds(0.3, 0.3, 0.4), "B": seeds(0.2, 0.1, 0.3), "C": seeds(0.35, 0.1, 0.4), "D": seeds(0.5)}

    def outcome(better: str, than: str, on: str = "swap") -> str:
        return page.verdict({"better": better, "than": than, "measure": on}, scores)[1]

    assert outcome("A", "B") == "confirmed" and outcome("B", "A") == "contradicted"
    assert outcome("A", "C") == outcome("A", "C", "swap_obj") == "inconclusive"
    scores["F"] = seeds(0.304, 0.303, 0.404)
    assert outcome("F", "A") == "inconclusive"  # 0.37 points, which rounding could cause
    assert outcome("A", "D") == outcome("A", "E") == "not measured yet"  # one common seed, no such cell
    for cell, norms in {"A": (9, 1, 2, 3), "B": (9, 9, 1, 1)}.items():  # 2.5 and 1 in the last two steps
        for result in scores[cell].values():
            result["curves"] = {"step": [1, 2, 3, 4], "grad_norm": list(norms)}
    measured, verdict = page.verdict({"better": "A", "than": "B", "measure": "grad_norm"}, scores)
    assert measured == "grad_norm +1.5 (+1.5 … +1.5; 3 seeds)" and verdict == "confirmed"


def test_plotted_curves_end_with_the_shortest_run(page: ModuleType, tmp_path: Path):
    scores = {"Clock": seeds(0.1, 0.2), "Steps": seeds(0.1)}
    for steps, result in zip((3, 2), scores["Clock"].values(), strict=True):
        result["curves"] = {"step": list(range(steps)), "loss": [float(steps)] * steps, "accuracy": [0.5] * steps}
    scores["Steps"]["0"]["curves"] = {"step": [0, 1], "loss": [1.0, 0.5], "grad_norm": [1.0, 0.5]}
    page.draw_curves(scores, tmp_path / "curves.svg")
    plot = (tmp_path / "curves.svg").read_text()
    assert "loss" in plot and "gradient norm" in plot and "Clock" in plot and "accuracy" not in plot


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_can_run_and_its_scores_belong_to_its_settings(study: ModuleType, page: ModuleType, path: Path):
    current = study.read_study(path)
    for cell in current["cells"]:
        runner, _ = study.cell_runner(current, cell, 1, Path("runs/study"))
        for settings in runner.steps.values():
            script = settings["script"].removeprefix("-m unime.").split()[0]
            assert (ROOT / script).exists() and (ROOT / settings.get("config", script)).exists()
    claims = current.get("claims", [])
    for claim in claims:
        assert {claim["better"], claim["than"]} <= current["cells"].keys() and claim["paper"], claim
    file = ROOT / "studies" / f"{path.stem}.json"
    assert file.exists(), "run `make study`"
    saved, written = json.loads(file.read_text()), (ROOT / "studies" / "README.md").read_text()
    assert saved["answer"] == current["answer"], "the answer in the scores differs from the YAML file"
    assert saved["scores"].keys() == current["cells"].keys()
    assert all(seeds.keys() >= set(map(str, current["seeds"])) for seeds in saved["scores"].values())
    assert saved["claims" if claims else "question"] == current["claims" if claims else "question"]
    for cell, results in saved["scores"].items():
        for seed, scores in results.items():
            runner, _ = study.cell_runner(current, cell, int(seed), Path("runs/study"))
            assert scores["made"] == runner.folder_name("evaluation"), (
                f"{cell}, seed {seed}: its settings have changed"
            )
    assert page.section(path.stem, saved) in written
    for claim in claims:
        assert all(text in written for text in page.verdict(claim, saved["scores"])), claim


def test_the_guide_to_unime_v2_has_the_scores_of_the_study(page: ModuleType):
    scores = json.loads((ROOT / "studies" / "judged.json").read_text())["scores"]
    guide = (ROOT / "docs" / "guides" / "unime-v2.md").read_text().split("## What we measured")[1]
    rows = [line.split(" | ")[1:] for line in guide.splitlines() if line.startswith("| ")][2:]
    reference, *_ = scores
    expected = []
    for cell, seeds_of_cell in scores.items():
        values = np.array([page.value(result, "all tasks") for result in seeds_of_cell.values()])
        row = [page.mean_and_deviation(values), ""]
        if cell != reference:
            _, mean, low, high = page.difference(scores, cell, reference, "all tasks")
            row[1] = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})".replace("+0.0)", "0.0)")
        expected.append(row)
    assert [[cell.strip(" |") for cell in row] for row in rows] == expected


def test_the_guide_to_reranking_has_the_scores_of_the_study(page: ModuleType):
    scores = json.loads((ROOT / "studies" / "reranked.json").read_text())["scores"]
    values = {
        cell: np.array([page.value(result, "all tasks") for result in seeds_of_cell.values()])
        for cell, seeds_of_cell in scores.items()
    }
    guide = " ".join((ROOT / "docs" / "guides" / "rerank.md").read_text().split())
    assert f"`pairwise` gives {page.mean_and_deviation(values['Pairwise'])}" in guide
    assert f"`both` {page.mean_and_deviation(values['Both'])}" in guide
    first, second, third = (f"{value:.1f}" for value in values["Listwise"])
    assert f"`listwise` {first}, {second} and {third}" in guide
    assert f"unime-tiny {values['Not reranked'].mean():.1f}" in guide
