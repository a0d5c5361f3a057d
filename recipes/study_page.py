"""The page of all studies: what became of the claims, tables and plots, from the scores that `study.py` keeps."""

import itertools
import json
from pathlib import Path
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure
from numpy import array, mean, ndarray, percentile, sqrt
from scipy.stats import t as student_t


rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "unime", "font.size": 9}  # equal scores, equal files

CURVES = ("step", "loss", "grad_norm", "filtered", "hardness", "accuracy")
ROUNDING = 0.5  # points that rounding alone can make in the last 50 steps (study of rounding)
SHOWN = ("loss", "grad_norm", "filtered", "hardness")
NAMES = {"grad_norm": "norm of the gradient", "filtered": "share of rows filtered", "hardness": "cosine of negatives"}
HEAD = """# Studies

Written by `make study` from the scores in `study/`: hit@1 in per cent on the test split of the OpenMoji world, mean ±
standard deviation over seeds; below, the mean of the paired differences and the middle 95 % of its bootstrap over the
seeds. A claim is *confirmed* where this interval lies above 0, *contrary* where it lies below, else *not seen*, as is
a difference under half a point, which rounding alone can make. Of three seeds all three agree in sign by chance one
time in four: look at the plot for how strong a verdict is. What the paper (arXiv 2504.17432) measured, on models a
thousand times as large, is quoted, its MMEB as printed, the plain mean of four kinds of task; what stands under
"here" is ours. Loss, norm of the gradient and the share of rows filtered are means of the second half of a training.
"""

AGAIN_HEAD = """\
**Made again**, a cell gives the same scores to the bit on the same machine with as many threads. Elsewhere sums are
rounded otherwise, and training makes much of it: {number} runs, most of them drawn at random, were made again from
stage 1 on, on a processor of another maker. 19 of 20 end within the points below of what is kept of them, by the root
mean square of how far these did and Student's t; on the mean of tasks {within} of the {number} did.
`python recipes/study.py recipes/study/filter.yaml --cell "beta 0" --seed 2` makes one again and prints how far it
is."""

Scores = dict[str, dict[str, dict[str, Any]]]  # cell -> seed -> what was found


