"""Code that makes the package impossible to import, for tests that load checkpoints without it."""

# The first lines of a script.
BLOCK_UNIME = """
import sys
from importlib import import_module


class UnimeBlocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "unime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, UnimeBlocker())
try:
    import_module("unime")
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("unime is importable")
"""
