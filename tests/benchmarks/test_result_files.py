"""Tests of the output files of benchmarks."""

import json
from importlib.metadata import version
from pathlib import Path

from result_files import table, write


def test_a_table_has_three_significant_digits_and_the_columns_of_its_first_row():
    rows = [{"name": "a", "ratio": 1.23456, "n": 12345}, {"name": "b", "ratio": 0.0000123, "more": 1}]
    assert table(rows) == "| name | ratio | n |\n| --- | ---: | ---: |\n| a | 1.23 | 12345 |\n| b | 1.2e-05 |  |"


def test_the_file_contains_settings_and_versions(tmp_path: Path):
    write(tmp_path / "new" / "a.json", {"rounds": 3}, [{"ratio": 2.0}], "pillow")
    content = json.loads((tmp_path / "new" / "a.json").read_text())
    assert content["settings"] == {"rounds": 3} and content["rows"] == [{"ratio": 2.0}]
    assert {"torch", "transformers", "sentence-transformers", "pillow"} < set(content["libraries"])
    assert content["libraries"]["pillow"] == version("pillow")
