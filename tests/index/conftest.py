"""Fixtures: the committed model, and an empty index for it."""

from pathlib import Path
from typing import Any

import pytest
from small_index import TINY

from unime import UniMEModel, load_model
from unime.index.index import Index


@pytest.fixture(scope="session")
def loaded() -> tuple[UniMEModel, Any]:
    return load_model(TINY, dtype="float32")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.create(tmp_path / "index", TINY)
