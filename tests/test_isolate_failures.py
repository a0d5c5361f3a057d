"""Only the items at fault have an error; the others have their results, in order."""

import random
from collections.abc import Sequence

import pytest

from unime.isolate_failures import map_isolating_failures


def doubled(numbers: Sequence[int]) -> list[int]:
    for number in numbers:
        if number < 0:
            raise ValueError(f"{number} is negative")
    return [2 * number for number in numbers]


def test_only_the_items_at_fault_have_an_error():
    rng = random.Random(0)
    for _ in range(100):
        numbers = [rng.randint(-3, 9) for _ in range(rng.randint(0, 12))]
        for number, result in zip(numbers, map_isolating_failures(doubled, numbers, ValueError), strict=True):
            assert str(result) == f"{number} is negative" if number < 0 else result == 2 * number


def test_a_batch_without_failures_is_processed_once():
    calls = []
    assert (
        map_isolating_failures(lambda batch: calls.append(len(batch)) or doubled(batch), range(8), ValueError)[7] == 14
    )
    assert calls == [8]


def test_an_error_of_another_type_propagates():
    with pytest.raises(ValueError, match="-1 is negative"):
        map_isolating_failures(doubled, [1, -1], KeyError)
