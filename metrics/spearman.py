"""Spearman's rank correlation, for `evaluate.load("path/to/spearman.py")`."""

import datasets
import evaluate

from unime.eval.metrics import spearman


class Spearman(evaluate.Metric):
    """Agreement between the orders in which two lists of similarities put the same pairs."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Spearman's rank correlation of similarities and human scores (or a teacher's).",
            citation="",
            inputs_description="predictions: similarities of pairs; references: their reference scores.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"spearman": spearman(predictions, references)}
