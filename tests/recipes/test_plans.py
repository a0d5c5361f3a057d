"""The memory and hours in recipes/README.md are those of `unime plan`, and one-GPU recipes fit their GPU."""

import re
from pathlib import Path

import pytest

from unime.cli.plan import chosen_gpus, plan_recipe


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
README = (RECIPES / "README.md").read_text()
ROWS = re.findall(r"^\|.*--config recipes/(\S+/stage[\w-]+\.yaml)` \| [^|]* \| ([^|]*) \|", README, flags=re.MULTILINE)
ONE_GPU = {"qwen2-vl-2b/stage2-24gb.yaml": "RTX 4090", "qwen2-vl-7b/stage2-80gb.yaml": "H100-80GB"}


def estimate(recipe: str) -> str:
    """Return the cell of a recipe: the memory of a GPU, margin included, and the hours."""
    gpus, name = (1, ONE_GPU[recipe]) if recipe in ONE_GPU else (8, "H100-80GB")
    (plan,) = plan_recipe(RECIPES / recipe, gpus, chosen_gpus([], [name]))["plans"]
    assert plan["fits"]
    return f"{gpus} {name}: {plan['total, GB']:.0f} GB, {plan['hours']:.1f} h"


def test_every_backbone_has_an_estimate():
    recipes = (path for path in RECIPES.glob("*/stage*.yaml") if path.parent.name not in ("tiny", "study"))
    assert {row[0] for row in ROWS} == {str(path.relative_to(RECIPES)) for path in recipes}


@pytest.mark.parametrize(
    ("recipe", "cell"),
    [
        pytest.param(*row, marks=() if row[0] in ONE_GPU else pytest.mark.slow, id=row[0])
        for row in ROWS
        if row[1] != "not known"
    ],
)
def test_the_estimates_of_the_table_are_those_of_the_plan(recipe: str, cell: str):
    assert cell == estimate(recipe)


@pytest.mark.parametrize("recipe", [row[0] for row in ROWS if row[1] == "not known"])
def test_a_backbone_without_an_estimate_is_refused_in_one_sentence(recipe: str):
    with pytest.raises(ValueError, match="of a backbone of type '.*' are not known: plan a recipe of LLaVA, Qwen-VL"):
        plan_recipe(RECIPES / recipe, 8, chosen_gpus([], []))


@pytest.mark.parametrize(("recipe", "gpu"), ONE_GPU.items())
def test_a_recipe_for_one_gpu_trains_on_the_batch_of_the_paper_and_has_room_for_its_graph_cache(recipe: str, gpu: str):
    planned = plan_recipe(RECIPES / recipe, 1, chosen_gpus([], [gpu]))
    (plan,) = planned["plans"]
    assert planned["batch"] == 1024
    assert planned["micro_batch_tokens"] <= plan["largest micro_batch_tokens"]
    assert 0 < plan["memory, GB"]["kept graphs"] <= plan["graph cache that fits, GB"]


def test_the_hours_of_the_reproduction_to_buy_first_are_those_of_the_plan():
    hours = []
    for stage, batch in (("stage1", 768), ("stage2", 1024)):
        overrides = ["--per_device_train_batch_size", str(batch)]
        recipe = RECIPES / "qwen2-vl-2b" / f"{stage}.yaml"
        (plan,) = plan_recipe(recipe, 1, chosen_gpus([], ["H100-80GB"]), overrides=overrides)["plans"]
        hours.append(plan["hours"])
    assert f"{hours[0]:.1f} hours for stage 1 and {hours[1]:.1f} hours for stage 2" in README
    assert f"{2.5 * sum(hours):.0f} dollars." in README.replace("\n", " ")
