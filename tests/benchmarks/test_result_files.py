"""What a benchmark leaves behind."""

import json
from importlib.metadata import version
from pathlib import Path

from result_files import table, write


def test_a_table_shows_three_digits_and_keeps_the_columns_of_its_first_row():
    rows = [{"way": "a", "ratio": 1.23456, "n": 12345}, {"way": "b", "ratio": 0.0000123, "more": 1}]
    assert table(rows) == "| way | ratio | n |\n| --- | ---: | ---: |\n| a | 1.23 | 12345 |\n| b | 1.2e-05 |  |"


def test_the_file_names_settings_and_versions(tmp_path: Path):
    write(tmp_path / "new" / "a.json", {"rounds": 3}, [{"ratio": 2.0}], "pillow")
    found = json.loads((tmp_path / "new" / "a.json").read_text())
    assert found["settings"] == {"rounds": 3} and found["rows"] == [{"ratio": 2.0}]
    assert {"torch", "transformers", "sentence-transformers", "pillow"} < set(found["libraries"])
    assert found["libraries"]["pillow"] == version("pillow")
