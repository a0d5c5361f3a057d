"""The plan of a recipe: memory, operations and hours on known GPUs, from its configuration alone."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import get_peft_model
from transformers.utils.logging import set_verbosity_error
from trl import ModelConfig, TrlParser, get_peft_config

from ..data.sources import DataArguments
from ..data.unime_v2_train import is_unime_v2
from ..image_size import parse_image_size
from ..image_tokens_unime import patch_share
from ..modeling_unime import UniMEModel
from ..trainers import ContrastiveConfig, DistillationConfig
from ..trainers.cost_model import Numerics, StepCost
from ..trainers.trained_weights import fit_to_model
from ..trainers.training_plan import (
    GPUS,
    NESTED_NF4_BYTES,
    NF4_BYTES,
    Gpu,
    Rows,
    Setup,
    batches_in_host_memory,
    constant_bytes,
    count_parameters,
    training_plan,
)
from .backbones import BUILT_IN, configuration


# On this machine, which needs no GPU.
HERE = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false", "--report_to", "none"]
# MMEB-train with at most 50,000 rows per subset; 92,050 of these rows have images on both sides, the others on one.
MMEB_ROWS, MMEB_IMAGES = 662_150, 1.14
# UniME-V2 trains on a query, its positive and eight negatives; 75% of the queries of MMEB-train have images, and 39%
# of the candidates.
UNIME_V2_ITEMS, UNIME_V2_IMAGES = 10, 4.27
NLI_TEXTS = 546_000  # two sentences of each of 273,000 pairs, before equal ones are removed
# The paper's 37 hours for stage 2 of LLaVA-1.6-7B on 8 A100 are this share of their peak, if its training executed the
# operations that this package executes (Table 6; `unime plan recipes/llava-1.6-7b/stage2.yaml --gpu A100-80GB`).
UTILIZATION = 0.25
TEXT_TOKENS = 64  # of an item: its prompt, instruction and text
# Families whose memory and operations tests compare with measurements.
PLANNED_FAMILIES = frozenset(
    {"idefics3", "llava", "llava_next", "llava_onevision", "phi3_v", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm"}
)
DEFAULT_IMAGE_SIZE = 336  # the paper's


def read_recipe(recipe: Path, overrides: list[str]) -> tuple[DataArguments, Any, ModelConfig, dict[str, Any]]:
    """Return the arguments of a recipe, and its YAML.

    Raises:
        ValueError: The file is no recipe of stage 1 or 2.
    """
    settings = yaml.safe_load(recipe.read_text())
    if not isinstance(settings, dict) or "model_name_or_path" not in settings:
        raise ValueError(f"{recipe} is no recipe of stage 1 or 2: it has no model_name_or_path")
    config_class = DistillationConfig if "teacher" in settings else ContrastiveConfig
    parser = TrlParser((DataArguments, config_class, ModelConfig))
    command = ["--config", str(recipe), *overrides, *HERE]
    data, args, model_args, _ = parser.parse_args_and_config(command, return_remaining_strings=True)
    return data, args, model_args, settings


def backbone_of(recipe: Path, model: str) -> str:
    """Return the backbone of a recipe: of stage 2, whose model does not exist yet, that of stage 1 beside it."""
    if Path(model).is_dir() or model in BUILT_IN:
        return model
    for other in sorted(recipe.parent.glob("*.yaml")):
        settings = yaml.safe_load(other.read_text())
        if settings.get("output_dir") == model:
            return settings["model_name_or_path"]
    return model


def check_family(config: Any) -> None:
    """Refuse a backbone whose layers the estimates do not know.

    Args:
        config (`PreTrainedConfig`): Configuration of the backbone.

    Raises:
        ValueError: The estimates were not compared with measurements for this family.
    """
    if config.model_type not in PLANNED_FAMILIES:
        raise ValueError(
            f"the memory and operations of a backbone of type '{config.model_type}' are not known: plan a recipe of "
            "LLaVA, Qwen-VL, Idefics3, SmolVLM or Phi-3-Vision"
        )


def image_rows(config: Any, pixels: int) -> dict[str, float]:
    """Return the tokens and patches of a square image, as [`Rows`] names them.

    Args:
        config (`PreTrainedConfig`): Configuration of the backbone.
        pixels (`int`): Height and width of the image, which is also the `image_size` of the recipe.
    """
    vision, family = config.vision_config, config.model_type
    frames = vision.temporal_patch_size if family.startswith("qwen") else 1
    numbers = 3 * vision.patch_size**2 * frames
    if family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        side = math.floor(pixels / (vision.patch_size * vision.spatial_merge_size))  # at most pixels * pixels
        patches = (side * vision.spatial_merge_size) ** 2
        return {"image_tokens": side**2, "patches": patches, "tile_patches": patches, "patch_numbers": numbers}
    side, tiles = vision.image_size // vision.patch_size, math.ceil(pixels / vision.image_size)
    if family in ("llava_next", "llava_onevision"):  # the whole image, and its tiles with a token behind each line
        tokens, count = side**2 + tiles * side * (tiles * side + 1), tiles**2 + 1
    elif family in ("idefics3", "smolvlm"):
        count = tiles**2 + 1 if tiles > 1 else 1
        tokens = count * (side // config.scale_factor) ** 2
    elif family == "phi3_v":  # 2 x 2 patches are one token, a token ends each line, and one precedes the whole image
        tokens, count = (side // 2) ** 2 * (tiles**2 + 1) + side // 2 * (tiles + 1) + 1, tiles**2 + 1
    else:  # LLaVA-1.5
        tokens, count = side**2, 1
    return {
        "image_tokens": tokens,
        "patches": count * side**2,
        "tile_patches": side**2,
        "patch_numbers": numbers,
    }


def items_and_images(data: DataArguments, is_text: bool) -> tuple[int, float]:
    """Return the items of a row and their images."""
    if is_text:
        return 1, 0
    return (UNIME_V2_ITEMS, UNIME_V2_IMAGES) if is_unime_v2(data.dataset) else (2, MMEB_IMAGES)


def number_of_rows(data: DataArguments) -> int | None:
    """Return the number of rows, if it is known without reading the data."""
    file = Path(data.dataset)
    if data.dataset == "openmoji":
        return data.num_rows
    if data.dataset == "mmeb-train":
        return MMEB_ROWS
    if file.suffix == ".jsonl" and file.is_file():
        with file.open("rb") as lines:
            return sum(1 for _ in lines)
    return NLI_TEXTS if file.name == "nli.jsonl" else None


def sharding(config_file: Path | None) -> dict[str, bool]:
    """Return what a configuration of accelerate shards over the GPUs."""
    config = yaml.safe_load(config_file.read_text()) if config_file is not None else {}
    stage = config.get("deepspeed_config", {}).get("zero_stage", 0)
    is_fsdp = config.get("distributed_type") == "FSDP"
    return {"shards_weights": is_fsdp or stage == 3, "shards_optimizer": is_fsdp or stage >= 1}


def chosen_gpus(memory: Sequence[float], names: Sequence[str]) -> list[Gpu]:
    """Return the GPUs of given names or memory; by default one of each memory.

    Raises:
        ValueError: There is no such GPU in the table.
    """
    known = {gpu.name: gpu for gpu in GPUS}
    by_memory: dict[float, Gpu] = {}
    for gpu in GPUS:
        by_memory.setdefault(gpu.memory_gb, gpu)  # the first in the table
    for name in names:
        if name not in known:
            raise ValueError(f"no GPU is named {name}: choose one of {', '.join(known)}")
    for size in memory:
        if size not in by_memory:
            raise ValueError(f"no GPU in the table has {size:g} GB: choose one of {', '.join(map(str, by_memory))}")
    return [by_memory[size] for size in memory] + [known[name] for name in names] or list(by_memory.values())


def plan_recipe(
    recipe: Path,
    gpus: int = 8,
    known_gpus: list[Gpu] | None = None,
    config_file: Path | None = None,
    model: str | None = None,
    rows: int | None = None,
    utilization: float = UTILIZATION,
    overrides: list[str] | None = None,
) -> dict[str, Any]:
    """Return the plan of a recipe, ready for JSON.

    Args:
        recipe (`Path`): YAML of a recipe of stage 1 or 2.
        gpus (`int`, *optional*, defaults to 8): Number of GPUs.
        known_gpus (`list[Gpu]`, *optional*): Kinds of GPUs to plan for; by default one of each memory.
        config_file (`Path`, *optional*): Configuration of accelerate; data parallel by default.
        model (`str`, *optional*): Folder or Hub id of the backbone; by default that of the recipe, or of stage 1.
        rows (`int`, *optional*): Rows of the training data; needed for epochs of data that is not at hand.
        utilization (`float`, *optional*, defaults to 0.25): Executed operations per second over the peak rate.
        overrides (`list[str]`, *optional*): Settings of the recipe to change, as on the command line of its script.

    Raises:
        ValueError: The recipe cannot be planned; the message says why.
    """
    set_verbosity_error()
    data, args, model_args, settings = read_recipe(recipe, overrides or [])
    is_text = isinstance(args, DistillationConfig)
    backbone = model or backbone_of(recipe, model_args.model_name_or_path)
    config = configuration(backbone)
    check_family(config)
    with torch.device("meta"):
        embedder = UniMEModel.from_backbone(config, dtype=model_args.dtype or "float32")
        peft_config = get_peft_config(model_args)
        network: torch.nn.Module = embedder
        if peft_config is not None:
            network = get_peft_model(embedder, fit_to_model(peft_config, embedder))
    autocast = bool(settings.get("bf16") or settings.get("fp16"))
    half = autocast or embedder.dtype.itemsize == 2
    numerics = Numerics(2 if half else 4, 1, 4 if autocast or not half else 2, autocast)
    num_rows = number_of_rows(data) if rows is None else rows
    items, images = items_and_images(data, is_text)
    size = DEFAULT_IMAGE_SIZE if data.image_size is None else parse_image_size(data.image_size)
    if isinstance(size, dict):
        size = size.get("square", size)
    if not isinstance(size, int):
        raise ValueError(f"image_size is {size}, but a plan needs a number of pixels: pass --image_size, such as 336")
    content = image_rows(config, size) | {"patch_share": patch_share(config)} if images else {}
    mean_row = Rows(items=items, images=images, text_tokens=TEXT_TOKENS, **content)
    steps = args.max_steps
    if steps <= 0:
        if num_rows is None:
            raise ValueError(f"the number of rows of {data.dataset} is not known: pass --rows")
        steps = math.floor(args.num_train_epochs * (num_rows // (args.per_device_train_batch_size * gpus)))
    setup = Setup(
        rows_per_gpu=args.per_device_train_batch_size,
        micro_batch_tokens=args.micro_batch_tokens,
        graph_cache_gb=args.graph_cache_gb,
        checkpointing=args.gradient_checkpointing,
        steps=steps,
        gpus=gpus,
        quantized_bytes=(NESTED_NF4_BYTES if model_args.use_bnb_nested_quant else NF4_BYTES)
        if model_args.load_in_4bit
        else 1
        if model_args.load_in_8bit
        else None,
        optimizer_bytes=0.5 if "8bit" in args.optim else 2,
        host_batches=batches_in_host_memory(
            args.dataloader_num_workers,
            args.dataloader_prefetch_factor,
            settings.get("dataloader_pin_memory", True),  # `use_cpu` turns it off in `args`
        ),
        pixel_bytes=embedder.dtype.itemsize,
        **sharding(config_file),
    )
    cost = StepCost(network, numerics)
    constant = constant_bytes(network, setup, mean_row, config.get_text_config().hidden_size)
    plans = [
        training_plan(cost, constant, mean_row, setup, gpu, utilization) for gpu in (known_gpus or chosen_gpus([], []))
    ]
    return {
        "recipe": str(recipe),
        "backbone": backbone,
        "batch": setup.rows_per_gpu * gpus,
        "micro_batch_tokens": setup.micro_batch_tokens,
        "parameters": count_parameters(network, setup),
        "assumptions": {"utilization": utilization, **dataclasses.asdict(mean_row)},
        "plans": plans,
    }


def print_plan(plan: dict[str, Any]) -> None:
    """Print a plan as a table with a column for each kind of GPU."""
    from rich.console import Console
    from rich.table import Table

    counts = ", ".join(f"{count / 1e6:,.0f} M {name}" for name, count in plan["parameters"].items())
    assumed = plan["assumptions"]
    table = Table("", *(entry["GPU"] for entry in plan["plans"]), title="estimates; GB are 10^9 bytes", box=None)
    for name in plan["plans"][0]["memory, GB"]:
        table.add_row(f"{name}, GB", *(f"{entry['memory, GB'][name]:.1f}" for entry in plan["plans"]))
    for name, value in plan["plans"][0].items():
        if isinstance(value, (bool, float, int)):
            digits = 0 if name == "seconds per step" else 2 if "FLOP" in name or "/" in name else 1
            cells = [entry[name] for entry in plan["plans"]]
            texts = ["yes" if cell is True else "no" if cell is False else cell for cell in cells]
            table.add_row(name, *(f"{x:.{digits}f}" if isinstance(x, float) else str(x) for x in texts))
    console = Console()
    console.print(f"{plan['recipe']}: {plan['backbone']}, {counts} parameters", soft_wrap=True, highlight=False)
    console.print(
        f"batch of {plan['batch']} rows, micro-batches of {plan['micro_batch_tokens']} tokens; a row has "
        f"{assumed['items']} items of {assumed['text_tokens']} text tokens and {assumed['images']} images of "
        f"{assumed['image_tokens']} tokens; {assumed['utilization']:.0%} of the peak rate",
        soft_wrap=True,
        highlight=False,
    )
    console.print(table)
