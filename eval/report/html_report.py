"""Results as a Markdown table, and as one self-contained HTML page that opens offline."""

import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.html_pages import data_url, templates
from ...processing_unime import Item, frames_as_images, is_interleaved, to_item_dict
from ..metrics import mean_by_group
from .charts import line_chart
from .gallery import Answer, Gallery
from .paper_scores import PUBLISHED, Protocol, Published, measured_protocol


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
SUPPLEMENTARY_TITLES = {
    "plain": "Without skin tones",
    "dark": "On dark backgrounds",
    "unseen": "In an unseen style",
}
WORDS = {"t2i": "text → image", "i2t": "image → text", "obj": "object", "att": "attribute", "rel": "relation"}
SUPPLEMENTARY_NOTE = (
    "Not in the means: the same tasks without skin tones, on dark backgrounds, and with drawings of an artist that no "
    "training may use. *Untrained* compares gradient histograms and colours with the mean drawing of each class."
)
MAX_MISTAKES = 12
MAX_MISTAKES_PER_TASK = 2
SHOWN_ROWS = 2  # of examples; the others are folded


def table(results: Mapping[str, Results]) -> str:
    """Return results side by side as an aligned Markdown table in percent, followed by published scores.

    Args:
        results (`Mapping`): Title of each column -> results of `tasks.evaluate`, all on the same tasks.

    Raises:
        ValueError: Two columns have different tasks.
    """
    _check_same_tasks(results)
    first = next(iter(results.values()))
    metrics = {name: task["metric"] for name, task in first["tasks"].items()}
    rows = [[f"{_main_metric(metrics.values())}, %", *results]]
    for meta_task, names in _by_meta_task(first).items():
        rows.append([f"**{META_TITLES[meta_task]}**", *_percents(results, "meta_tasks", meta_task)])
        for name in names:
            metric = metrics[name]
            label = name if metric == "hit@1" else f"{name}, {metric}"
            rows.append([label, *(percent(column["tasks"][name][metric]) for column in results.values())])
    if metrics:
        rows.append(["**Mean of tasks**", *(percent(column["overall"]) for column in results.values())])
    for distribution in first["distributions"]:
        rows.append([f"Mean of {distribution}", *_percents(results, "distributions", distribution)])
    if first["distributions"]:  # on MMEB, both means are published as "Overall"
        rows.append(["Mean of meta-tasks", *(percent(column["mean_of_meta_tasks"]) for column in results.values())])
    for group, names in _by_group(first).items():
        rows.append([f"**Compositional: {group}**", *_percents(results, "compositional_groups", group)])
        rows += [[name, *_percents(results, "compositional", name)] for name in names]
    parts = [markdown_table(rows), *supplementary_table(results)]
    published = PUBLISHED.get(first["benchmark"])
    if published:
        parts += published_tables(results, published)
    return "\n\n".join(parts)


def supplementary_table(results: Mapping[str, Results]) -> list[str]:
    """Return a title and a table of the supplementary tasks beside an untrained baseline and chance, if there are any.

    Args:
        results (`Mapping`): Title of each column -> results; those without such tasks have no column here.
    """
    results = _with_supplementary(results)
    if not results:
        return []
    first = next(iter(results.values()))
    tasks = first["supplementary_tasks"]
    rows = [["hit@1, %", *results, "untrained", "chance"]]
    for meta_task, names in _by_supplementary(first).items():
        means = _percents(results, "supplementary_means", meta_task)
        rows.append([f"**{SUPPLEMENTARY_TITLES[meta_task]}**", *means, "", ""])
        for name in names:
            baseline = percent(tasks[name]["baseline"]) if "baseline" in tasks[name] else ""
            shares = [percent(column["supplementary_tasks"][name]["hit@1"]) for column in results.values()]
            rows.append([name, *shares, baseline, percent(tasks[name]["chance"])])
    return [SUPPLEMENTARY_NOTE, markdown_table(rows)]


