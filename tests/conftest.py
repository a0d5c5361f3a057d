"""Fixtures that all tests share."""

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from browser import chromium
from tiny_models import TINY_MODELS, make_tiny_model
from transformers import ProcessorMixin

from unime import processor_from_backbone


browser = pytest.fixture(scope="module")(chromium)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of the tiny backbone of a name in `tiny_models.TWINS`, or "text-only"; made once, to be read only."""
    return cache(lambda name: make_tiny_model(name, tmp_path_factory.mktemp("tiny_models") / name))


@pytest.fixture(scope="module", params=TINY_MODELS)
def family(request: pytest.FixtureRequest) -> str:
    """The name of each family of backbones in turn."""
    return request.param


@pytest.fixture(scope="module")
def processor(family: str, tiny_model: Callable[[str], Path]) -> ProcessorMixin:
    """The processor of each family in turn."""
    return processor_from_backbone(tiny_model(family))


@pytest.fixture(scope="session")
def llava(tiny_model: Callable[[str], Path]) -> ProcessorMixin:
    """The processor of one family, where the others would do the same."""
    return processor_from_backbone(tiny_model("llava"))


@pytest.fixture(scope="session")
def script() -> Callable[[Path], ModuleType]:
    """Give a function that imports a script, without running it."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look for the annotations' names
        spec.loader.exec_module(module)
        return module

    return load
