"""Fixtures: the committed checkpoint."""

from pathlib import Path

import pytest
from transformers import ProcessorMixin

from unime import UniMEModel, load_model


TINY = Path(__file__).resolve().parents[2] / "checkpoints" / "unime-tiny"


@pytest.fixture(scope="session")
def tiny() -> tuple[UniMEModel, ProcessorMixin]:
    """Return the committed checkpoint in float32; tests must not modify it."""
    return load_model(str(TINY), dtype="float32")
