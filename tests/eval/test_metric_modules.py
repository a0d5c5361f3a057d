"""The metrics as modules of `evaluate`, loaded by path, on numbers worked out by hand."""

from pathlib import Path

import evaluate
import pytest


MODULES = Path(__file__).resolve().parents[2] / "metrics"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    return lambda name: evaluate.load(str(MODULES / f"{name}.py"), cache_dir=str(tmp_path / "cache"))


def test_hit_at_k_counts_ties_as_wrong(load):
    scores = [[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.1, 0.8, 0.9]]
    assert load("hit_at_k").compute(predictions=scores) == {"hit_at_k": pytest.approx(1 / 3)}
    assert load("hit_at_k").compute(predictions=scores, k=2) == {"hit_at_k": pytest.approx(2 / 3)}


def test_recall_at_k_is_a_hit_rate(load):
    scores, right = [[0.9, 0.8, 0.1], [0.3, 0.2, 0.1]], [[1, 2], [2]]
    assert load("recall_at_k").compute(predictions=scores, references=right) == {"recall_at_k": 0.0}
    assert load("recall_at_k").compute(predictions=scores, references=right, k=2) == {"recall_at_k": 0.5}


def test_compositional_accuracy_is_strict(load):
    result = load("compositional_accuracy").compute(predictions=[0.5, 0.5, 0.1, 0.9], references=[0.4, 0.5, 0.2, 0.1])
    assert result == {"compositional_accuracy": 0.5}


def test_spearman_gives_ties_their_mean_rank(load):
    assert load("spearman").compute(predictions=[1, 2, 3], references=[10, 30, 20]) == {"spearman": 0.5}
    tied = load("spearman").compute(predictions=[1, 1, 2], references=[1, 2, 3])["spearman"]
    assert tied == pytest.approx(1.5 / 3**0.5)  # ranks 1.5, 1.5, 3 and 1, 2, 3: covariance 1.5, variances 1.5 and 2
