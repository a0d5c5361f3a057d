"""Tests of the notebook: committed outputs are complete, and every cell still runs."""

import json
from pathlib import Path
from typing import Any

import pytest


NOTEBOOK = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.ipynb"


def printed_texts(notebook: dict[str, Any]) -> list[str]:
    """Return what the cells of a notebook print."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return ["".join(output["text"]) for output in outputs if output["output_type"] == "stream"]


def test_the_committed_notebook_is_small_and_has_outputs_of_one_complete_run_without_errors() -> None:
    assert NOTEBOOK.stat().st_size < 400_000
    code = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 7


@pytest.mark.slow
def test_every_cell_runs_and_prints_the_committed_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    committed = printed_texts(notebook)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    assert committed and printed_texts(notebook) == committed
