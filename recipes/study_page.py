"""Build the page of all studies from the scores that `study.py` saved: verdicts on the claims, tables and plots."""

import itertools
import json
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure
from numpy import array, mean, ndarray, percentile, sqrt
from scipy.stats import t as student_t


rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "unime", "font.size": 9}  # equal scores give equal files

CURVES = ("step", "loss", "grad_norm", "filtered", "hardness", "accuracy")
MIN_DIFFERENCE_POINTS = 0.5  # rounding alone can cause this in the last 50 steps (rounding study)
PLOTTED_CURVES = ("loss", "grad_norm", "filtered", "hardness")
CURVE_TITLES = {"grad_norm": "gradient norm", "filtered": "share of filtered rows", "hardness": "cosine of negatives"}
HEAD = """# Studies

`make study` writes this page from the scores in this folder: hit@1 in percent on the test split of the OpenMoji data,
mean ± standard deviation over the seeds. A row "vs." gives the mean of the paired differences to the first cell and
the central 95% of its bootstrap over the seeds. A claim is *confirmed* if this interval lies above 0, *contradicted*
if it lies below 0, and *inconclusive* otherwise, as is any difference below half a point, which rounding alone can
cause. With three seeds all signs agree by chance in one case out of four: the plots show how strong a verdict is. The
column "paper" quotes the paper (arXiv 2504.17432), which uses models a thousand times as large; its MMEB score is the
plain mean of the four meta-tasks. Loss, gradient norm and the share of filtered rows are means over the second half of
a training.
"""

RERUN_HEAD = """\
**Reruns.** A cell reproduces its scores bit for bit on the same machine with the same number of threads. Elsewhere
sums are rounded differently, and training amplifies the difference: {number} runs, most of them drawn at random, were
repeated from stage 1 on a processor of another vendor. Expect a rerun on other hardware to land within the margins
below in 19 of 20 cases (root mean square of these differences times Student's t); on the mean of all tasks {within} of
the {number} did. `python recipes/study.py recipes/study/filter.yaml --cell "beta 0" --seed 2` reruns one cell and
prints the differences."""

Scores = dict[str, dict[str, dict[str, Any]]]  # cell -> seed -> result


