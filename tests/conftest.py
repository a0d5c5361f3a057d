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
    """Return a function from the name of a tiny model (or "text-only") to its folder, which tests must not change."""
    return cache(lambda name: make_tiny_model(name, tmp_path_factory.mktemp("tiny_models") / name))


@pytest.fixture(scope="module", params=TINY_MODELS)
def family(request: pytest.FixtureRequest) -> str:
    """Return the name of each backbone family in turn."""
    return request.param


@pytest.fixture(scope="module")
def processor(family: str, tiny_model: Callable[[str], Path]) -> ProcessorMixin:
    """Return UniME's processor for each backbone family in turn."""
    return processor_from_backbone(tiny_model(family))


@pytest.fixture(scope="session")
def llava(tiny_model: Callable[[str], Path]) -> ProcessorMixin:
    """Return UniME's processor for one family, for tests in which the family does not matter."""
    return processor_from_backbone(tiny_model("llava"))


@pytest.fixture(scope="session")
def script() -> Callable[[Path], ModuleType]:
    """Return a function that imports a script without running its `main`."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look up annotations there
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(path.parent)  # as Python does for the script that it runs
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[spec.name]  # a later import must not find half a module
                raise
        return module

    return load
