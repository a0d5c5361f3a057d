"""Metrics on scores small enough to rank by hand."""

import math
from itertools import permutations

import numpy as np
import pytest

from unime.eval.metrics import (
    chance_level,
    compositional_accuracy,
    hit_at_1,
    mean_average_precision_at_k,
    mean_by_group,
    ndcg_at_k,
    pessimistic_ranks,
    recall_at_k,
)


SCORES = np.array(
    [
        [0.9, 0.1, 0.2, 0.3],  # the positive is 0, the best: rank 0
        [0.8, 0.7, 0.1, 0.2],  # the positive is 1, behind 0: rank 1
        [0.4, 0.3, 0.1, 0.2],  # the positive is 2, the worst: rank 3
        [0.5, 0.9, 0.1, 0.7],  # positives are 0 and 3; 3 is behind 1 only: rank 1
    ]
)
POSITIVES = [[0], [1], [2], [0, 3]]


def test_ranks_count_the_negatives_before_the_best_positive():
    assert pessimistic_ranks(SCORES, POSITIVES).tolist() == [0, 1, 3, 1]


def test_recall_and_hit_worked_out_by_hand():
    ranks = pessimistic_ranks(SCORES, POSITIVES)
    assert [recall_at_k(ranks, k) for k in (1, 2, 3, 4)] == [0.25, 0.75, 0.75, 1.0]
    assert hit_at_1(SCORES, POSITIVES) == 0.25


def test_other_positives_do_not_count_as_negatives():
    assert hit_at_1(np.array([[0.9, 0.8, 0.7]]), [[0, 1]]) == 1.0
    assert pessimistic_ranks(np.array([[0.9, 0.8, 0.7]]), [[1, 2]]).tolist() == [1]


def test_only_candidates_of_the_pool_are_ranked():
    pools = [[0, 1], [1, 2], [2, 1], [0, 1, 2, 3]]
    assert pessimistic_ranks(SCORES, POSITIVES, pools).tolist() == [0, 0, 1, 1]


def test_a_tie_is_wrong():
    assert pessimistic_ranks(np.array([[0.5, 0.5, 0.1]]), [[0]]).tolist() == [1]
    assert compositional_accuracy(np.array([0.5, 0.6]), np.array([0.5, 0.5])) == 0.5


@pytest.mark.parametrize("noise", [0.0, 2e-7])
def test_a_collapsed_embedding_scores_zero_even_with_rounding_noise(noise):
    scores = 1 + noise * np.random.default_rng(0).choice([-1, 0, 1], size=(50, 20)).astype(np.float32)
    positives = [[query % 20] for query in range(50)]
    assert hit_at_1(scores, positives) == 0
    assert pessimistic_ranks(scores, positives).tolist() == [19] * 50
    assert compositional_accuracy(scores[:, 0], scores[:, 1]) == 0


def test_nan_scores_are_wrong():
    assert hit_at_1(np.array([[np.nan, 0.1], [0.9, np.nan]]), [[0], [0]]) == 0
    assert compositional_accuracy(np.array([np.nan]), np.array([0.0])) == 0


def test_a_query_without_negatives_is_a_hit():
    assert hit_at_1(np.array([[0.1, 0.2]]), [[0, 1]]) == 1


def test_means_per_group_are_unweighted():
    scores = [("vqa", 0.2), ("retrieval", 1.0), ("vqa", 0.4)]
    assert mean_by_group(scores) == {"vqa": pytest.approx(0.3), "retrieval": 1.0}


def test_ndcg_of_graded_relevance_worked_out_by_hand():
    scores = np.array([[0.9, 0.8, 0.7, 0.6]])  # ranks candidates by index
    # Relevances in that order are 0, 1, 0, 3; the ideal order is 3, 1. Gains are linear, discounts log2(place + 1).
    gain = 1 / math.log2(3) + 3 / math.log2(5)
    best = 3 / math.log2(2) + 1 / math.log2(3)
    assert ndcg_at_k(scores, [[3, 1]], [[3.0, 1.0]], 5) == pytest.approx(gain / best)
    # Of the first two candidates only the second is relevant; of the ideal order both are.
    assert ndcg_at_k(scores, [[3, 1]], [[3.0, 1.0]], 2) == pytest.approx(1 / math.log2(3) / best)
    assert ndcg_at_k(scores, [[3, 1]], [[3.0, 1.0]], 1) == 0.0
    assert ndcg_at_k(scores[:, ::-1], [[3, 0]], [[1.0, 3.0]], 5) == pytest.approx(
        (1 / math.log2(2) + 3 / math.log2(5)) / best
    )
    both = ndcg_at_k(np.repeat(scores, 2, axis=0), [[0], [3, 1]], [[2.0], [3.0, 1.0]], 5)
    assert both == pytest.approx((1 + gain / best) / 2)


