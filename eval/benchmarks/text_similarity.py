"""Benchmarks of text embeddings, which stage 1 trains.

- `sts`: Seven datasets of semantic textual similarity in mteb's layout (`sentence1`, `sentence2`, `score`, split
  `test`). Metric: Spearman correlation of cosine similarities and human scores.
- `nli`: Triplets of SNLI and MultiNLI (`anchor`, `positive`, `negative`, configuration `triplet`, split `test`). Each
  premise retrieves its entailed hypotheses among all hypotheses, its own contradictions included. Metric: hit@1.
- `agreement`: Spearman correlation of the model's and the teacher's cosine similarities over random pairs of held-out
  OpenMoji texts.

Items have no instruction: texts get the one-word prompt of stage 1.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from ...data.hub_tables import check_text_columns, open_hub_table, select_subsets
from ..tasks import RetrievalTask, SimilarityTask


STS = {
    **{f"STS{year}": f"sts{year}-sts" for year in (12, 13, 14, 15, 16)},
    "STSBenchmark": "stsbenchmark-sts",
    "SICK-R": "sickr-sts",
}
NLI_PREMISES = 1000
AGREEMENT_TEXTS = 1000
PAIRS_PER_TEXT = 5


def sts(source: str = "mteb", subsets: Sequence[str] | None = None) -> list[SimilarityTask]:
    """Open the datasets of `STS`.

    Args:
        source (`str`, *optional*, defaults to `"mteb"`): Hub organization, or a folder, that holds the datasets.
        subsets (`Sequence[str]`, *optional*, defaults to all): Keys of `STS`.

    Raises:
        ValueError: A subset is unknown, or lacks a column.
    """
    return [_sts_task(name, f"{source}/{STS[name]}") for name in select_subsets(subsets, STS, "similarities")]


def _sts_task(name: str, path: str) -> SimilarityTask:
    rows = open_hub_table(name, path, ("sentence1", "sentence2", "score"))
    check_text_columns(name, rows, ("sentence1", "sentence2"))
    first, second = ([{"text": text} for text in rows[column]] for column in ("sentence1", "sentence2"))
    return SimilarityTask(name, first, second, list(rows["score"]))


def nli(source: str = "sentence-transformers/all-nli", premises: int = NLI_PREMISES) -> list[RetrievalTask]:
    """Open the first triplets of AllNLI.

    Args:
        source (`str`, *optional*, defaults to `"sentence-transformers/all-nli"`): Hub id or folder.
        premises (`int`, *optional*, defaults to 1000): Number of distinct premises to read.

    Raises:
        ValueError: A column is missing.
    """
    rows = open_hub_table("AllNLI", source, ("anchor", "positive", "negative"), "triplet")
    check_text_columns("AllNLI", rows, ("anchor", "positive", "negative"))
    entailed: dict[str, set[str]] = {}  # premise -> hypotheses
    hypotheses: dict[str, int] = {}  # hypothesis -> its index among the candidates
    for row in rows:
        if row["anchor"] not in entailed and len(entailed) == premises:
            break
        entailed.setdefault(row["anchor"], set()).add(row["positive"])
        for text in (row["positive"], row["negative"]):
            hypotheses.setdefault(text, len(hypotheses))
    return [
        RetrievalTask(
            "NLI",
            "text",
            [{"text": premise} for premise in entailed],
            [{"text": hypothesis} for hypothesis in hypotheses],
            [[hypotheses[text] for text in positives] for positives in entailed.values()],
        )
    ]


def agreement(teacher: str, seed: int = 0, size: int = AGREEMENT_TEXTS) -> list[SimilarityTask]:
    """Compare the model with a teacher on held-out OpenMoji texts.

    Args:
        teacher (`str`): Folder, Hub id or package of a SentenceTransformer, as in stage 1.
        seed (`int`, *optional*, defaults to 0): Seed of the texts and of their pairs.
        size (`int`, *optional*, defaults to 1000): Number of texts; there are five times as many pairs.
    """
    # Lazy: the other benchmarks need neither the extra `openmoji` nor sentence-transformers.
    from ...data.teacher import load_teacher
    from ...openmoji.dataset import openmoji_texts

    texts = list(openmoji_texts("test", size, seed=seed)["text"])
    embeddings = load_teacher(teacher).encode(texts, normalize_embeddings=True, show_progress_bar=False)
    rng = random.Random(seed)
    pairs = [rng.sample(range(len(texts)), 2) for _ in range(PAIRS_PER_TEXT * size)]
    first, second = ([{"text": texts[pair[side]]} for pair in pairs] for side in (0, 1))
    similarities = [float(embeddings[left] @ embeddings[right]) for left, right in pairs]
    return [SimilarityTask(f"agreement with {Path(teacher).name}", first, second, similarities)]
