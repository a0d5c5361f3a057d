"""Tables of local folders are never read from a stale cache."""

import json
from pathlib import Path

import datasets
import pytest

from unime.data.dataset_loading import load_table


@pytest.fixture(autouse=True)
def temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_dataset(folder: Path, text: str) -> str:
    """Write a dataset with one row and a README, in the layout of the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: set\n  data_files: rows.jsonl\n---\n")
    (folder / "rows.jsonl").write_text(json.dumps({"text": text}) + "\n")
    return str(folder)


def read_texts(folder: str, **settings: bool) -> list[str]:
    return [row["text"] for row in load_table(folder, "set", split="train", **settings)]


@pytest.mark.parametrize("streaming", [False, True])
def test_two_folders_of_the_same_name_are_not_mixed_up(tmp_path: Path, streaming: bool):
    first, second = write_dataset(tmp_path / "a" / "sets", "first"), write_dataset(tmp_path / "b" / "sets", "second")
    assert [read_texts(folder, streaming=streaming) for folder in (first, second)] == [["first"], ["second"]]


def test_a_changed_file_is_read_again(tmp_path: Path):
    folder = write_dataset(tmp_path / "sets", "before")
    assert read_texts(folder) == ["before"]
    write_dataset(tmp_path / "sets", "after it")
    assert read_texts(folder) == ["after it"]
