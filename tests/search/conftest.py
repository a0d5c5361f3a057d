"""The committed model, and an empty index of it."""

from pathlib import Path
from typing import Any

import pytest
from small_index import TINY

from unime import UniMEModel, load_model
from unime.search.store import Store


@pytest.fixture(scope="session")
def loaded() -> tuple[UniMEModel, Any]:
    return load_model(TINY, dtype="float32")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "index", TINY)
