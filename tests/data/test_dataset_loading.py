import json
from pathlib import Path

import datasets
import pytest

from unime.data.dataset_loading import load_table


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, text: str) -> str:
    """Write a dataset with a README, as the Hub's have, whose one row holds a text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: set\n  data_files: rows.jsonl\n---\n")
    (folder / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
    return str(folder)


def read(place: str, **settings: bool) -> list[str]:
    return [row["text"] for row in load_table(place, "set", split="train", **settings)]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_copy_elsewhere_is_not_taken_for_the_first(tmp_path: Path, streaming: bool):
    first, second = write(tmp_path / "a" / "sets", "first"), write(tmp_path / "b" / "sets", "second")
    assert [read(place, streaming=streaming) for place in (first, second)] == [["first"], ["second"]]


def test_a_changed_file_is_read_again(tmp_path: Path):
    place = write(tmp_path / "sets", "before")
    assert read(place) == ["before"]
    write(tmp_path / "sets", "after it")
    assert read(place) == ["after it"]
