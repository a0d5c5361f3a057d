"""Wrong use of a recipe ends in one clear sentence; errors of the package itself are tested with the package."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def stage(
    script: Callable[[Path], ModuleType], parsed: Callable[..., tuple[Any, ...]], tiny_model: Callable, tmp_path: Path
) -> Callable[..., None]:
    """Return a function that runs a stage of the tiny recipe on the tiny LLaVA with changed settings."""

    def run(name: str, *settings: object) -> None:
        module = script(RECIPES / f"{name}.py")
        laptop = ["--model_name_or_path", tiny_model("llava"), "--output_dir", tmp_path / "run", "--max_steps", 3]
        laptop += ["--per_device_train_batch_size", 4, "--bf16", "false"]
        recipe = RECIPES / "tiny" / f"{name}.yaml"
        module.main(*parsed(module, "--config", recipe, *laptop, *settings))

    return run


def test_the_error_names_an_unknown_key_of_a_recipe(tmp_path: Path):
    recipe = tmp_path / "stage2.yaml"
    recipe.write_text((RECIPES / "tiny" / "stage2.yaml").read_text() + "hard_negatives: 8\n")
    command = [sys.executable, RECIPES / "stage2.py", "--config", recipe]
    process = subprocess.run(command, cwd=RECIPES.parent, capture_output=True, text=True)
    assert process.returncode != 0 and "--hard_negatives" in process.stderr.splitlines()[-1]


def test_a_text_only_backbone_is_refused(stage: Callable[..., None], tiny_model: Callable[[str], Path], texts: Path):
    with pytest.raises(ValueError, match="'qwen3', which transformers does not list as an image-text model"):
        stage("stage1", "--model_name_or_path", tiny_model("text-only"), "--dataset", texts)


def test_the_error_names_the_missing_columns_of_a_file(stage: Callable[..., None], texts: Path, pairs: Path):
    with pytest.raises(ValueError, match="stage 1 needs the columns text; missing: text; found: query, positive"):
        stage("stage1", "--dataset", pairs)
    with pytest.raises(ValueError, match="stage 2 needs .*; missing: query, positive; found: text, teacher"):
        stage("stage2", "--dataset", texts)


def test_a_batch_of_one_is_refused(stage: Callable[..., None], texts: Path):
    with pytest.raises(ValueError, match="a batch of one: raise per_device_train_batch_size"):
        stage("stage1", "--dataset", texts, "--per_device_train_batch_size", 1)


def test_more_hard_negatives_than_candidates_are_accepted(stage: Callable[..., None], pairs: Path, tmp_path: Path):
    stage("stage2", "--dataset", pairs, "--num_hard_negatives", 1000, "--logging_steps", 1)
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 3 and all(0 < loss < 1000 for loss in losses)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "it does not exist"), (b"no image", "it is not a readable image")]
)
def test_the_error_names_an_image_that_cannot_be_read_during_training(
    stage: Callable[..., None], pairs: Path, content: bytes | None, reason: str
):
    image = pairs.parent / "7.png"
    image.unlink()
    if content is not None:
        image.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^pairs.jsonl, row 7, positive: .*7\.png: {reason}.* remove the row$"):
        stage("stage2", "--dataset", pairs)
