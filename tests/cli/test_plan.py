"""`unime plan`: the memory by part, what fits, and the numbers of recipes/README.md."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoConfig
from typer.testing import CliRunner

from unime import UniMEModel, processor_from_backbone
from unime.cli.main import app
from unime.cli.plan import chosen_gpus, image_rows, plan_recipe
from unime.image_size import set_image_size
from unime.image_tokens_unime import patch_share, vision_token_equivalents
from unime.trainers.training_plan import GPUS, NF4_BYTES, Gpu, Rows, Setup, constant_bytes, count_parameters


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="module")
def stage2() -> dict[str, Any]:
    return plan_recipe(RECIPES / "qwen2-vl-2b" / "stage2.yaml", 8, chosen_gpus([24, 80], []))


def test_stage_2_is_planned_on_the_backbone_of_stage_1(stage2: dict[str, Any]):
    assert stage2["backbone"] == "Qwen/Qwen2-VL-2B-Instruct"
    assert stage2["batch"] == 1024
    # Rank 16 on all linear layers; 28 layers of 12 heads of 128, 2 of them for keys and values, and 32 of vision.
    decoder = 28 * 16 * (2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960))
    vision = 32 * 16 * ((1280 + 3 * 1280) + (1280 + 1280) + 2 * (1280 + 5120))
    merger = 16 * ((5120 + 5120) + (5120 + 1536))
    assert stage2["parameters"]["trained"] == decoder + vision + merger
    small, large = stage2["plans"]
    assert small["memory, GB"]["optimizer"] == pytest.approx(2 * 4 * (decoder + vision + merger) / 1e9)
    assert small["useful PFLOP per step and GPU"] == large["useful PFLOP per step and GPU"]
    # 4 workers prefetch one batch each, one is used, one comes next and one is pinned: 128 rows, bfloat16 pixels.
    pixels = 128 * 1.14 * 576 * 1176
    assert small["host memory of batches, GB"] == pytest.approx(8 * (4 + 3) * pixels * 2 / 1e9)
    work = small["executed / useful"] / large["executed / useful"]
    assert small["hours"] == pytest.approx(large["hours"] * work * 989.4 / 165.2)
    assert small["total, GB"] - small["memory, GB"]["margin"] == pytest.approx(
        sum(size for name, size in small["memory, GB"].items() if name != "margin")
    )


def test_memory_that_is_left_saves_operations(stage2: dict[str, Any]):
    small, large = stage2["plans"]
    assert 1 <= large["executed / useful"] < small["executed / useful"] < 1.5
    for entry in (small, large):  # the recipe's graph cache takes what is left
        assert entry["executed / useful"] == entry["executed / useful, best plan"]
    recipe, kinds = RECIPES / "qwen2-vl-2b" / "stage2.yaml", [GPUS[0], GPUS[2]]
    small, large = plan_recipe(recipe, 8, kinds, overrides=["--graph_cache_gb", "0"])["plans"]
    assert 1.5 < small["executed / useful"] == large["executed / useful"] < 2


def test_an_image_size_that_is_no_number_is_refused():
    overrides = ["--image_size", '{"max_pixels": 1003520}']
    with pytest.raises(ValueError, match="a plan needs a number of pixels: pass --image_size"):
        plan_recipe(RECIPES / "qwen2-vl-2b" / "stage2.yaml", overrides=overrides)


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    recipe = RECIPES / "llava-onevision-7b" / "stage2.yaml"
    gpu = [Gpu("small", 20, 20.0, 100)]
    (plan,) = plan_recipe(recipe, 8, gpu)["plans"]
    largest = plan["largest micro_batch_tokens"]
    assert 1024 < largest < 131072
    for tokens, fits in ((largest, True), (largest + 1024, False)):
        (entry,) = plan_recipe(recipe, 8, gpu, overrides=["--micro_batch_tokens", str(tokens)])["plans"]
        assert entry["fits"] is fits


def test_sharding_divides_what_it_shards():
    recipe = RECIPES / "qwen2-vl-2b" / "stage2.yaml"
    full = ["--use_peft", "false", "--load_in_4bit", "false"]
    launchers = ("ddp", "zero2", "fsdp2")
    whole, zero2, fsdp2 = (
        plan_recipe(recipe, 8, [GPUS[2]], RECIPES / "accelerate" / f"{name}.yaml", overrides=full)["plans"][0]
        for name in launchers
    )
    whole, zero2, fsdp2 = (entry["memory, GB"] for entry in (whole, zero2, fsdp2))
    # bfloat16 weights and states alone; float32 ones in shares.
    assert whole["optimizer"] == pytest.approx(2 * whole["trained weights"])
    assert zero2["optimizer"] == pytest.approx(2 * whole["optimizer"] / 8)
    assert zero2["trained weights"] == pytest.approx(2 * whole["trained weights"])
    assert fsdp2["trained weights"] == pytest.approx(2 * whole["trained weights"] / 8)
    assert fsdp2["gradients"] == zero2["gradients"]


def test_epochs_need_the_number_of_rows(tmp_path: Path):
    recipe = RECIPES / "qwen2-vl-2b" / "stage1.yaml"
    plan = plan_recipe(recipe, 8, [GPUS[0]], rows=768 * 100)
    assert plan["plans"][0]["steps"] == 200  # two epochs
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n' * 768 * 3)
    known = ["--dataset", str(tmp_path / "texts.jsonl")]
    assert plan_recipe(recipe, 8, [GPUS[0]], overrides=known)["plans"][0]["steps"] == 6
    with pytest.raises(ValueError, match="pass --rows"):
        plan_recipe(recipe, 8, [GPUS[0]], overrides=["--dataset", "not-there.jsonl"])


@pytest.mark.parametrize("memory", [24, 80])
def test_the_command_prints_the_plan(memory: int):
    recipe = str(RECIPES / "qwen2-vl-2b" / "stage1.yaml")
    result = CliRunner().invoke(app, ["plan", recipe, "--gpus", "1", "--memory", str(memory), "--json"])
    (plan,) = json.loads(result.stdout)["plans"]
    assert plan["fits"]
    printed = CliRunner().invoke(app, ["plan", recipe, "--gpus", "1", "--memory", str(memory)]).stdout
    assert plan["GPU"] in printed and f"{plan['total, GB']:.1f}" in printed


@pytest.mark.parametrize(
    ("memory", "names", "message"),
    [([30], [], "no GPU in the table has 30 GB"), ([], ["V100"], "no GPU is named V100")],
)
def test_an_unknown_gpu_is_refused(memory: list[float], names: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        chosen_gpus(memory, names)


def test_a_file_that_is_no_recipe_is_refused():
    with pytest.raises(ValueError, match="no recipe"):
        plan_recipe(RECIPES / "accelerate" / "ddp.yaml")


@pytest.mark.parametrize(
    "name", ["llava", "llava-next", "llava-onevision", "qwen2-vl", "qwen3-vl", "idefics3", "phi3-v"]
)
def test_tokens_and_patches_of_an_image_are_those_of_the_processor(name: str, tiny_model: Callable[[str], Path]):
    folder = str(tiny_model(name))
    config, processor = AutoConfig.from_pretrained(folder), processor_from_backbone(folder)
    pixels = 48 if "qwen" in name else config.vision_config.image_size
    if name != "llava":
        set_image_size(processor, pixels)
    batch = processor(images=[Image.new("RGB", (pixels, pixels))], text=[processor.image_token], return_tensors="pt")
    image = image_rows(config, pixels)
    assert int((batch["input_ids"] == config.image_token_id).sum()) == image["image_tokens"]
    numbers = batch["pixel_values"].numel()
    if name == "llava-onevision":  # its tiles are padded to a fixed number
        numbers = (batch["pixel_values"][0].abs().sum((1, 2, 3)) > 0).sum() * batch["pixel_values"][0, 0].numel()
    assert numbers == image["patches"] * image["patch_numbers"]
    share = vision_token_equivalents(processor, [(pixels, pixels)], config)
    assert share == pytest.approx(patch_share(config) * image["patches"])


def test_weights_gradients_and_optimizer_are_those_of_a_training_step(tiny_model: Callable[[str], Path]):
    model = get_peft_model(
        UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("qwen2-vl"))),
        LoraConfig(r=4, target_modules="all-linear"),
    )
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    states = [state for weight in trained for state in optimizer.state[weight].values() if state.numel() > 1]
    setup = Setup(8, 1024, 0, False, 1, 1)
    parts = constant_bytes(model, setup, Rows(2, 0, 10), 32)
    assert parts["weights"] == sum(weight.nbytes for weight in model.parameters() if not weight.requires_grad)
    assert parts["trained weights"] == parts["gradients"] == sum(weight.nbytes for weight in trained)
    assert parts["optimizer"] == sum(state.nbytes for state in states)
    # Blocks of 64 weights: 32 bytes and a float32 scale.
    in_4_bits = constant_bytes(model, Setup(8, 1024, 0, False, 1, 1, quantized_bytes=NF4_BYTES), Rows(2, 0, 10), 32)
    quantized = count_parameters(model, Setup(8, 1024, 0, False, 1, 1, quantized_bytes=NF4_BYTES))["quantized"]
    assert parts["weights"] - in_4_bits["weights"] == pytest.approx(quantized * (4 - 36 / 64))
