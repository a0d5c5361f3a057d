"""Every recipe can be parsed by its script and is listed in the README."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import TrainingArguments


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LAUNCH_CONFIGS = sorted(RECIPES.glob("accelerate/*.yaml"))
YAMLS = sorted(set(RECIPES.glob("**/*.yaml")) - set(LAUNCH_CONFIGS) - set(RECIPES.glob("study/**/*.yaml")))


def script_of(recipe: Path) -> Path:
    """Return the script of a recipe, whose name its name begins with, in the same folder or in `recipes`."""
    script = recipe.with_suffix(".py")
    return script if script.exists() else RECIPES / f"{recipe.stem.partition('-')[0]}.py"


def name_of(recipe: Path) -> str:
    return str(recipe.relative_to(RECIPES))


@pytest.mark.parametrize("recipe", YAMLS, ids=name_of)
def test_every_key_of_a_recipe_is_an_argument_of_its_script(
    recipe: Path, script: Callable[[Path], ModuleType], parsed: Callable[..., tuple[Any, ...]], tmp_path: Path
):
    laptop = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false", "--tf32", "false", "--output_dir", tmp_path]
    settings = parsed(script(script_of(recipe)), "--config", recipe, *laptop)
    (args,) = [arguments for arguments in settings if isinstance(arguments, TrainingArguments)]
    assert args.output_dir == str(tmp_path)


@pytest.mark.parametrize("recipe", YAMLS, ids=name_of)
def test_only_language_models_that_fit_float16_are_trained_in_it(recipe: Path):
    settings = yaml.safe_load(recipe.read_text())
    if settings.get("fp16") or settings.get("dtype") == "float16":
        # The activations of language models that were trained in bfloat16, such as Qwen's, may exceed its range. The
        # paper trains these two in it.
        backbones = ("llava-hf/llava-v1.6-mistral-7b-hf", "microsoft/Phi-3.5-vision-instruct")
        assert settings["model_name_or_path"] in backbones


@pytest.mark.parametrize("recipe", YAMLS, ids=name_of)
def test_every_recipe_is_listed_with_its_command(recipe: Path):
    root = RECIPES.parent
    command = f"{script_of(recipe).relative_to(root)} --config {recipe.relative_to(root)}"
    assert command in (RECIPES / "README.md").read_text()


@pytest.mark.parametrize("backbone", sorted(path.parent.name for path in RECIPES.glob("*/stage1.yaml")))
def test_stage_2_starts_from_the_output_of_stage_1(
    backbone: str, script: Callable[[Path], ModuleType], parsed: Callable[..., tuple[Any, ...]]
):
    laptop = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false"]
    _, _, stage1_args, _ = parsed(
        script(RECIPES / "stage1.py"), "--config", RECIPES / backbone / "stage1.yaml", *laptop
    )
    _, _, model_args = parsed(script(RECIPES / "stage2.py"), "--config", RECIPES / backbone / "stage2.yaml", *laptop)
    assert model_args.model_name_or_path == stage1_args.output_dir


def test_the_clip_baseline_uses_plain_in_batch_info_nce(
    script: Callable[[Path], ModuleType], parsed: Callable[..., tuple[Any, ...]]
):
    _, args = parsed(
        script(RECIPES / "tiny" / "clip.py"), "--config", RECIPES / "tiny" / "clip.yaml", "--bf16", "false"
    )
    assert (args.false_negative_margin, args.num_hard_negatives) == (None, None)


@pytest.mark.parametrize("path", LAUNCH_CONFIGS, ids=name_of)
def test_every_launch_config_is_valid_and_listed(path: Path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 8 * config.num_machines
    assert config.distributed_type in ("MULTI_GPU", "FSDP", "DEEPSPEED")
    assert f"`{path.relative_to(RECIPES.parent)}`" in (RECIPES / "README.md").read_text()
