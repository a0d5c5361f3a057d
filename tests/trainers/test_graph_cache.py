"""Graph memory is counted to the byte: checked by hand on a small module, and against torch's allocations."""

import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import ProcessorMixin

from unime import micro_batches
from unime.trainers import ContrastiveConfig, cached_loss
from unime.trainers.gradient_cache import GraphCacheBudget


def bytes_counted(budget: GraphCacheBudget, function: Callable[[], Tensor], inputs: dict[str, Tensor]) -> int:
    before = budget.bytes_left
    with budget.counting(inputs):
        result = function()
    del result  # frees its graph
    return round(before - budget.bytes_left)


def test_the_memory_of_a_small_network_matches_a_hand_calculation():
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2), nn.Sigmoid())
    inputs = {"x": torch.randn(5, 4)}
    budget = GraphCacheBudget(1, network)
    # The tanh, which the second layer saves too, and the sigmoid: 5 rows of 8 and of 2 floats of 4 bytes.
    assert bytes_counted(budget, lambda: network(inputs["x"]), inputs) == 5 * 8 * 4 + 5 * 2 * 4
    network[:2].requires_grad_(False)  # only the second layer still saves the tanh
    assert bytes_counted(budget, lambda: network(inputs["x"]), inputs) == 5 * 8 * 4 + 5 * 2 * 4
    network.requires_grad_(False)
    assert bytes_counted(budget, lambda: network(inputs["x"]), inputs) == 0


def test_a_view_counts_its_whole_storage_once():
    weight = nn.Parameter(torch.ones(6, 10))

    def two_halves() -> Tensor:
        doubled = 2 * weight  # 240 bytes; each square saves one half
        return doubled[:3].square().sum() + doubled[3:].square().sum()

    assert bytes_counted(GraphCacheBudget(1, nn.ParameterList([weight])), two_halves, {}) == 240


def test_storage_shared_by_two_graphs_counts_once():
    weight = nn.Parameter(torch.ones(10))
    shared = 3 * weight
    budget = GraphCacheBudget(1, nn.ParameterList([weight]))
    assert [bytes_counted(budget, shared.square, {}) for _ in range(2)] == [40, 0]


def test_tensors_that_the_result_does_not_need_do_not_count():
    weight = nn.Parameter(torch.ones(10))

    def function() -> Tensor:
        (3 * weight).square()
        return (3 * weight[:5].exp()).square()

    assert (
        bytes_counted(GraphCacheBudget(1, nn.ParameterList([weight])), function, {}) == 20 + 20
    )  # of exp and of square


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_the_count_equals_the_growth_in_memory(
    kind: str, make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    model = make_model().train()
    items = [f"text {i}" for i in range(8)] if kind == "texts" else [make_image(i) for i in range(8)]
    ((_, tensors),) = micro_batches(processor, items, 10**6)
    outputs = []
    counted = bytes_counted(GraphCacheBudget(1, model), lambda: model(**tensors).embeddings, tensors)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        outputs.append(model(**tensors).embeddings)
    growth = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert growth == pytest.approx(counted, rel=0.03) and counted > 200_000


def test_a_graph_is_freed_by_its_backward_pass_while_others_are_kept():
    weight, saved = nn.Parameter(torch.ones(3)), []

    def embed(tensors: dict[str, Tensor]) -> Tensor:
        embedded = (tensors["x"] * weight).exp()  # saves its output
        saved.append(weakref.ref(embedded.untyped_storage()))
        return 2 * embedded

    alive = []

    def backward(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
        gc.collect()
        alive.append(sum(storage() is not None for storage in saved))
        embeddings.backward(gradient)

    batches = [{"x": torch.full((2, 3), float(i))} for i in range(4)]
    loss = cached_loss(
        embed, batches, lambda e: e.square().sum(), GraphCacheBudget(1, nn.ParameterList([weight])), backward
    )
    loss.backward()
    assert alive == [4, 3, 2, 1]


@pytest.mark.parametrize("gigabytes", [-1, math.nan])
def test_an_invalid_budget_is_refused(gigabytes: float, tmp_path: Path):
    with pytest.raises(ValueError, match="graph_cache_gb must be a number of gigabytes, 0 or more"):
        ContrastiveConfig(str(tmp_path), use_cpu=True, graph_cache_gb=gigabytes)
