"""Importing the package is cheap: a public name is loaded when it is first used."""

import subprocess
import sys
from pathlib import Path

import pytest

import unime


IMPORT_ALONE = """
import sys
import unime

loaded = {"torch", "transformers", "huggingface_hub", "numpy", "PIL"}.intersection(sys.modules)
assert not loaded, loaded
assert set(unime.__all__) <= set(dir(unime))
assert "torch" not in sys.modules  # not even after listing the names
"""
AUTO_CLASSES = """
from unime import micro_batches
from transformers import AutoConfig

assert type(AutoConfig.for_model("unime")).__name__ == "UniMEConfig"
"""


def run(code: str, folder: Path) -> None:
    result = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_imports_no_torch(tmp_path: Path) -> None:
    run(IMPORT_ALONE, tmp_path)


def test_using_any_public_name_registers_unime_with_the_auto_classes(tmp_path: Path) -> None:
    run(AUTO_CLASSES, tmp_path)


def test_dir_lists_every_public_name() -> None:
    assert set(unime.__all__) <= set(dir(unime))


@pytest.mark.parametrize("name", unime.__all__)
def test_every_public_name_can_be_imported_and_has_a_docstring(name: str) -> None:
    assert getattr(unime, name).__name__ == name and getattr(unime, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'unime' has no attribute 'nothing'"):
        _ = unime.nothing
