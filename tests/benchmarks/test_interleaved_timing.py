"""Tests of interleaved timing: functions run in turn, and ratios compare times of the same round."""

import pytest
from interleaved_timing import InterleavedTimings, time_interleaved


def test_every_round_calls_all_functions_in_order():
    calls = []
    timings = time_interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or len(calls)}, rounds=3
    )
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert timings.results == {"a": None, "b": 6}
    assert all(len(times) == 3 and min(times) > 0 for times in timings.seconds.values())


def test_the_speedup_is_the_median_of_the_ratios_of_the_rounds():
    timings = InterleavedTimings({"slow": [2.0, 9.0, 4.0], "fast": [1.0, 3.0, 4.0]}, {})
    assert timings.speedup("slow", "fast") == 2  # of 2, 3 and 1; the ratio of the medians would be 4 / 3
    assert timings.median("slow") == 4


@pytest.mark.parametrize(("functions", "rounds"), [({}, 1), ({"a": int}, 0)])
def test_at_least_one_function_and_one_round_are_required(functions: dict, rounds: int):
    with pytest.raises(ValueError, match="at least one function and one round"):
        time_interleaved(functions, rounds)