def value(result: dict[str, Any], name: str) -> float:
    """Return a mean or a task score in percent, or the mean of a curve over the second half of the training."""
    for kind in ("means", "tasks"):
        if name in result[kind]:
            return 100 * result[kind][name]
    curve = result["curves"][name]
    return float(mean(curve[len(curve) // 2 :])) * (100 if name == "filtered" else 1)


def interval(differences: ndarray) -> tuple[float, float]:
    """Return the central 95% of the means of all resamples with replacement of paired differences."""
    means = [mean(sample) for sample in itertools.product(differences, repeat=len(differences))]
    low, high = percentile(means, [2.5, 97.5])
    return float(low), float(high)


def difference(scores: Scores, cell: str, reference: str, name: str) -> tuple[int, float, float, float] | None:
    """Compare two cells on their common seeds: number of seeds, mean difference and its interval."""
    shared = [seed for seed in scores.get(cell, {}) if seed in scores.get(reference, {})]
    if len(shared) < 2:
        return None
    pairs = array([value(scores[cell][seed], name) - value(scores[reference][seed], name) for seed in shared])
    return len(shared), float(pairs.mean()), *interval(pairs)


def mean_and_deviation(values: ndarray) -> str:
    """Format mean ± standard deviation."""
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def markdown_table(rows: list[list[str]], numbers_from: int = 1) -> str:
    """Format rows as a Markdown table; the first row is the head, columns from `numbers_from` are right-aligned."""
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---"] * numbers_from + ["---:"] * (len(head) - numbers_from)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rest])


def table(scores: Scores) -> str:
    """Format the scores of all cells in percent, each followed by its difference to the first cell.

    If all cells were trained with the filter, the last column is the share of rows that lost a negative to it.
    """
    first, *_ = scores
    names = list(next(iter(scores[first].values()))["means"])
    if all("filtered" in result["curves"] for seeds in scores.values() for result in seeds.values()):
        names.append("filtered")
    rows = [["", "seeds", *names]]
    for cell, seeds in scores.items():
        values = [array([value(result, name) for result in seeds.values()]) for name in names]
        rows.append([f"**{cell}**", str(len(seeds)), *map(mean_and_deviation, values)])
        differences = [difference(scores, cell, first, name) for name in names]
        if cell != first and None not in differences:
            formatted = [f"{middle:+.1f} ({low:+.1f} … {high:+.1f})" for _, middle, low, high in differences]
            rows.append([f"vs. {first}", str(differences[0][0]), *formatted])
    return markdown_table(rows)


def verdict(claim: dict[str, str], scores: Scores) -> tuple[str, str]:
    """Return our result for a claim, as text, and the verdict."""
    result = difference(scores, claim["better"], claim["than"], claim["measure"])
    if result is None:
        return "", "not measured yet"
    number, middle, low, high = result
    digits = "+.2g" if claim["measure"] in CURVES else "+.1f"
    measured = f"{claim['measure']} {middle:{digits}} ({low:{digits}} … {high:{digits}}; {number} seeds)"
    if claim["measure"] not in CURVES and abs(middle) < MIN_DIFFERENCE_POINTS:
        return measured, "inconclusive"
    return measured, "confirmed" if low > 0 else "contradicted" if high < 0 else "inconclusive"


def rerun_pairs(studies: dict[str, dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the original and the repeated result of every run that was repeated."""
    results = [result for study in studies.values() for seeds in study["scores"].values() for result in seeds.values()]
    return [(result, result | {"means": means}) for result in results for means in result.get("again", [])]


def rerun_differences(pairs: list[tuple[dict[str, Any], dict[str, Any]]], name: str) -> ndarray:
    """Return the differences between repeated and original runs, in points."""
    return array([value(repeated, name) - value(original, name) for original, repeated in pairs])


def rerun_margin(pairs: list[tuple[dict[str, Any], dict[str, Any]]], name: str) -> float:
    """Return the margin in points for 95% of reruns, estimated from the known ones (Student's t around 0)."""
    return float(student_t.ppf(0.975, len(pairs)) * sqrt(mean(rerun_differences(pairs, name) ** 2)))


def rerun_table(
    result: dict[str, Any], saved: dict[str, Any], pairs: list[tuple[dict[str, Any], dict[str, Any]]]
) -> str:
    """Format the new result of a cell beside the saved one, with the expected margin."""
    rows = [["", "new", "saved", "difference", "margin"]]
    for name in result["means"]:
        new, old = value(result, name), value(saved, name)
        rows.append([name, f"{new:.1f}", f"{old:.1f}", f"{new - old:+.1f}", f"{rerun_margin(pairs, name):.1f}"])
    return markdown_table(rows)


def rerun_section(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Format the paragraph and the table about reruns."""
    names = list(pairs[0][0]["means"])
    within = sum(abs(rerun_differences(pairs, names[-1])) <= rerun_margin(pairs, names[-1]))
    rows = [["", *names], ["margin of a rerun, ±", *(f"{rerun_margin(pairs, name):.1f}" for name in names)]]
    return f"{RERUN_HEAD.format(number=len(pairs), within=within)}\n\n{markdown_table(rows)}"


def draw_scores(scores: Scores, path: Path) -> None:
    """Plot one panel per mean: a dot per seed, a bar for mean and standard deviation, one line per cell."""
    cells = list(scores)
    names = list(next(iter(scores[cells[0]].values()))["means"])
    figure = Figure((1.4 * len(names) + 1.6, 0.3 * len(cells) + 1), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True)
    for name, panel in zip(names, panels, strict=True):
        for row, cell in enumerate(cells):
            values = array([value(result, name) for result in scores[cell].values()])
            deviation = values.std(ddof=1) if len(values) > 1 else 0
            panel.plot(values, [row] * len(values), "o", color="#7aa6c2", markersize=3)
            panel.errorbar(values.mean(), row, xerr=deviation, fmt="|", color="#16425b", capsize=2, linewidth=0.8)
        panel.set_title(name, fontsize=9)
        panel.grid(axis="x", color="#dddddd")
        panel.set_yticks(range(len(cells)), cells)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.savefig(path, metadata={"Date": None})


def draw_claim(claim: dict[str, str], scores: Scores, path: Path) -> None:
    """Plot the two cells of a claim: a dot per seed, a line joining the same seed, bars for the means."""
    cells = [claim["better"], claim["than"]]
    figure = Figure((1.7 + 0.07 * max(map(len, cells)), 0.8), layout="constrained")
    panel = figure.subplots()
    shared = [seed for seed in scores[cells[0]] if seed in scores[cells[1]]]
    values = array([[value(scores[cell][seed], claim["measure"]) for seed in shared] for cell in cells])
    panel.plot(values, [0, 1], "o-", color="#7aa6c2", markersize=3, linewidth=0.7)
    panel.plot(values.mean(1), [0, 1], "|", color="#16425b", markersize=12, markeredgewidth=2)
    panel.set_yticks([0, 1], cells)
    panel.set_ylim(1.5, -0.5)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def plotted_curves(scores: Scores) -> tuple[dict[str, list[dict[str, list[float]]]], list[str]]:
    """Return the curves of the trained cells, one dictionary per seed, and the names of the curves to plot."""
    curves = {
        cell: [result["curves"] for result in seeds.values() if result["curves"]] for cell, seeds in scores.items()
    }
    curves = {cell: runs for cell, runs in curves.items() if runs}
    all_runs = [run for runs in curves.values() for run in runs]
    return curves, [name for name in PLOTTED_CURVES if any(name in run for run in all_runs)]


def draw_curves(scores: Scores, path: Path) -> None:
    """Plot the training curves, mean over the seeds, one line per cell."""
    curves, names = plotted_curves(scores)
    figure = Figure((3 * len(names), 2.6), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for name, panel in zip(names, panels, strict=True):
        for cell, runs in curves.items():
            if name in runs[0]:
                steps = min((run["step"] for run in runs), key=len)  # a time limit may have ended a training
                values = mean([run[name][: len(steps)] for run in runs], axis=0)
                panel.plot(steps, values, label=cell, linewidth=1.2)
            else:
                panel.plot([], label=cell)  # uses up its colour
        panel.set_title(CURVE_TITLES.get(name, name), fontsize=9)
        panel.set_xlabel("step")
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def section(name: str, study: dict[str, Any]) -> str:
    """Format one study: its answer, table and plots."""
    scores = study["scores"]
    done, runs = sum(map(len, scores.values())), len(study["cells"]) * len(study["seeds"])
    parts = [f"## {study['question']}", study.get("answer", "").strip(), table(scores)]
    parts.append(f"{done} of {runs} runs are complete." if done < runs else "")
    parts.append(f"![scores of all seeds]({name}.svg)")
    parts.append(f"![training curves]({name}-curves.svg)" if plotted_curves(scores)[1] else "")
    parts.append(f"`python recipes/study.py recipes/study/{name}.yaml`")
    return "\n\n".join(part for part in parts if part)


def read_scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the saved scores of all studies, by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def write_page(folder: Path) -> None:
    """Write `README.md` and the plots of all studies with scores in the folder."""
    studies = read_scores(folder)
    claims = [["claim", "paper", "our result", "verdict", "plot"]]
    for name, study in studies.items():
        for number, claim in enumerate(study.get("claims", []), 1):
            measured, outcome = verdict(claim, study["scores"])
            plot = folder / f"{name}-{number}.svg"
            if measured:
                draw_claim(claim, study["scores"], plot)
            image = f"![{claim['measure']}]({plot.name})" if measured else ""
            claims.append([claim["claim"], claim["paper"], measured, f"*{outcome}*", image])
        draw_scores(study["scores"], folder / f"{name}.svg")
        if plotted_curves(study["scores"])[1]:
            draw_curves(study["scores"], folder / f"{name}-curves.svg")
    sections = [section(name, study) for name, study in studies.items()]
    pairs = rerun_pairs(studies)
    parts = [HEAD]
    if pairs:
        parts.append(rerun_section(pairs))
    if len(claims) > 1:
        parts.append(markdown_table(claims, numbers_from=len(claims[0])))
    parts += sections
    (folder / "README.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")
