"""Scores of blocks of queries are those of all queries at once."""

from typing import Any

import numpy as np
import pytest

from unime.eval import retrieval_scores
from unime.eval.tasks import RetrievalTask


QUERIES, CANDIDATES = 23, 40
RNG = np.random.default_rng(0)
# Products of small integers are exact, so that ties are ties in blocks of every size.
VECTORS = RNG.integers(-3, 4, (QUERIES + CANDIDATES, 6)).astype(np.float32) / 8
POSITIVES = [[int(candidate) for candidate in RNG.choice(CANDIDATES, 2, replace=False)] for _ in range(QUERIES)]
TASKS = {
    "all candidates": {},
    "pools": {"pools": [[*right, *range(query % 30, query % 30 + 9)] for query, right in enumerate(POSITIVES)]},
    "graded": {"relevance": [[2.0, 1.0] for _ in range(QUERIES)]},
    "precision": {"metric": "mAP@5"},
}


@pytest.mark.parametrize("options", TASKS.values(), ids=TASKS)
def test_blocks_have_the_scores_and_examples_of_the_whole(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    items = [{"text": f"{number}"} for number in range(QUERIES + CANDIDATES)]
    task = RetrievalTask("t", "retrieval", items[:QUERIES], items[QUERIES:], POSITIVES, distribution="IND", **options)
    results = []
    for size in (QUERIES, 7, 1):
        monkeypatch.setattr(retrieval_scores, "MAX_BLOCK_SCORES", size * CANDIDATES)
        results.append(retrieval_scores.score_retrieval(task, VECTORS[:QUERIES], VECTORS[QUERIES:], 6))
    whole, sevens, ones = results
    assert whole == sevens == ones
    scores, examples = whole
    assert 0 < scores["hit@1"] < 1 and len(examples["examples"]) == len(examples["mistakes"]) == 6
    margins = [mistake["scores"][0] - mistake["answer_score"] for mistake in examples["mistakes"]]
    assert margins == sorted(margins, reverse=True)
