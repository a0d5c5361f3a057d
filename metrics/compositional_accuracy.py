"""SugarCrepe's accuracy, for `evaluate.load("path/to/compositional_accuracy.py")`."""

import datasets
import evaluate
import numpy as np

from unime.eval.metrics import compositional_accuracy


class CompositionalAccuracy(evaluate.Metric):
    """Share of images that are strictly closer to their true caption than to the false one."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of images that score their true caption above the false one.",
            citation="",
            inputs_description="predictions: scores of the true captions; references: scores of the false ones.",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        return {"compositional_accuracy": compositional_accuracy(np.array(predictions), np.array(references))}
