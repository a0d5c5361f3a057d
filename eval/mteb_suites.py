"""mteb's benchmarks as suites: mteb runs its own tasks, with any encoder of this package.

mteb stores the scores of each task by model and settings in `OUTPUT/mteb`, and does not compute them again. The
processes of a launch share the tasks.
"""

import re
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any

import mteb
import numpy as np
from mteb.models import ModelMeta
from torch import distributed

from .encoders.mteb_encoder import VIDEO_FRAMES, UniMEEncoder
from .tasks import Encode


# mteb's own tasks on made-up data, which stand for those of a benchmark with and without images.
_TEXT_MINIATURES = ("MockSTSTask", "MockRetrievalTask", "MockClassificationTask")
_IMAGE_MINIATURES = ("MockAny2AnyRetrievalT2ITask", "MockZeroShotClassificationTask", "MockImageClassificationTask")


class ItemEncoder(UniMEEncoder):
    """An encoder of items in mteb, with the instructions of [`UniMEEncoder`].

    Args:
        encode (`Encode`): Takes items, returns `(N, D)` float32 unit vectors.
        name (`str`): Name of the model.
        revision (`str`): The settings that its embeddings depend on.
    """

    def __init__(self, encode: Encode, name: str, revision: str):
        self.model_prompts = {}
        self._encode, self.num_frames = encode, VIDEO_FRAMES
        required = dict.fromkeys(name for name, field in ModelMeta.model_fields.items() if field.is_required())
        described = {
            "name": "unime-eval/" + re.sub(r"[^\w.-]+", "_", name),
            "revision": revision,
            "framework": ["PyTorch"],
            "similarity_fn_name": "cosine",
            "use_instructions": True,
            "modalities": ["image", "text", "video"],
        }
        self.mteb_model_meta = ModelMeta(**required | described)

    def encode_items(self, items: list[dict[str, Any]], show_progress_bar: bool) -> np.ndarray:
        """Embed items, `(N, dimensions)`."""
        return self._encode(items)


def open_mteb_benchmark(name: str, miniature: bool = False) -> mteb.Benchmark:
    """Return a benchmark of mteb.

    Args:
        name (`str`): Its name in mteb, such as `"MIEB(lite)"`.
        miniature (`bool`, *optional*, defaults to `False`): Replace its tasks by three of mteb's own tests, which
            download nothing: on images if the benchmark has images, else on texts.
    """
    benchmark = mteb.get_benchmark(name)
    if miniature:
        from mteb.mocks import mock_tasks

        has_images = any("image" in task.metadata.modalities for task in benchmark.tasks)
        names = _IMAGE_MINIATURES if has_images else _TEXT_MINIATURES
        return mteb.Benchmark(name=name, tasks=[getattr(mock_tasks, name)() for name in names])
    return benchmark


def evaluate_benchmark(
    benchmark: mteb.Benchmark, encode: Encode, model: str, revision: str, folder: Path
) -> dict[str, Any]:
    """Run a benchmark in mteb.

    Args:
        benchmark (`mteb.Benchmark`): The benchmark.
        encode (`Encode`): Takes items, returns `(N, D)` float32 unit vectors.
        model (`str`): Title of the model.
        revision (`str`): The settings that its embeddings depend on.
        folder (`Path`): Folder of mteb's scores.

    Returns:
        `dict`: As [`suites.suite_results`]. The scores are mteb's: the mean over tasks, the means of each type of
        tasks, and the mean over types.
    """
    encoder, cache = ItemEncoder(encode, model, revision), mteb.ResultCache(folder)
    # A task has a random state, which samples its data: copies give every model the same data.
    own_tasks = tasks = [deepcopy(task) for task in benchmark.tasks]
    if distributed.is_initialized():
        own_tasks = tasks[distributed.get_rank() :: distributed.get_world_size()]
    mteb.evaluate(encoder, own_tasks, cache=cache, co2_tracker=False)
    if distributed.is_initialized():
        distributed.barrier()
    # Read all from the cache: its scores are rounded, and a later run has the same.
    results = mteb.evaluate(encoder, tasks, cache=cache, co2_tracker=False)
    scores = {result.task_name: float(result.get_score()) for result in results.task_results}
    by_type: dict[str, list[float]] = {}
    for task in tasks:
        by_type.setdefault(task.metadata.type, []).append(scores[task.metadata.name])
    means = {kind: fmean(values) for kind, values in by_type.items()}
    of_tasks, of_types = "Mean (Task)", "Mean (TaskType)"  # mteb's titles
    types = {f"{of_types}: {kind}": mean for kind, mean in means.items()}
    count = {of_tasks: len(scores), of_types: len(scores)}
    return {
        "model": model,
        "benchmark": benchmark.name,
        "scores": {of_tasks: fmean(scores.values()), of_types: fmean(means.values()), **types},
        "evaluated": count,
        "expected": dict.fromkeys(count, len(tasks)),
        "tasks": {name: {"metric": "main_score", "main_score": score} for name, score in scores.items()},
        "compositional": {},
        "compositional_rows": {},
        "versions": {result.task_name: result.mteb_version for result in results.task_results},
    }
