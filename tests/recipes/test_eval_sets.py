"""Recipes that evaluate during training, through YAML and the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def run(script: Callable, parsed: Callable, tiny_model: Callable, tmp_path: Path) -> Callable[..., list[dict]]:
    """Return a function that runs a stage with evaluation settings in YAML and returns the log."""

    def run(stage: str, settings: dict, *options: object) -> list[dict]:
        recipe = tmp_path / "recipe.yaml"
        steps = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": 1}
        best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
        common = {"max_steps": 2, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "use_cpu": True}
        adapter = {
            "use_peft": True,
            "lora_r": 2,
            "lora_task_type": "FEATURE_EXTRACTION",
            "lora_target_modules": "all-linear",
        }
        paths = {"model_name_or_path": str(tiny_model("llava")), "output_dir": str(tmp_path / "run")}
        merged = {**steps, **best, **common, **adapter, **paths, "dtype": "float32", "report_to": "none"}
        recipe.write_text(yaml.safe_dump(merged | settings))
        module: ModuleType = script(RECIPES / f"{stage}.py")
        module.main(*parsed(module, "--config", recipe, *options))
        state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
        assert Path(state["best_model_checkpoint"]).is_dir() and (tmp_path / "run" / "model.safetensors").is_file()
        return state["log_history"]

    return run


def test_stage_2_evaluates_several_sets_by_name(run: Callable[..., list[dict]], pairs: Path):
    other = pairs.with_name("other.jsonl")
    other.write_text("".join(pairs.read_text().splitlines(keepends=True)[:5]))
    settings = {"dataset": str(pairs), "metric_for_best_model": "eval_other_accuracy", "greater_is_better": True}
    log = run("stage2", settings, "--eval_dataset", f"pairs={pairs}", f"other={other}")
    for name in ("pairs", "other"):
        assert len([entry for entry in log if f"eval_{name}_accuracy" in entry]) == 2


def test_stage_1_evaluates_rows_that_it_holds_out(run: Callable[..., list[dict]], texts: Path):
    texts.write_text("".join(json.dumps({"text": json.loads(line)["text"]}) + "\n" for line in texts.open()))
    log = run("stage1", {"dataset": str(texts), "num_eval_rows": 3})
    assert len([entry for entry in log if "eval_loss" in entry]) == 2


def test_stage_1_embeds_the_texts_of_named_sets_with_its_teacher(run: Callable[..., list[dict]], texts: Path):
    texts.write_text("".join(json.dumps({"text": json.loads(line)["text"]}) + "\n" for line in texts.open()))
    settings = {"dataset": str(texts), "eval_dataset": [f"same={texts}"], "metric_for_best_model": "eval_same_loss"}
    assert [entry for entry in run("stage1", settings) if "eval_same_loss" in entry]
