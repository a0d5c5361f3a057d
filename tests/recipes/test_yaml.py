"""Every recipe can be read by its script, and is listed."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers import TrainingArguments


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
WAYS = sorted(RECIPES.glob("accelerate/*.yaml"))
YAMLS = sorted(set(RECIPES.glob("**/*.yaml")) - set(WAYS) - set(RECIPES.glob("study/**/*.yaml")))


def script_of(recipe: Path) -> Path:
    """Return the script that a recipe is for: it has the recipe's name, and lies beside it or above."""
    beside = recipe.with_suffix(".py")
    return beside if beside.exists() else RECIPES / beside.name


def name_of(recipe: Path) -> str:
    return str(recipe.relative_to(RECIPES))


@pytest.mark.parametrize("recipe", YAMLS, ids=name_of)
def test_every_key_of_a_recipe_is_a_setting_of_its_script(
    recipe: Path, script: Callable[[Path], ModuleType], parsed: Callable[..., tuple[Any, ...]], tmp_path: Path
):
    laptop = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false", "--output_dir", tmp_path]
    settings = parsed(script(script_of(recipe)), "--config", recipe, *laptop)
    (args,) = [one for one in settings if isinstance(one, TrainingArguments)]
    assert args.output_dir == str(tmp_path)


@pytest.mark.parametrize("recipe", YAMLS, ids=name_of)
def test_every_recipe_is_listed_with_its_command(recipe: Path):
    root = RECIPES.parent
    command = f"{script_of(recipe).relative_to(root)} --config {recipe.relative_to(root)}"
    assert command in (RECIPES / "README.md").read_text()


@pytest.mark.parametrize("backbone", sorted(path.parent.name for path in RECIPES.glob("*/stage1.yaml")))
def test_the_second_stage_starts_where_the_first_ends(
    backbone: str, script: Callable[[Path], ModuleType], parsed: Callable[..., tuple[Any, ...]]
):
    laptop = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false"]
    _, _, one, _ = parsed(script(RECIPES / "stage1.py"), "--config", RECIPES / backbone / "stage1.yaml", *laptop)
    _, _, model = parsed(script(RECIPES / "stage2.py"), "--config", RECIPES / backbone / "stage2.yaml", *laptop)
    assert model.model_name_or_path == one.output_dir


def test_the_baseline_of_vlm2vec_is_two_nulls(
    script: Callable[[Path], ModuleType], parsed: Callable[..., tuple[Any, ...]]
):
    _, args = parsed(
        script(RECIPES / "tiny" / "clip.py"), "--config", RECIPES / "tiny" / "clip.yaml", "--bf16", "false"
    )
    assert (args.false_negative_margin, args.num_hard_negatives) == (None, None)


@pytest.mark.parametrize("way", WAYS, ids=name_of)
def test_every_way_of_running_is_read_by_accelerate_and_listed(way: Path):
    config = load_config_from_file(str(way))
    assert config.num_processes == 8 and config.distributed_type in ("MULTI_GPU", "FSDP", "DEEPSPEED")
    assert f"`{way.relative_to(RECIPES.parent)}`" in (RECIPES / "README.md").read_text()
