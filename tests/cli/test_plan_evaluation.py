"""`unime plan --suite`: tokens as the processor counts them, operations, and hours."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

from unime import UniMEModel, processor_from_backbone
from unime.cli.backbones import BUILT_IN
from unime.cli.main import app
from unime.cli.plan_evaluation import benchmarks_of, item_loads
from unime.eval.item_counts import item_counts
from unime.image_tokens_unime import count_image_tokens, count_patches, count_video_patches, count_video_tokens
from unime.trainers.cost_model import StepCost


MODEL = "Qwen/Qwen2-VL-2B-Instruct"


def plan(*arguments: str) -> dict:
    result = CliRunner().invoke(app, ["plan", *arguments, "--json"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "llava-onevision"])
def test_tokens_and_patches_of_an_item_are_those_of_the_processor(name: str, tiny_model: Callable[[str], Path]):
    folder = str(tiny_model(name))
    config, processor = AutoConfig.from_pretrained(folder), processor_from_backbone(folder)
    pixels = 48 if "qwen" in name else config.vision_config.image_size
    loads, patch = item_loads(config, pixels, 7), config.vision_config.patch_size
    if "qwen" in name:  # whose images are read at their size; LLaVA-OneVision's have tiles, see `test_plan.py`
        assert loads["images"].image_tokens == count_image_tokens(processor, [(pixels, pixels)])
        assert loads["images"].patches == count_patches(processor, [(pixels, pixels)], patch)
    assert loads["videos"].image_tokens == count_video_tokens(processor, 7, (pixels, pixels))
    assert loads["videos"].patches == count_video_patches(processor, 7, (pixels, pixels), patch)
    assert loads["texts"].tokens == loads["videos"].tokens - loads["videos"].image_tokens == 64


def test_operations_are_those_of_all_items_and_gpus_share_them():
    eight, one = (
        plan("--suite", "mmeb-v2", "--model", MODEL, "--memory", "80", "--gpus", gpus) for gpus in ("8", "1")
    )
    rows = eight["benchmarks"]
    assert list(rows) == ["mmeb", "mmeb-v2-video", "mmeb-v2-documents", "total"]
    assert {row["bound"] for row in rows.values()} == {"at least"}
    for key in ("items", "tokens", "PFLOP"):
        assert rows["total"][key] == pytest.approx(sum(row[key] for row in list(rows.values())[:3]))
    with torch.device("meta"):
        cost = StepCost(UniMEModel.from_backbone(AutoConfig.for_model(**BUILT_IN[MODEL])))
    loads, count = item_loads(AutoConfig.for_model(**BUILT_IN[MODEL]), 336, 8), item_counts("mmeb")
    flop = count.texts * cost.forward(loads["texts"]) + count.images * cost.forward(loads["images"])
    assert rows["mmeb"]["PFLOP"] == pytest.approx(flop / 1e15)
    (hours,) = rows["mmeb"]["hours"].values()
    assert hours == pytest.approx(flop / (8 * 989.4e12 * 0.25) / 3600)
    assert one["benchmarks"]["total"]["hours"]["H100-80GB"] == pytest.approx(8 * rows["total"]["hours"]["H100-80GB"])
    assert eight["weights, GB"] == pytest.approx(4.4, abs=0.1) and eight["fits"] == {"H100-80GB": True}


def test_the_command_prints_estimates_and_larger_images_cost_more():
    arguments = ["plan", "--benchmark", "flickr30k", "--benchmark", "circo", "--model", MODEL, "--memory", "24"]
    printed = CliRunner().invoke(app, arguments).stdout
    assert "estimates" in printed and "123,623" in printed and "hours, 8 RTX 4090" in printed
    small, large = (plan(*arguments[1:], "--image-size", size)["benchmarks"]["circo"] for size in ("336", "1002"))
    assert large["PFLOP"] > 5 * small["PFLOP"] and large["items"] == small["items"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "mrmr", "--model", MODEL], "the number of items of 'mrmr' is not recorded"),
        (["--suite", "mieb-lite", "--model", MODEL], r"the suite 'mieb-lite' is mteb's, .*get_benchmark\('MIEB"),
        (["--suite", "mmeb"], "an evaluation is planned from its suites, --model and the options"),
        (["--suite", "mmeb", "--model", MODEL, "--image-size", "{}"], "a plan needs a number of pixels"),
        ([], "give a recipe, or --suite and --model to plan an evaluation"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        plan(*arguments)


def test_benchmarks_of_two_suites_are_planned_once():
    assert benchmarks_of(["mmeb", "mmeb-v2"], ["mmeb"]) == ["mmeb", "mmeb-v2-video", "mmeb-v2-documents"]
