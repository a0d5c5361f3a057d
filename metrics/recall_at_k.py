"""Recall at k as a hit rate, for `evaluate.load("path/to/recall_at_k.py")`."""

import datasets
import evaluate
import numpy as np

from unime.eval.metrics import pessimistic_ranks, recall_at_k


class RecallAtK(evaluate.Metric):
    """Share of queries with a positive among the first k candidates; a negative that ties ranks before a positive."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of queries with one of their positives among the k most similar candidates.",
            citation="",
            inputs_description="predictions: for each query its scores; references: indices of its positives.",
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.List(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[int]], k: int = 1) -> dict[str, float]:
        ranks = [
            pessimistic_ranks(np.array([scores]), [right])[0]
            for scores, right in zip(predictions, references, strict=True)
        ]
        return {"recall_at_k": recall_at_k(np.array(ranks), k)}
