"""Evaluation: the engine (tasks and metrics), benchmarks, encoders to compare with, and reports."""

from ..extras import require_extra


require_extra("eval", "accelerate", "datasets", "matplotlib", "scipy")
