"""What a graph holds is counted to the byte: by hand on a small module, and against what torch allocates."""

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


def bytes_counted(memory: GraphCacheBudget, work: Callable[[], Tensor], inputs: dict[str, Tensor]) -> int:
    before = memory.left
    with memory.counting(inputs):
        result = work()
    del result  # only now is its graph freed
    return round(before - memory.left)


def test_what_a_small_network_saves_worked_out_by_hand():
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2), nn.Sigmoid())
    inputs = {"x": torch.randn(5, 4)}
    memory = GraphCacheBudget(1, network)
    # The tanh, which the second layer saves too, and the sigmoid: 5 rows of 8 and of 2 numbers of 4 bytes.
    assert bytes_counted(memory, lambda: network(inputs["x"]), inputs) == 5 * 8 * 4 + 5 * 2 * 4
    network[:2].requires_grad_(False)  # now only the second layer saves the tanh
    assert bytes_counted(memory, lambda: network(inputs["x"]), inputs) == 5 * 8 * 4 + 5 * 2 * 4
    network.requires_grad_(False)
    assert bytes_counted(memory, lambda: network(inputs["x"]), inputs) == 0


def test_a_part_of_a_storage_counts_as_the_whole_of_it_and_once():
    weight = nn.Parameter(torch.ones(6, 10))

    def two_halves() -> Tensor:
        doubled = 2 * weight  # 240 bytes, of which both squares save a half
        return doubled[:3].square().sum() + doubled[3:].square().sum()

    assert bytes_counted(GraphCacheBudget(1, nn.ParameterList([weight])), two_halves, {}) == 240


def test_what_two_graphs_share_counts_once():
    weight = nn.Parameter(torch.ones(10))
    shared = 3 * weight
    memory = GraphCacheBudget(1, nn.ParameterList([weight]))
    assert [bytes_counted(memory, shared.square, {}) for _ in range(2)] == [40, 0]


def test_what_the_result_does_not_depend_on_does_not_count():
    weight = nn.Parameter(torch.ones(10))

    def work() -> Tensor:
        (3 * weight).square()
        return (3 * weight[:5].exp()).square()

    assert bytes_counted(GraphCacheBudget(1, nn.ParameterList([weight])), work, {}) == 20 + 20  # of exp and of square


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_the_count_is_what_the_memory_grows_by(
    kind: str, make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    model = make_model().train()
    items = [f"text {i}" for i in range(8)] if kind == "texts" else [make_image(i) for i in range(8)]
    ((_, tensors),) = micro_batches(processor, items, 10**6)
    outputs = []
    counted = bytes_counted(GraphCacheBudget(1, model), lambda: model(**tensors).embeddings, tensors)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        outputs.append(model(**tensors).embeddings)
    grown = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert grown == pytest.approx(counted, rel=0.03) and counted > 200_000


def test_a_graph_that_was_sent_back_holds_nothing_though_others_are_kept():
    weight, saved = nn.Parameter(torch.ones(3)), []

    def embed(tensors: dict[str, Tensor]) -> Tensor:
        embedded = (tensors["x"] * weight).exp()  # saves what it gives
        saved.append(weakref.ref(embedded.untyped_storage()))
        return 2 * embedded

    alive = []

    def send_back(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
        gc.collect()
        alive.append(sum(storage() is not None for storage in saved))
        embeddings.backward(gradient)

    batches = [{"x": torch.full((2, 3), float(i))} for i in range(4)]
    loss = cached_loss(
        embed, batches, lambda e: e.square().sum(), GraphCacheBudget(1, nn.ParameterList([weight])), send_back
    )
    loss.backward()
    assert alive == [4, 3, 2, 1]


@pytest.mark.parametrize("gigabytes", [-1, math.inf, math.nan])
def test_a_budget_that_is_none_is_refused(gigabytes: float, tmp_path: Path):
    with pytest.raises(ValueError, match="graph_cache_gb must be a number of gigabytes, 0 or more"):
        ContrastiveConfig(str(tmp_path), use_cpu=True, graph_cache_gb=gigabytes)
