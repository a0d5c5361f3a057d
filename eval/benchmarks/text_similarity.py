"""The quality of text embeddings, which stage 1 is for: judged similarity, inference, and agreement with the teacher.

- `sts`: the seven sets of semantic textual similarity in mteb's layout (`sentence1`, `sentence2`, `score`, split
  `test`): Spearman's correlation of cosines and judgements.
- `nli`: triplets of SNLI and MultiNLI (`anchor`, `positive`, `negative`, configuration `triplet`, split `test`): a
  premise looks for what follows from it among the hypotheses of all, its own contradictions among them; hit@1.
- `agreement`: Spearman's correlation of our cosines and the teacher's over random pairs of texts of the OpenMoji world
  that no training has seen.

No instructions: texts get the one-word prompt that stage 1 trains.
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
PREMISES = 1000
HELD_OUT = 1000


def sts(source: str = "mteb", subsets: Sequence[str] | None = None) -> list[SimilarityTask]:
    """Open the sets of `STS`.

    Args:
        source (`str`, *optional*, defaults to `"mteb"`): Organisation on the Hub, or a folder, with the datasets.
        subsets (`Sequence[str]`, *optional*, defaults to all): Some of the sets.

    Raises:
        ValueError: There is no such set, or it lacks a column.
    """
    return [_judged(name, f"{source}/{STS[name]}") for name in select_subsets(subsets, STS, "similarities")]


def _judged(name: str, place: str) -> SimilarityTask:
    rows = open_hub_table(name, place, ("sentence1", "sentence2", "score"))
    check_text_columns(name, rows, ("sentence1", "sentence2"))
    first, second = ([{"text": text} for text in rows[column]] for column in ("sentence1", "sentence2"))
    return SimilarityTask(name, first, second, list(rows["score"]))


def nli(source: str = "sentence-transformers/all-nli", premises: int = PREMISES) -> list[RetrievalTask]:
    """Open the first triplets of AllNLI: those of so many distinct premises.

    Raises:
        ValueError: It lacks a column.
    """
    rows = open_hub_table("AllNLI", source, ("anchor", "positive", "negative"), "triplet")
    check_text_columns("AllNLI", rows, ("anchor", "positive", "negative"))
    follows: dict[str, set[str]] = {}
    hypotheses: dict[str, int] = {}
    for row in rows:
        if row["anchor"] not in follows and len(follows) == premises:
            break
        follows.setdefault(row["anchor"], set()).add(row["positive"])
        for text in (row["positive"], row["negative"]):
            hypotheses.setdefault(text, len(hypotheses))
    return [
        RetrievalTask(
            "NLI",
            "text",
            [{"text": premise} for premise in follows],
            [{"text": hypothesis} for hypothesis in hypotheses],
            [[hypotheses[text] for text in right] for right in follows.values()],
        )
    ]


def agreement(teacher: str, seed: int = 0, size: int = HELD_OUT) -> list[SimilarityTask]:
    """Compare with a teacher on held-out texts of the OpenMoji world.

    Args:
        teacher (`str`): A SentenceTransformer's folder, Hub id or package, as stage 1 takes it.
        seed (`int`, *optional*, defaults to 0): Of the texts and of their pairs.
        size (`int`, *optional*, defaults to 1000): How many texts; five times as many pairs.
    """
    # Here, so that the other benchmarks need neither the world's packages nor sentence-transformers.
    from ...data.teacher import load_teacher
    from ...openmoji.dataset import openmoji_texts

    held_out = list(openmoji_texts("test", size, seed=seed)["text"])
    vectors = load_teacher(teacher).encode(held_out, normalize_embeddings=True, show_progress_bar=False)
    source = random.Random(seed)
    pairs = [source.sample(range(len(held_out)), 2) for _ in range(5 * size)]
    first, second = ([{"text": held_out[pair[side]]} for pair in pairs] for side in (0, 1))
    similarities = [float(vectors[one] @ vectors[other]) for one, other in pairs]
    return [SimilarityTask(f"agreement with {Path(teacher).name}", first, second, similarities)]
