"""The demo says how long it will still take."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(ROOT / "recipes" / "demo.py")


def test_the_time_left_follows_from_the_parts_that_are_done(demo: ModuleType) -> None:
    assert sum(demo.SHARES.values()) == pytest.approx(1)
    assert demo.progress("stage 1", 0.0, 20) == "\n[1/4] stage 1: 0.0 minutes so far, about 20 left"
    # 12% of the time are over after 2.4 minutes: 17.6 are left, whatever was expected.
    assert demo.progress("stage 2", 2.4, 5) == "\n[2/4] stage 2: 2.4 minutes so far, about 18 left"
    assert demo.progress("evaluation", 8.8, 20) == "\n[4/4] evaluation: 8.8 minutes so far, about 1 left"


def test_the_quick_demo_is_smaller_in_everything(demo: ModuleType) -> None:
    assert all(quick < full for quick, full in zip(demo.QUICK, demo.FULL, strict=True))
