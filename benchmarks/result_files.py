"""What a run of a benchmark leaves behind: a table to read, and a JSON file that names the versions."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


LIBRARIES = ("torch", "transformers", "sentence-transformers", "numpy")


def write(path: str | Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *libraries: str) -> None:
    """Write the rows with the settings that they depend on, the machine's kind and the versions of libraries.

    Args:
        path (`str` or `Path`): The file; its folder is made.
        settings (`Mapping`): What was chosen: model, sizes, dtype.
        rows (`Sequence[Mapping]`): What was found. Ratios only: a time says nothing on another machine.
        libraries (`str`): Distributions that the figures depend on, beside `LIBRARIES`.
    """
    machine = {"machine": platform.machine(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version()} | {name: version(name) for name in (*LIBRARIES, *libraries)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(machine | {"libraries": versions, "settings": settings, "rows": rows}, indent=1) + "\n")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown; columns are the first row's, numbers stand on the right with three digits that count."""
    columns = list(rows[0])
    marks = ["---" if isinstance(rows[0][column], str) else "---:" for column in columns]
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, marks, *cells))


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