def write_report(
    results: Mapping[str, Results],
    galleries: Sequence[Gallery],
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: str | Path,
    *,
    highlight: str,
    credits: str,
) -> Path:
    """Write an HTML page that contains its images, charts and style; all inserted text is escaped.

    Args:
        results (`Mapping`): Title of each column -> results of `tasks.evaluate`, all on the same tasks.
        galleries (`Sequence[Gallery]`): Galleries of the highlighted column, from `gallery.build_galleries`.
        curves (`Mapping`): Title of each chart -> title of each line -> `(step, value)` points, from `charts.curve`. A
            line with the title of a column has the color of the column.
        path (`str` or `Path`): The file to write.
        highlight (`str`): Title of the column that the report emphasizes and shows examples of.
        credits (`str`): Authors and license of the images.

    Returns:
        `Path`: The file.

    Raises:
        ValueError: Two columns have different tasks, or `highlight` is not a column.
    """
    _check_same_tasks(results)
    if highlight not in results:
        raise ValueError(f"highlight '{highlight}' is not a column; choose from {', '.join(results)}")
    main = results[highlight]
    others = [title for title in results if title != highlight]
    # Classes of the style sheet, and colors of the charts.
    colors = {highlight: "highlight", **{title: f"other-{index % 5}" for index, title in enumerate(others)}}
    metrics = sorted({task["metric"] for task in main["tasks"].values()})
    published = PUBLISHED.get(main["benchmark"])
    partial = published.partial(main) if published else ""
    compared = published if not partial else None
    charts = [line_chart(title, curves[title], colors, f"chart-{index}") for index, title in enumerate(curves)]
    chance = _chance_column(main)
    all_tasks = main["tasks"] | main.get("supplementary_tasks", {})

    def scores_of(part: str, name: str, metric: str | None = None) -> list[float]:
        scores = [column[part][name] for column in results.values()]
        return scores if metric is None else [of_task[metric] for of_task in scores]

    environment = templates("unime.eval.report")
    # The tasks of one's own rows have names of their own.
    words = str if main["benchmark"] == "rows" else _words
    environment.filters.update(percent=percent, words=words, view=_view, is_interleaved=is_interleaved)
    page = environment.get_template("report.html.jinja").render(
        results=results,
        best=_best,
        scores_of=scores_of,
        chance=chance,
        headline_chance=_headline(chance),
        shown_rows=SHOWN_ROWS,
        highlight=highlight,
        headlines={title: _headline(column) for title, column in results.items()},
        colors=colors,
        meta_titles=META_TITLES,
        by_meta_task=_by_meta_task(main),
        by_group=_by_group(main),
        supplementary=_by_supplementary(main),
        supplementary_results=_with_supplementary(results),
        supplementary_titles=SUPPLEMENTARY_TITLES,
        metrics=metrics,
        main_metric=_main_metric(metrics),
        retrieval_tasks=[name for name, task in main["tasks"].items() if "R@1" in task],
        published=compared,
        differs=lambda protocol: differs(protocol, results),
        other_protocol=OTHER_PROTOCOL,
        measured=_measured_protocols(results),
        protocol_note=protocol_note(results),
        partial=partial,
        scores_of_axis=[[axis.ours(column) for column in results.values()] for axis in compared.axes]
        if compared
        else [],
        charts=[chart for chart in charts if chart],
        retrieval=[gallery for gallery in galleries if gallery.name in all_tasks],
        all_tasks=all_tasks,
        compositional=[gallery for gallery in galleries if gallery.name in main["compositional"]],
        mistakes=_largest_mistakes(galleries),
        mark_edits=_mark_edits,
        credits=credits,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def published_tables(results: Mapping[str, Results], published: Published) -> list[str]:
    """Return a title and a table per source, with the protocol of each row, or why no published scores are shown.

    Args:
        results (`Mapping`): Title of each column -> results.
        published (`Published`): The published scores of their benchmark or suite.
    """
    first = next(iter(results.values()))
    partial = published.partial(first)
    if partial:
        return [partial]
    parts = []
    for source, rows in published.sources.items():
        parts.append(f"Published scores ({source}), not measured by us:")
        table_rows = [["published, %", *(axis.title for axis in published.axes), "image size", "prompts"]]
        for model, row in rows.items():
            protocol = published.protocol(source, model)
            mark = OTHER_PROTOCOL if differs(protocol, results) else ""
            scores = [f"{score:.1f}" for score in row]
            table_rows.append([f"{model}{mark}", *scores, protocol.image_size, protocol.prompts])
        parts.append(markdown_table(table_rows))
    return [*parts, protocol_note(results), published.note + published.versions(next(iter(results.values())))]


OTHER_PROTOCOL = " †"


def differs(protocol: Protocol, results: Mapping[str, Results]) -> bool:
    """Return whether no column was measured at the image size and with the prompts of a published row."""
    return protocol not in _measured_protocols(results).values()


def protocol_note(results: Mapping[str, Results]) -> str:
    """Return the protocol of each column, and what the mark of a published row means."""
    measured = "; ".join(
        f"{title}: image size {protocol.image_size}, prompts {protocol.prompts}"
        for title, protocol in _measured_protocols(results).items()
    )
    return f"†: measured under another protocol than ours ({measured}). --image-size and --prompts set ours."


def _measured_protocols(results: Mapping[str, Results]) -> dict[str, Protocol]:
    """Return the protocol of each column; a suite has one for all its benchmarks, with the prompts of captions."""
    runs = {
        title: column.get("run") or next(iter(column.get("runs", {}).values()), {})
        for title, column in results.items()
    }
    return {title: measured_protocol(run, results[title]["benchmark"]) for title, run in runs.items()}


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table; the first row is its head, and all columns but the first hold numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in (rows[0], rule, *rows[1:])
    )


