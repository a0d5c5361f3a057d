"""The plan of an evaluation: items, tokens, operations and hours, before a file or a GPU is at hand."""

from collections.abc import Sequence
from typing import Any

import torch

from ..eval.item_counts import ItemCounts, item_counts
from ..eval.suites import find_suite
from ..modeling_unime import UniMEModel
from ..trainers.cost_model import Load, Numerics, StepCost
from ..trainers.pass_planning import MEMORY_MARGIN
from ..trainers.training_plan import CONTEXT_GB, Gpu
from .backbones import configuration
from .plan import TEXT_TOKENS, check_family, image_rows


TOTAL = "total"


def benchmarks_of(suites: Sequence[str], benchmarks: Sequence[str]) -> list[str]:
    """Return the benchmarks of suites and further ones, each once.

    Raises:
        ValueError: A suite is unknown, or mteb runs it.
    """
    names = list(benchmarks)
    for suite in suites:
        found = find_suite(suite)
        if found.mteb:
            raise ValueError(
                f"the suite '{suite}' is mteb's, which states the sizes of its tasks itself: see "
                f"mteb.get_benchmark('{found.mteb}')"
            )
        names += found.benchmarks
    return list(dict.fromkeys(names))


def item_loads(config: Any, pixels: int, frames: int) -> dict[str, Load]:
    """Return what one text, one item with an image and one with a video take.

    Args:
        config (`PreTrainedConfig`): Configuration of the backbone.
        pixels (`int`): Height and width of an image and of a frame.
        frames (`int`): Frames of a video. Families without a video processor read them as separate images.
    """
    image = image_rows(config, pixels)
    tokens, patches, family = image["image_tokens"], image["patches"], config.model_type
    if family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):  # two frames are merged into one
        steps = -(-frames // config.vision_config.temporal_patch_size)
        video = steps * tokens, steps * patches
    elif family == "llava_onevision":  # a frame is not divided into tiles, and 2 x 2 patches are one token
        side = config.vision_config.image_size // config.vision_config.patch_size
        video = frames * (-(-side // 2)) ** 2 + 1, frames * side**2
    else:
        video = frames * tokens, frames * patches
    kinds = {"texts": (0, 0), "images": (tokens, patches), "videos": video}
    return {
        kind: Load(TEXT_TOKENS + visual, visual, read, TEXT_TOKENS + visual, image["tile_patches"])
        for kind, (visual, read) in kinds.items()
    }


def plan_evaluation(
    names: Sequence[str],
    model: str,
    gpus: int,
    known_gpus: Sequence[Gpu],
    pixels: int,
    frames: int,
    utilization: float,
) -> dict[str, Any]:
    """Return the plan of an evaluation, ready for JSON. All figures are estimates.

    Args:
        names (`list[str]`): Benchmarks.
        model (`str`): Folder or Hub id of the model or its backbone.
        gpus (`int`): Number of GPUs, which share the items.
        known_gpus (`list[Gpu]`): Kinds of GPUs to plan for.
        pixels (`int`): Height and width of an image, and of a frame.
        frames (`int`): Frames of a video.
        utilization (`float`): Operations per second over the peak rate.

    Raises:
        ValueError: The family is not known, or the number of items of a benchmark is not recorded.
    """
    counts = {name: item_counts(name) for name in names}
    config = configuration(model)
    check_family(config)
    with torch.device("meta"):
        embedder = UniMEModel.from_backbone(config, dtype="bfloat16")
    cost, loads = StepCost(embedder, Numerics()), item_loads(config, pixels, frames)
    rows = {name: _row(count, loads, cost) for name, count in counts.items()}
    keys = ("items", "tokens", "PFLOP")
    bounds = {count.bound for count in counts.values()} - {""}
    total = {key: sum(row[key] for row in rows.values()) for key in keys}
    rows[TOTAL] = total | {"bound": bounds.pop() if len(bounds) == 1 else "about" if bounds else ""}
    for row in rows.values():
        seconds = {gpu.name: row["PFLOP"] * 1000 / (gpus * gpu.tflops * utilization) for gpu in known_gpus}
        row["hours"] = {name: value / 3600 for name, value in seconds.items()}
    weights = sum(weight.numel() for weight in embedder.parameters()) * 2 / 1e9
    return {
        "model": model,
        "gpus": gpus,
        "weights, GB": weights,
        "fits": {gpu.name: weights + CONTEXT_GB < gpu.total_gb * (1 - MEMORY_MARGIN) for gpu in known_gpus},
        "assumptions": {
            "utilization": utilization,
            "image size": pixels,
            "frames": frames,
            "tokens of an item": {kind: load.tokens for kind, load in loads.items()},
        },
        "benchmarks": rows,
    }


def _row(count: ItemCounts, loads: dict[str, Load], cost: StepCost) -> dict[str, Any]:
    numbers = {"texts": count.texts, "images": count.images, "videos": count.videos}
    return {
        **numbers,
        "items": sum(numbers.values()),
        "tokens": sum(number * loads[kind].tokens for kind, number in numbers.items()),
        "PFLOP": sum(number * cost.forward(loads[kind]) for kind, number in numbers.items()) / 1e15,
        "bound": count.bound,
    }


def print_evaluation_plan(plan: dict[str, Any]) -> None:
    """Print a plan as a table with a row for each benchmark."""
    from rich.console import Console
    from rich.table import Table

    names = list(plan["fits"])
    columns = ("benchmark", "", "items", "M tokens", "PFLOP", *(f"hours, {plan['gpus']} {name}" for name in names))
    table = Table(*columns, title="estimates", box=None)
    for name, row in plan["benchmarks"].items():
        figures = (f"{row['items']:,}", f"{row['tokens'] / 1e6:,.0f}", f"{row['PFLOP']:,.0f}")
        table.add_row(name, row["bound"], *figures, *(f"{row['hours'][gpu]:.2f}" for gpu in names))
    assumed = plan["assumptions"]
    tokens = ", ".join(f"{count:,.0f} ({kind})" for kind, count in assumed["tokens of an item"].items())
    too_small = [name for name, fits in plan["fits"].items() if not fits]
    console = Console()
    console.print(
        f"{plan['model']}: {plan['weights, GB']:.1f} GB of weights in bfloat16"
        + (f", which do not fit on {', '.join(too_small)}" if too_small else ""),
        soft_wrap=True,
        highlight=False,
    )
    console.print(
        f"images of {assumed['image size']} x {assumed['image size']} pixels, videos of {assumed['frames']} frames; "
        f"tokens of an item: {tokens}; {assumed['utilization']:.0%} of the peak rate",
        soft_wrap=True,
        highlight=False,
    )
    console.print(table)
