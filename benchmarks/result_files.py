"""Output of benchmarks: a Markdown table, and a JSON file with the settings and versions."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


LIBRARIES = ("torch", "transformers", "sentence-transformers", "numpy")


def write(path: str | Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *libraries: str) -> None:
    """Write the rows with their settings, the type of machine and the versions of libraries.

    Args:
        path (`str` or `Path`): Output file; its folder is created.
        settings (`Mapping`): Settings such as model, sizes and dtype.
        rows (`Sequence[Mapping]`): Results. Prefer ratios: times do not transfer to other machines.
        libraries (`str`): Distributions beside `LIBRARIES` that affect the results.
    """
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version()} | {name: version(name) for name in (*LIBRARIES, *libraries)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(machine | {"libraries": versions, "settings": settings, "rows": rows}, indent=1) + "\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a Markdown table with the columns of the first row; numbers have three significant digits."""
    columns = list(rows[0])
    rule = ["---" if isinstance(rows[0][column], str) else "---:" for column in columns]
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, rule, *cells))


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
