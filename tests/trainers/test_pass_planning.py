"""Which graphs are kept within a budget, on sizes worked out by hand, and against every other choice."""

from itertools import product

import pytest

from unime.trainers.pass_planning import (
    Checkpointing,
    PlannedPass,
    checkpointing_of_layers,
    executed_flops,
    plan_passes,
)


FULL, SELECTIVE, NONE = Checkpointing
SIZES = [2.0, 10.0, 30.0]  # of a graph with one layer, at levels 0 to 2
RECOMPUTED = [0.7, 0.01, 0.0]


def planned(budget: float, num_micro_batches: int = 4) -> str:
    """Return a letter for each pass: f, s, n by what its graph holds; capital if it is kept."""
    passes = plan_passes([SIZES] * num_micro_batches, budget)
    return "".join("fsn"[p.level].upper() if p.kept else "fsn"[p.level] for p in passes)


def test_one_layer_after_the_other_keeps_more():
    levels = [checkpointing_of_layers(level, 2) for level in range(5)]
    assert levels == [[FULL, FULL], [SELECTIVE, FULL], [SELECTIVE, SELECTIVE], [NONE, SELECTIVE], [NONE, NONE]]
    assert checkpointing_of_layers(0, 0) == []


@pytest.mark.parametrize(
    ("budget", "passes"),
    [
        (0, "Ffff"),  # the first graph is there anyway
        (1, "Ffff"),
        (4, "FFFf"),
        (6, "FFFF"),
        (13, "FFFF"),
        (14, "SFFF"),  # 3 * 2 and 8 more
        (38, "SSSS"),  # 3 * 2 + 4 * 8
        (58, "NSSS"),  # and 20 more
        (1000, "NNNN"),
    ],
)
def test_more_memory_keeps_more_graphs_and_then_larger_ones(budget: float, passes: str):
    assert planned(budget) == passes


def test_second_passes_have_the_whole_budget():
    assert planned(8, num_micro_batches=8) == "FFFFFsss"
    assert planned(28, num_micro_batches=20) == "FFFFFFFFFFFFFFFnnnnn"


def test_a_part_of_the_layers_keeps_more_where_not_all_can():
    sizes = [2.0, 6.0, 10.0, 20.0, 30.0]  # two layers
    # 2 * 2 for two graphs more; with the 9 left, 4 for a layer of the first graph and 4 for one of the second
    assert [p.level for p in plan_passes([sizes] * 3, 13)] == [1, 1, 0]
    passes = plan_passes([sizes] * 4, 5)
    assert passes == [PlannedPass(True, 0), PlannedPass(True, 0), PlannedPass(True, 0), PlannedPass(False, 1)]


def test_a_micro_batch_without_images_is_not_stopped_by_layers_that_it_does_not_run():
    texts, images = [2.0, 6.0, 6.0, 12.0, 12.0], [2.0, 6.0, 20.0, 26.0, 40.0]  # a decoder layer and one of the tower
    assert [p.level for p in plan_passes([texts, images], 2 + 4 + 4 + 6)] == [4, 1]


def test_without_checkpointing_graphs_are_kept_whole():
    passes = plan_passes([[30.0]] * 3, 45)
    assert passes == [PlannedPass(True, 0), PlannedPass(True, 0), PlannedPass(False, 0)]


def flops(passes: list[PlannedPass]) -> float:
    count = len(passes)
    return executed_flops(passes, [1.0] * count, [1.1] * count, [RECOMPUTED] * count)


def test_executed_operations_match_a_hand_calculation():
    passes = [PlannedPass(True, FULL), PlannedPass(False, SELECTIVE), PlannedPass(False, NONE)]
    assert flops(passes) == pytest.approx((1 + 1.1 + 0.7) + (2 + 1.1 + 0.01) + (2 + 1.1))


@pytest.mark.parametrize("budget", [0, 3, 8, 14, 28, 38, 60, 120])
def test_no_other_choice_within_the_budget_takes_much_less_work(budget: float):
    def peak(passes: list[PlannedPass]) -> float:
        kept = sum(SIZES[p.level] for p in passes if p.kept)
        return max([kept, *(SIZES[p.level] for p in passes if not p.kept)]) - SIZES[FULL]

    every = [PlannedPass(kept, level) for kept in (True, False) for level in range(3)]
    choices = (list(passes) for passes in product(every, repeat=4) if passes[0].kept)
    best = min(flops(passes) for passes in choices if peak(passes) <= budget)
    chosen = plan_passes([SIZES] * 4, budget)
    assert peak(chosen) <= budget
    assert flops(chosen) <= 1.05 * best
