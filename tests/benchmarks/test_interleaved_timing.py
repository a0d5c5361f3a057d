"""Ways are timed in turn, and their ratios are those of the same round."""

import pytest
from interleaved_timing import Alternation, alternate


def test_every_round_runs_all_ways_in_their_order():
    calls = []
    found = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or len(calls)}, rounds=3)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert found.results == {"a": None, "b": 6}
    assert all(len(times) == 3 and min(times) > 0 for times in found.seconds.values())


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    found = Alternation({"slow": [2.0, 9.0, 4.0], "fast": [1.0, 3.0, 4.0]}, {})
    assert found.ratio("slow", "fast") == 2  # of 2, 3 and 1; the ratio of the medians would be 4 / 3
    assert found.median("slow") == 4


@pytest.mark.parametrize(("ways", "rounds"), [({}, 1), ({"a": int}, 0)])
def test_nothing_to_measure_is_refused(ways: dict, rounds: int):
    with pytest.raises(ValueError, match="at least one way and one round"):
        alternate(ways, rounds)