@pytest.mark.parametrize("noise", [0.0, 2e-7])
def test_ndcg_counts_ties_against_the_model(noise):
    scores = np.array([[0.5 + noise, 0.5, 0.5, 0.1]])
    assert ndcg_at_k(scores, [[0]], [[1.0]], 5) == pytest.approx(1 / math.log2(4))  # behind two tied candidates
    assert ndcg_at_k(scores, [[0]], [[1.0]], 2) == 0.0
    # A collapsed embedding of 100 candidates has no positive among the first five.
    assert ndcg_at_k(np.full((1, 100), 0.5), [[0, 1]], [[2.0, 1.0]], 5) == 0.0


def test_of_tied_relevant_candidates_the_less_relevant_comes_first():
    best = 2 / math.log2(2) + 1 / math.log2(3)
    gain = 1 / math.log2(2) + 2 / math.log2(3)
    assert ndcg_at_k(np.array([[0.5, 0.5, 0.1]]), [[0, 1]], [[2.0, 1.0]], 5) == pytest.approx(gain / best)


def test_ndcg_of_fewer_candidates_than_k_and_of_pools():
    scores = np.array([[0.9, 0.8, 0.7]])
    assert ndcg_at_k(scores[:, :2], [[1]], [[1.0]], 5) == pytest.approx(1 / math.log2(3))
    assert ndcg_at_k(scores, [[2]], [[1.0]], 5, pools=[[2, 0]]) == pytest.approx(1 / math.log2(3))
    assert ndcg_at_k(scores, [[0]], [[1.0]], 5, pools=[[0]]) == 1.0


def test_mean_average_precision_worked_out_by_hand():
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])  # ranks candidates by index
    # Positives at places 1, 3 and 5 have the precisions 1/1, 2/3 and 3/5.
    positives = [[4, 0, 2]]
    assert mean_average_precision_at_k(scores, positives, 5) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert mean_average_precision_at_k(scores, positives, 4) == pytest.approx((1 + 2 / 3) / 3)
    assert mean_average_precision_at_k(scores, positives, 2) == pytest.approx(1 / 2)  # at most two of three fit
    assert mean_average_precision_at_k(scores, positives, 50) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert mean_average_precision_at_k(scores, [[1]], 1) == 0
    both = mean_average_precision_at_k(np.repeat(scores, 2, axis=0), [[0], [1]], 5)
    assert both == pytest.approx((1 + 1 / 2) / 2)
    assert mean_average_precision_at_k(scores, positives, 5, pools=[[0, 2, 4, 1]]) == pytest.approx(
        (1 + 2 / 3 + 3 / 4) / 3
    )


@pytest.mark.parametrize("noise", [0.0, 2e-7])
def test_mean_average_precision_counts_ties_against_the_model(noise: float):
    scores = np.array([[0.5, 0.5 + noise, 0.5, 0.1]])
    assert mean_average_precision_at_k(scores, [[1]], 5) == pytest.approx(1 / 3)  # behind two tied negatives
    assert mean_average_precision_at_k(scores, [[1, 3]], 5) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert mean_average_precision_at_k(np.array([[np.nan, 0.3]]), [[0]], 5) == pytest.approx(1 / 2)


def test_chance_levels_worked_out_by_hand():
    assert chance_level("hit@1", 2, 8) == 0.25
    assert chance_level("R@2", 1, 4) == 0.5
    assert chance_level("R@2", 2, 4) == pytest.approx(1 - (2 / 4) * (1 / 3))
    assert chance_level("R@10", 1, 4) == 1.0
    assert chance_level("ndcg@2", 1, 4) == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert chance_level("mAP@2", 1, 4) == pytest.approx((1 + 1 / 2) / 4)
    assert chance_level("mAP@5", 1, 1) == 1.0


@pytest.mark.parametrize("k", [1, 3, 8])
def test_chance_is_the_mean_over_all_orders(k: int):
    """Check the formulas against all 120 orders of five candidates with two positives."""
    scores = np.array(list(permutations(range(5))), dtype=float)
    positives, relevance = [[0, 3]] * len(scores), [[1.0, 3.0]] * len(scores)
    ranks = pessimistic_ranks(scores, positives)
    assert chance_level(f"R@{k}", 2, 5) == pytest.approx(recall_at_k(ranks, k))
    assert chance_level(f"mAP@{k}", 2, 5) == pytest.approx(mean_average_precision_at_k(scores, positives, k))
    assert chance_level(f"ndcg@{k}", 2, 5, [1.0, 3.0]) == pytest.approx(ndcg_at_k(scores, positives, relevance, k))
