"""Which graphs are kept within a budget, on sizes worked out by hand, and against every other choice."""

from itertools import product

import pytest

from unime.trainers.pass_planning import Checkpointing, PlannedPass, executed_flops, plan_passes


FULL, SELECTIVE, NONE = Checkpointing
SIZES = {FULL: 2.0, SELECTIVE: 10.0, NONE: 30.0}
RECOMPUTED = {FULL: 0.7, SELECTIVE: 0.01, NONE: 0.0}


def planned(budget: float, num_micro_batches: int = 4) -> str:
    """Return a letter for each pass: f, s, n by what its graph holds; capital if it is kept."""
    letters = {FULL: "f", SELECTIVE: "s", NONE: "n"}
    passes = plan_passes([SIZES] * num_micro_batches, budget)
    return "".join(letters[p.checkpointing].upper() if p.kept else letters[p.checkpointing] for p in passes)


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


def test_without_checkpointing_graphs_are_kept_whole():
    passes = plan_passes([{NONE: 30.0}] * 3, 45)
    assert passes == [PlannedPass(True, NONE), PlannedPass(True, NONE), PlannedPass(False, NONE)]


def flops(passes: list[PlannedPass]) -> float:
    count = len(passes)
    return executed_flops(passes, [1.0] * count, [1.1] * count, [RECOMPUTED] * count)


def test_executed_operations_match_a_hand_calculation():
    passes = [PlannedPass(True, FULL), PlannedPass(False, SELECTIVE), PlannedPass(False, NONE)]
    assert flops(passes) == pytest.approx((1 + 1.1 + 0.7) + (2 + 1.1 + 0.01) + (2 + 1.1))


@pytest.mark.parametrize("budget", [0, 3, 8, 14, 28, 38, 60, 120])
def test_no_other_choice_within_the_budget_takes_much_less_work(budget: float):
    def peak(passes: list[PlannedPass]) -> float:
        kept = sum(SIZES[p.checkpointing] for p in passes if p.kept)
        return max([kept, *(SIZES[p.checkpointing] for p in passes if not p.kept)]) - SIZES[FULL]

    every = [PlannedPass(kept, way) for kept in (True, False) for way in Checkpointing]
    choices = (list(passes) for passes in product(every, repeat=4) if passes[0].kept)
    best = min(flops(passes) for passes in choices if peak(passes) <= budget)
    chosen = plan_passes([SIZES] * 4, budget)
    assert peak(chosen) <= budget
    assert flops(chosen) <= 1.05 * best
