"""The committed checkpoint, for what is exported from it."""

from pathlib import Path

import pytest
from transformers import ProcessorMixin

from unime import UniMEModel, load_model


TINY = Path(__file__).resolve().parents[2] / "checkpoints" / "unime-tiny"


@pytest.fixture(scope="session")
def tiny() -> tuple[UniMEModel, ProcessorMixin]:
    """Give the committed checkpoint in float32; to be read only."""
    return load_model(str(TINY), dtype="float32")