def _chance_column(results: Results) -> dict[str, Any]:
    """Return the expected results of random scores, NaN where they are not defined (Spearman) or not recorded."""
    tasks = results["tasks"]
    shares = {name: task.get("chance", math.nan) for name, task in tasks.items()}
    # Results of earlier versions have one true caption per image.
    compositional = results.get("compositional_chance", dict.fromkeys(results["compositional"], 0.5))
    supplementary = {name: task["chance"] for name, task in results.get("supplementary_tasks", {}).items()}
    return {
        "supplementary_tasks": {name: {"hit@1": share} for name, share in supplementary.items()},
        "tasks": {
            name: {"R@1": share if tasks[name]["metric"] == "hit@1" else math.nan, tasks[name]["metric"]: share}
            for name, share in shares.items()
        },
        "meta_tasks": mean_by_group((tasks[name]["meta_task"], share) for name, share in shares.items()),
        "distributions": mean_by_group(
            (tasks[name]["distribution"], share) for name, share in shares.items() if "distribution" in tasks[name]
        ),
        "overall": float(np.mean(list(shares.values()))) if shares else None,
        "compositional": compositional,
        "compositional_groups": mean_by_group((name.split("_")[0], share) for name, share in compositional.items()),
    }


def _best(scores: Iterable[float]) -> str:
    """Return the best score as the page shows it, to be emphasized; '' for one column, which has nothing to beat."""
    scores = list(scores)
    return percent(max(scores)) if len(scores) > 1 else ""


def _main_metric(metrics: Collection[str]) -> str:
    """Return the head of the column of names; tasks with another metric name it beside their own name."""
    return "score" if metrics and "hit@1" not in metrics else "hit@1"


def _headline(column: Results) -> float:
    """Return the mean over tasks; for a benchmark of compositional tasks only, the mean over groups."""
    return column["overall"] if column["tasks"] else float(np.mean(list(column["compositional_groups"].values())))


def _check_same_tasks(results: Mapping[str, Results]) -> None:
    _compare_tasks(results, ("tasks", "compositional"))
    _compare_tasks(_with_supplementary(results), ("supplementary_tasks",))


def _with_supplementary(results: Mapping[str, Results]) -> dict[str, Results]:
    """Return the columns with supplementary tasks; results of earlier versions have none."""
    return {title: column for title, column in results.items() if column.get("supplementary_tasks")}


