"""Results as a Markdown table for the terminal, and as one self-contained page that opens offline."""

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ...processing_unime import Item, to_item_dict
from .gallery import Answer, Gallery
from .line_chart import line_chart
from .paper_scores import PUBLISHED, Published, group_axis, meta_task_axis
from .radar import Radar, radar


Results = Mapping[str, Any]

META_TITLES = {
    "classification": "Classification",
    "vqa": "Questions",
    "retrieval": "Retrieval",
    "grounding": "Grounding",
    "long": "Long captions",
    "documents": "Document pages",
    "moments": "Moments of videos",
    "text": "Text",
}
WORDS = {"t2i": "text → image", "i2t": "image → text", "obj": "object", "att": "attribute", "rel": "relation"}
MISTAKES_SHOWN = 12


def table(results: Mapping[str, Results]) -> str:
    """Writes results side by side as an aligned Markdown table, in percent, and below it what others published.

    Args:
        results (`Mapping`): Title of each column -> results of `tasks.evaluate`, all on the same tasks.
    """
    _check_same_tasks(results)
    metrics = {name: task["metric"] for name, task in next(iter(results.values()))["tasks"].items()}
    rows = [[f"{_unit(metrics.values())}, %", *results]]
    for meta_task, names in _by_meta_task(results).items():
        rows.append([f"**{META_TITLES[meta_task]}**", *_percents(results, "meta_tasks", meta_task)])
        for name in names:
            metric = metrics[name]
            shown = name if metric == "hit@1" else f"{name}, {metric}"
            rows.append([shown, *(_percent(column["tasks"][name][metric]) for column in results.values())])
    if _by_meta_task(results):
        rows.append(["**Mean of tasks**", *(_percent(column["overall"]) for column in results.values())])
    distributions = next(iter(results.values()))["distributions"]
    for distribution in distributions:
        rows.append([f"Mean of {distribution}", *_percents(results, "distributions", distribution)])
    if distributions:  # on MMEB two means go by the name of "Overall"
        rows.append(["Mean of meta-tasks", *(_percent(column["mean_of_meta_tasks"]) for column in results.values())])
    for group, kinds in _by_group(results).items():
        rows.append([f"**Compositional: {group}**", *_percents(results, "compositional_groups", group)])
        rows += [[kind, *_percents(results, "compositional", kind)] for kind in kinds]
    parts = [_aligned(rows)]
    published = PUBLISHED.get(next(iter(results.values()))["benchmark"])
    if published:
        parts += _published_tables(results, published)
    return "\n\n".join(parts)


