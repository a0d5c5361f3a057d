"""The table of a suite: the means of each model, and published ones beside them."""

from collections.abc import Mapping
from typing import Any

from .html_report import META_TITLES, markdown_table, percent, published_tables
from .suite_scores import PUBLISHED_SUITES


Results = Mapping[str, Any]


def suite_table(results: Mapping[str, Results]) -> str:
    """Return the means of models side by side as an aligned Markdown table in percent, followed by published ones.

    A mean over fewer tasks than the suite has says over how many.

    Args:
        results (`Mapping`): Title of each column -> results of `suites.suite_results`, all on the same tasks.
    """
    first = next(iter(results.values()))
    rows = [[f"{first['benchmark']}, %", *results]]
    for title in first["scores"]:
        if title in first["evaluated"]:
            evaluated, expected = first["evaluated"][title], first["expected"][title]
            label = f"**{title}**" + (f" ({evaluated} of {expected} tasks)" if evaluated < expected else "")
        else:
            group = title.split(": ", 1)[1]
            label = META_TITLES.get(group, group)
        rows.append([label, *(percent(column["scores"][title]) for column in results.values())])
    published = PUBLISHED_SUITES.get(first["benchmark"])
    return "\n\n".join([markdown_table(rows), *(published_tables(results, published) if published else [])])
