"""Spearman's rank correlation, for `evaluate.load("path/to/spearman.py")`."""

import datasets
import evaluate

from unime.eval.metrics import spearman


class Spearman(evaluate.Metric):
    """How alike two lists of similarities order the same pairs."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Spearman's rank correlation of similarities and human (or a teacher's) scores.",
            citation="",
            inputs_description="predictions: similarities of pairs; references: their true scores.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"spearman": spearman(predictions, references)}
