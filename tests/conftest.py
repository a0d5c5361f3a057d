"""Fixtures that all tests share."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from twins import make_twin


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of the tiny backbone of a name in `twins.TWINS`, or "text-only"; made once, to be read only."""
    return cache(lambda name: make_twin(name, tmp_path_factory.mktemp("twins") / name))