def write_report(
    results: Mapping[str, Results],
    galleries: Sequence[Gallery],
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: str | Path,
    *,
    highlight: str,
    credits: str,
) -> Path:
    """Writes one HTML page with images, charts and style inside it; everything that was measured is escaped.

    Args:
        results (`Mapping`): Title of each column -> results of `tasks.evaluate`, all on the same tasks, in the order
            in which they are told: before, stage 1, stage 2, CLIP.
        galleries (`Sequence[Gallery]`): Of the subject, made by `gallery.galleries`.
        curves (`Mapping`): Title of each chart -> title of each line -> `(step, value)` points (see `chart.curve`). A
            line with the title of a column has its colour.
        path (`str` or `Path`): The file to write.
        subject (`str`): Title of the column that the report is about and that the galleries show.
        credits (`str`): Who made the images, and under which licence.

    Returns:
        `Path`: The file.
    """
    _check_same_tasks(results)
    if highlight not in results:
        raise ValueError(f"the report's highlight '{highlight}' is none of its columns: {', '.join(results)}.")
    others = [title for title in results if title != highlight]
    metrics = sorted({task["metric"] for task in results[highlight]["tasks"].values()})
    published = PUBLISHED.get(results[highlight]["benchmark"])
    partial = _partial(results, published) if published else ""
    beside = published if not partial else None
    environment = Environment(
        loader=PackageLoader("unime.eval.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, words=_words, view=_view)
    environment.globals.update(edited=_edited)
    page = environment.get_template("report.html.jinja").render(
        results=results,
        highlight=highlight,
        headlines={title: _headline(column) for title, column in results.items()},
        # The style sheet has one strong colour and five quiet ones.
        colours={highlight: "subject", **{title: f"other-{index % 5}" for index, title in enumerate(others)}},
        meta_titles=META_TITLES,
        by_meta_task=_by_meta_task(results),
        by_group=_by_group(results),
        metrics=metrics,
        unit=_unit(metrics),
        searches=[name for name, task in results[highlight]["tasks"].items() if "R@1" in task],
        published=beside,
        partial=partial,
        radar=_radar(results, beside),
        charts=[chart for title, lines in curves.items() if (chart := line_chart(title, lines))],
        retrieval=[gallery for gallery in galleries if gallery.name in results[highlight]["tasks"]],
        probes=[gallery for gallery in galleries if gallery.name in results[highlight]["compositional"]],
        mistakes=_hardest(galleries),
        credits=credits,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _published_tables(results: Mapping[str, Results], published: Published) -> list[str]:
    """A title and a table per source; where only a part of the benchmark was measured, a sentence that says so."""
    partial = _partial(results, published)
    if partial:
        return [partial]
    parts = []
    for source, rows in published.sources.items():
        parts.append(f"Published ({source}), not measured here:")
        head = ["published, %", *(axis.title for axis in published.axes)]
        parts.append(_aligned([head, *([model, *(f"{score:.1f}" for score in row)] for model, row in rows.items())]))
    return [*parts, published.note]


def _partial(results: Mapping[str, Results], published: Published) -> str:
    """Why nothing published stands beside results on a part of a benchmark; empty if they are on all of it."""
    first = next(iter(results.values()))
    measured = len(first["tasks"]) + len(first["compositional"])
    if measured == published.tasks:
        return ""
    return (
        f"Published scores are on all {published.tasks} tasks of {first['benchmark']}; "
        f"{measured} of them were measured here, so that none is shown beside ours."
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Markdown whose first row is the head and whose other columns than the first are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in (rows[0], rule, *rows[1:])
    )


def _radar(results: Mapping[str, Results], published: Published | None) -> Radar | None:
    """The columns over the published axes, or over meta-tasks and groups of probes; None where these are too few."""
    if published:
        axes = published.axes[: published.drawn]
    else:
        axes = [
            *(meta_task_axis(META_TITLES[meta_task], meta_task) for meta_task in _by_meta_task(results)),
            *(group_axis(group.capitalize(), group) for group in _by_group(results)),
        ]
    if len(axes) < 3:
        return None
    scores = {title: [100 * axis.ours(column) for axis in axes] for title, column in results.items()}
    titles = [axis.title for axis in axes]
    return radar(titles, scores, published.shown, published.chance) if published else radar(titles, scores)


def _unit(metrics: Collection[str]) -> str:
    """What the column of names is headed by; other metrics stand beside their tasks' names."""
    return "score" if metrics and "hit@1" not in metrics else "hit@1"


def _headline(column: Results) -> float:
    """The one number of a benchmark; of probes alone the mean of their groups."""
    return column["overall"] if column["tasks"] else float(np.mean(list(column["compositional_groups"].values())))


def _check_same_tasks(results: Mapping[str, Results]) -> None:
    first, *rest = results
    for part in ("tasks", "compositional"):
        for title in rest:
            different = results[first][part].keys() ^ results[title][part].keys()
            if different:
                raise ValueError(
                    f"the columns '{first}' and '{title}' do not share {', '.join(sorted(different))}; "
                    "evaluate all columns on the same tasks."
                )


def _by_meta_task(results: Mapping[str, Results]) -> dict[str, list[str]]:
    """Names of tasks per meta-task, in the order of `META_TITLES`."""
    tasks = next(iter(results.values()))["tasks"]
    groups = {meta: [name for name, task in tasks.items() if task["meta_task"] == meta] for meta in META_TITLES}
    return {meta: names for meta, names in groups.items() if names}


def _by_group(results: Mapping[str, Results]) -> dict[str, list[str]]:
    first = next(iter(results.values()))
    return {
        group: [kind for kind in first["compositional"] if kind.split("_")[0] == group]
        for group in first["compositional_groups"]
    }


def _percents(results: Mapping[str, Results], part: str, name: str) -> list[str]:
    return [_percent(column[part][name]) for column in results.values()]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _words(name: str) -> str:
    """`scene_t2i` -> `Scene, text → image`."""
    first, *rest = (WORDS.get(part, part) for part in name.split("_"))
    return ", ".join([first.capitalize(), *([" ".join(rest)] if rest else [])])


def _view(item: Item) -> dict[str, Any]:
    item = to_item_dict(item)
    return item | {"images": [_data_uri(image) for image in item["images"]]}


def _data_uri(image: Image.Image) -> str:
    data = io.BytesIO()
    image.convert("RGBA" if image.has_transparency_data else "RGB").save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _edited(caption: str, negative: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Cuts two captions into `(words, whether the other lacks them here)`, by their longest common subsequence.

    `difflib` takes the longest common *block* first, which tears a swap of two words apart.
    """
    ours, theirs = caption.split(), negative.split()
    common = np.zeros((len(ours) + 1, len(theirs) + 1), dtype=int)  # of the words from i and from j on
    for i, j in product(reversed(range(len(ours))), reversed(range(len(theirs)))):
        same = ours[i] == theirs[j]
        common[i, j] = common[i + 1, j + 1] + 1 if same else max(common[i + 1, j], common[i, j + 1])
    i, j, marked = 0, 0, ([], [])
    while i < len(ours) or j < len(theirs):
        same = i < len(ours) and j < len(theirs) and ours[i] == theirs[j]
        take_ours = same or j == len(theirs) or (i < len(ours) and common[i + 1, j] >= common[i, j + 1])
        take_theirs = same or not take_ours
        marked[0].extend([(ours[i], not same)] if take_ours else [])
        marked[1].extend([(theirs[j], not same)] if take_theirs else [])
        i, j = i + take_ours, j + take_theirs
    return _runs(marked[0]), _runs(marked[1])


def _runs(marked: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Joins neighbouring words with equal marks."""
    return [(" ".join(word for word, _ in run), mark) for mark, run in groupby(marked, itemgetter(1))]


def _hardest(galleries: Sequence[Gallery]) -> list[tuple[str, Answer]]:
    """The two worst mistakes of every retrieval task, the greatest margin first."""
    mistakes = [
        (gallery.name, mistake)
        for gallery in galleries
        for mistake in gallery.mistakes[:2]
        if isinstance(mistake, Answer)
    ]
    mistakes.sort(key=lambda pair: pair[1].top[0].score - pair[1].right.score, reverse=True)
    return mistakes[:MISTAKES_SHOWN]