def _compare_tasks(results: Mapping[str, Results], parts: Sequence[str]) -> None:
    first, *rest = results or [""]
    for part in parts:
        for title in rest:
            different = results[first][part].keys() ^ results[title][part].keys()
            if different:
                raise ValueError(
                    f"the columns '{first}' and '{title}' do not share {', '.join(sorted(different))}; "
                    "evaluate all columns on the same tasks"
                )


def _by_meta_task(results: Results) -> dict[str, list[str]]:
    """Return the names of tasks per meta-task, in the order of `META_TITLES`."""
    tasks = results["tasks"]
    groups = {meta: [name for name, task in tasks.items() if task["meta_task"] == meta] for meta in META_TITLES}
    return {meta: names for meta, names in groups.items() if names}


def _by_supplementary(results: Results) -> dict[str, list[str]]:
    """Return the names of supplementary tasks per meta-task, in the order of `SUPPLEMENTARY_TITLES`."""
    tasks = results.get("supplementary_tasks", {})
    groups = {
        meta: [name for name, task in tasks.items() if task["meta_task"] == meta] for meta in SUPPLEMENTARY_TITLES
    }
    return {meta: names for meta, names in groups.items() if names}


def _by_group(results: Results) -> dict[str, list[str]]:
    return {
        group: [name for name in results["compositional"] if name.split("_")[0] == group]
        for group in results["compositional_groups"]
    }


def _percents(results: Mapping[str, Results], part: str, name: str) -> list[str]:
    return [percent(column[part][name]) for column in results.values()]


def percent(share: float) -> str:
    """Return a fraction of 1 as a percentage with one decimal."""
    return f"{100 * share:.1f}"


def _words(name: str) -> str:
    """Spell out the name of a task: `scene_t2i` -> `Scene, text → image`."""
    first, *rest = (WORDS.get(part, part) for part in name.split("_"))
    return ", ".join([first.capitalize(), *([" ".join(rest)] if rest else [])])


def _view(item: Item) -> dict[str, Any]:
    """Return an item with its images as data URLs."""
    item = to_item_dict(frames_as_images(item))
    return item | {"images": [data_url(_encode_png(image), "png") for image in item["images"]]}


def _encode_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.convert("RGBA" if image.has_transparency_data else "RGB").save(file, "PNG", optimize=True)
    return file.getvalue()


def _mark_edits(caption: str, negative: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Split two captions into `(words, whether they differ)`, by the longest common subsequence.

    `difflib` takes the longest common *block* first, which splits a swap of two words badly.
    """
    left, right = caption.split(), negative.split()
    common = np.zeros((len(left) + 1, len(right) + 1), dtype=int)  # length for the words from i and from j on
    for i, j in product(reversed(range(len(left))), reversed(range(len(right)))):
        same = left[i] == right[j]
        common[i, j] = common[i + 1, j + 1] + 1 if same else max(common[i + 1, j], common[i, j + 1])
    i, j, marked = 0, 0, ([], [])
    while i < len(left) or j < len(right):
        same = i < len(left) and j < len(right) and left[i] == right[j]
        take_left = same or j == len(right) or (i < len(left) and common[i + 1, j] >= common[i, j + 1])
        take_right = same or not take_left
        marked[0].extend([(left[i], not same)] if take_left else [])
        marked[1].extend([(right[j], not same)] if take_right else [])
        i, j = i + take_left, j + take_right
    return _join_runs(marked[0]), _join_runs(marked[1])


def _join_runs(marked: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Join neighboring words with equal marks."""
    return [(" ".join(word for word, _ in run), mark) for mark, run in groupby(marked, itemgetter(1))]


def _largest_mistakes(galleries: Sequence[Gallery]) -> list[tuple[str, Answer]]:
    """Return the largest errors of the retrieval tasks with their task, the largest margin first."""
    mistakes = [
        (gallery.name, mistake)
        for gallery in galleries
        for mistake in gallery.mistakes[:MAX_MISTAKES_PER_TASK]
        if isinstance(mistake, Answer)
    ]
    mistakes.sort(key=lambda pair: pair[1].top[0].score - pair[1].right.score, reverse=True)
    return mistakes[:MAX_MISTAKES]