def value(found: dict[str, Any], name: str) -> float:
    """A mean or a task in per cent, or the mean of a curve over the second half of the training (`filtered` too)."""
    for kind in ("means", "tasks"):
        if name in found[kind]:
            return 100 * found[kind][name]
    curve = found["curves"][name]
    return float(mean(curve[len(curve) // 2 :])) * (100 if name == "filtered" else 1)


def interval(differences: ndarray) -> tuple[float, float]:
    """The middle 95 % of the means of all resamples with replacement of paired differences, each counted once."""
    means = [mean(sample) for sample in itertools.product(differences, repeat=len(differences))]
    low, high = percentile(means, [2.5, 97.5])
    return float(low), float(high)


def difference(scores: Scores, one: str, other: str, name: str) -> tuple[int, float, float, float] | None:
    """How far a cell is above another on the seeds that both have: their number, the mean and its interval."""
    shared = [seed for seed in scores.get(one, {}) if seed in scores.get(other, {})]
    if len(shared) < 2:
        return None
    pairs = array([value(scores[one][seed], name) - value(scores[other][seed], name) for seed in shared])
    return len(shared), float(pairs.mean()), *interval(pairs)


def spread(values: ndarray) -> str:
    """Mean ± standard deviation."""
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def lined(rows: list[list[str]], numbers_from: int = 1) -> str:
    """Rows as a Markdown table, the first its head; columns of numbers to the right."""
    head, *rest = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---"] * numbers_from + ["---:"] * (len(head) - numbers_from)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rest])


def table(scores: Scores) -> str:
    """Mean and standard deviation over the seeds, in per cent; below each cell how it differs from the first.

    The last column is the share of rows that lost a negative to the filter, where all cells were trained with one.
    """
    first, *_ = scores
    names = list(next(iter(scores[first].values()))["means"])
    if all("filtered" in found["curves"] for seeds in scores.values() for found in seeds.values()):
        names.append("filtered")
    rows = [["", "seeds", *names]]
    for cell, seeds in scores.items():
        values = [array([value(found, name) for found in seeds.values()]) for name in names]
        rows.append([f"**{cell}**", str(len(seeds)), *map(spread, values)])
        found = [difference(scores, cell, first, name) for name in names]
        if cell != first and None not in found:
            shown = [f"{middle:+.1f} ({low:+.1f} … {high:+.1f})" for _, middle, low, high in found]
            rows.append([f"less {first}", str(found[0][0]), *shown])
    return lined(rows)


def verdict(claim: dict[str, str], scores: Scores) -> tuple[str, str]:
    """What was measured of a claim, as words, and what becomes of it."""
    found = difference(scores, claim["better"], claim["than"], claim["measure"])
    if found is None:
        return "", "not measured yet"
    number, middle, low, high = found
    digits = "+.2g" if claim["measure"] in CURVES else "+.1f"
    measured = f"{claim['measure']} {middle:{digits}} ({low:{digits}} … {high:{digits}}; {number} seeds)"
    if claim["measure"] not in CURVES and abs(middle) < ROUNDING:
        return measured, "not seen"
    return measured, "confirmed" if low > 0 else "contrary" if high < 0 else "not seen"


def made_again(studies: dict[str, dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The runs that were made again: what was kept of each, and what was found then."""
    kept = [found for study in studies.values() for seeds in study["scores"].values() for found in seeds.values()]
    return [(found, found | {"means": means}) for found in kept for means in found.get("again", [])]


def apart(pairs: list[tuple[dict[str, Any], dict[str, Any]]], name: str) -> ndarray:
    """How far runs that were made again ended from what was kept of them, in points."""
    return array([value(now, name) - value(before, name) for before, now in pairs])


def reach(pairs: list[tuple[dict[str, Any], dict[str, Any]]], name: str) -> float:
    """Within how many points 19 of 20 runs made again end, as far as those say that were (Student's t around 0)."""
    return float(student_t.ppf(0.975, len(pairs)) * sqrt(mean(apart(pairs, name) ** 2)))


def again(found: dict[str, Any], kept: dict[str, Any], pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """What a cell gave now with a seed, beside what was kept of it, and how far the two may be apart."""
    rows = [["", "now", "before", "differs by", "may differ by"]]
    for name in found["means"]:
        now, before = value(found, name), value(kept, name)
        rows.append([name, f"{now:.1f}", f"{before:.1f}", f"{now - before:+.1f}", f"{reach(pairs, name):.1f}"])
    return lined(rows)


def of_again(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """What the page says of runs that were made again."""
    names = list(pairs[0][0]["means"])
    within = sum(abs(apart(pairs, names[-1])) <= reach(pairs, names[-1]))
    rows = [["", *names], ["made again, within ±", *(f"{reach(pairs, name):.1f}" for name in names)]]
    return f"{AGAIN_HEAD.format(number=len(pairs), within=within)}\n\n{lined(rows)}"


def draw_scores(scores: Scores, path: Path) -> None:
    """One panel per mean: every seed a dot, mean and standard deviation a bar; cells from top to bottom."""
    cells = list(scores)
    names = list(next(iter(scores[cells[0]].values()))["means"])
    figure = Figure((1.4 * len(names) + 1.6, 0.3 * len(cells) + 1), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True)
    for name, panel in zip(names, panels, strict=True):
        for row, cell in enumerate(cells):
            values = array([value(found, name) for found in scores[cell].values()])
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
    """The two cells of a claim: every seed a dot, the same seed joined by a line, the means as bars."""
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


def curves_of(scores: Scores) -> tuple[dict[str, list[dict[str, list[float]]]], list[str]]:
    """The curves of the cells that were trained, one per seed, and the names of those that any has."""
    curves = {cell: [found["curves"] for found in seeds.values() if found["curves"]] for cell, seeds in scores.items()}
    curves = {cell: found for cell, found in curves.items() if found}
    every = [one for found in curves.values() for one in found]
    return curves, [name for name in SHOWN if any(name in one for one in every)]


def draw_curves(scores: Scores, path: Path) -> None:
    """The curves of training, mean over the seeds, one line per cell."""
    curves, names = curves_of(scores)
    figure = Figure((3 * len(names), 2.6), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for name, panel in zip(names, panels, strict=True):
        for cell, found in curves.items():
            if name in found[0]:
                steps = min((one["step"] for one in found), key=len)  # a clock may have ended a training
                values = mean([one[name][: len(steps)] for one in found], axis=0)
                panel.plot(steps, values, label=cell, linewidth=1.2)
            else:
                panel.plot([], label=cell)  # takes its colour
        panel.set_title(NAMES.get(name, name), fontsize=9)
        panel.set_xlabel("step")
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def section(name: str, study: dict[str, Any]) -> str:
    """One study: its table, its plots and its answer."""
    scores = study["scores"]
    done, runs = sum(map(len, scores.values())), len(study["cells"]) * len(study["seeds"])
    parts = [f"## {study['question']}", study.get("answer", "").strip(), table(scores)]
    parts.append(f"{done} of {runs} runs are done." if done < runs else "")
    parts.append(f"![scores of every seed]({name}.svg)")
    parts.append(f"![curves of training]({name}-curves.svg)" if curves_of(scores)[1] else "")
    parts.append(f"`python recipes/study.py recipes/study/{name}.yaml`")
    return "\n\n".join(part for part in parts if part)


def read_scores(folder: Path) -> dict[str, dict[str, Any]]:
    """What was kept of all studies, by name."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def write_page(folder: Path) -> None:
    """Write `README.md` and the plots in the folder, from the studies whose scores are in it."""
    studies = read_scores(folder)
    claims = [["claim", "in the paper", "here", "verdict", "plot"]]
    for name, study in studies.items():
        for number, claim in enumerate(study.get("claims", []), 1):
            measured, outcome = verdict(claim, study["scores"])
            plot = folder / f"{name}-{number}.svg"
            if measured:
                draw_claim(claim, study["scores"], plot)
            shown = f"![{claim['measure']}]({plot.name})" if measured else ""
            claims.append([claim["claim"], claim["paper"], measured, f"*{outcome}*", shown])
        draw_scores(study["scores"], folder / f"{name}.svg")
        if curves_of(study["scores"])[1]:
            draw_curves(study["scores"], folder / f"{name}-curves.svg")
    sections = [section(name, study) for name, study in studies.items()]
    pairs = made_again(studies)
    parts = [HEAD]
    if pairs:
        parts.append(of_again(pairs))
    if len(claims) > 1:
        parts.append(lined(claims, numbers_from=len(claims[0])))
    parts += sections
    (folder / "README.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")
