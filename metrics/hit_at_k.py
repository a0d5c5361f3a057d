"""MMEB's hit at k, for `evaluate.load("path/to/hit_at_k.py")`."""

import datasets
import evaluate
import numpy as np

from unime.eval.metrics import pessimistic_ranks, recall_at_k


class HitAtK(evaluate.Metric):
    """Share of queries whose positive, listed first as in MMEB, is among the k best candidates; a tie is wrong."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of queries whose positive is among the k most similar of their own candidates.",
            citation="",
            inputs_description="predictions: for each query the scores of its candidates, the positive first.",
            features=datasets.Features({"predictions": datasets.List(datasets.Value("float64"))}),
        )

    def _compute(self, predictions: list[list[float]], k: int = 1) -> dict[str, float]:
        ranks = [pessimistic_ranks(np.array([scores]), [[0]])[0] for scores in predictions]
        return {"hit_at_k": recall_at_k(np.array(ranks), k)}
