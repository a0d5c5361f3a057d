"""What tests share that run checkpoints in an interpreter where the package cannot be imported."""

# The first lines of such a script.
NOT_INSTALLED = """
import sys
from importlib import import_module


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "unime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())
try:
    import_module("unime")
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("unime is importable")
"""
