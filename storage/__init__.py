"""Atomic file writing, and tables cached as Arrow files."""

from ..extras import require_extra


require_extra("train", "datasets", "filelock", "pyarrow")
