"""Errors are those of the items at fault, and the others have their results in their order."""

import random
from collections.abc import Sequence

import pytest

from unime.data.isolate_failures import map_isolating_failures


def doubled(numbers: Sequence[int]) -> list[int]:
    for number in numbers:
        if number < 0:
            raise ValueError(f"{number} is negative")
    return [2 * number for number in numbers]


def test_only_the_items_at_fault_have_an_error():
    chance = random.Random(0)
    for _ in range(100):
        numbers = [chance.randint(-3, 9) for _ in range(chance.randint(0, 12))]
        for number, found in zip(numbers, map_isolating_failures(doubled, numbers, ValueError), strict=True):
            assert str(found) == f"{number} is negative" if number < 0 else found == 2 * number


def test_what_works_together_is_done_once():
    calls = []
    assert map_isolating_failures(lambda some: calls.append(len(some)) or doubled(some), range(8), ValueError)[7] == 14
    assert calls == [8]


def test_another_error_ends_the_work():
    with pytest.raises(ValueError, match="-1 is negative"):
        map_isolating_failures(doubled, [1, -1], KeyError)
