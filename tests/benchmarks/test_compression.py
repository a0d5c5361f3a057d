"""Tests of similarities under compression, on small embeddings with manual calculations."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def compression(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(Path(__file__).resolve().parents[2] / "benchmarks" / "compression.py")


def test_binary_similarity_is_the_number_of_dimensions_minus_twice_the_hamming_distance(
    compression: ModuleType,
) -> None:
    queries = np.array([[0.9, 0.3, -0.3, -0.1]], np.float32)
    candidates = np.array([[0.5, 0.5, -0.5, 0.5], [-0.5, -0.5, 0.5, 0.5], [0.5, -0.5, -0.5, 0.5]], np.float32)
    assert compression.scores(queries, candidates, "binary", 2).tolist() == [[2, -4, 0]]  # distances 1, 4, 2
    # 0.9 + 0.3 + 0.3 - 0.1, and 0.9 - 0.3 + 0.3 - 0.1; the third nearest is not rescored.
    rescored = compression.scores(queries, candidates, "binary, rescored", 2)
    np.testing.assert_allclose(rescored, [[1.4, -np.inf, 0.8]], atol=1e-6)


def test_int8_has_an_error_of_at_most_half_a_step(compression: ModuleType) -> None:
    candidates = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    steps = np.ptp(candidates, axis=0) / 255
    restored = compression.scores(np.eye(8, dtype=np.float32), candidates, "int8", 0).T
    assert (np.abs(restored - candidates) <= steps * 0.51).sum() >= candidates.size - 8  # the maxima are clipped
    np.testing.assert_allclose(restored, candidates, atol=steps.max() * 1.01)


def test_size_of_a_stored_embedding(compression: ModuleType) -> None:
    sizes = [compression.embedding_bytes(100, precision) for precision in compression.PRECISIONS]
    assert sizes == [400, 100, 13, 13]


def test_truncated_embeddings_have_unit_length(compression: ModuleType) -> None:
    np.testing.assert_allclose(compression.truncate(np.array([[3.0, 4.0, 12.0]]), 2), [[0.6, 0.8]])
