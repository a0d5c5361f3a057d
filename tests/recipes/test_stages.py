"""Both stages of every recipe, on tiny random models of their backbones."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import LlavaForConditionalGeneration, SiglipVisionModel

from unime import UniMEModel, load_model
from unime.trainers import load_adapter


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
evaluation = importlib.import_module("unime.eval.__main__")
BACKBONES = {
    "llava-1.6-7b": "llava-next",
    "llava-onevision-7b": "llava-onevision",
    "phi-3.5-v-4.2b": "phi3-v",
    "qwen2-vl-2b": "qwen2-vl",
    "qwen2-vl-7b": "qwen2-vl",
    "qwen2.5-vl-3b": "qwen2.5-vl",
    "qwen2.5-vl-7b": "qwen2.5-vl",
    "qwen3-vl-2b": "qwen3-vl",
    "smolvlm2-2.2b": "smolvlm",
    "qwen3.5-2b": "qwen3_5",
    "qwen3.5-4b": "qwen3_5",
    "gemma-3-4b": "gemma3",
    "internvl3-2b": "internvl",
    "llama-3.2-vision-11b": "mllama",
}
# Their image processors have sizes of their own, so that the recipes set none.
FIXED_SIZE = ("gemma-3-4b", "internvl3-2b", "llama-3.2-vision-11b")
# Overrides for two steps on a laptop; everything else comes from the recipe, 4-bit weights included.
LAPTOP = [*"--max_steps 2 --warmup_steps 0 --learning_rate 0.01 --per_device_train_batch_size 4".split()]
LAPTOP += [*"--dtype float32 --use_cpu true --fp16 false --bf16 false --report_to none".split()]
IMAGE_SIZE = 24  # one tile of the tiny models
IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8))
ITEMS = ["text number 3", IMAGE, {"image": IMAGE, "text": "Is it a number?"}]


def embed(folder: Path, image_size: int | None, adapter: Path | None = None) -> np.ndarray:
    """Return the embeddings of the items by a checkpoint, with an optional adapter."""
    model, processor = load_model(str(folder), image_size, dtype="float32")
    model = model if adapter is None else load_adapter(model, adapter).get_base_model()
    return model.encode(ITEMS, processor)


def split_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a checkpoint inside and outside its language model."""
    model, _ = load_model(str(folder), dtype="float32")
    inside = {name for name, module in model.named_modules() if module is model.backbone.get_decoder()}
    prefix = inside.pop() + "."
    weights = model.state_dict()
    language = {name: weight for name, weight in weights.items() if name.startswith(prefix)}
    return language, {name: weight for name, weight in weights.items() if name not in language}


def identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Return whether two sets of weights are identical."""
    assert first and first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def check_stages(base: Path, one: Path, two: Path, image_size: int | None = IMAGE_SIZE, batch_size: int = 32) -> None:
    """Assert that stage 1 trained the language model only, stage 2 everything, and that both outputs load."""
    for start, end in ((base, one), (one, two)):
        merged = embed(end, image_size)
        np.testing.assert_allclose(merged, embed(start, image_size, end / "adapter"), atol=1e-5)
        assert np.abs(merged - embed(start, image_size)).max() > 1e-3
        sentences = SentenceTransformer(str(end), trust_remote_code=True)
        np.testing.assert_allclose(sentences.encode(ITEMS, batch_size=batch_size), merged, atol=1e-5)
    (language, vision), (language_one, vision_one), (language_two, vision_two) = map(split_weights, (base, one, two))
    assert identical(vision_one, vision) and not identical(language_one, language)
    assert not identical(vision_two, vision_one) and not identical(language_two, language_one)


def train_both_stages(
    run: Callable[..., object], recipe: str, base: Path, texts: Path, pairs: Path, folder: Path
) -> tuple[Path, Path]:
    """Run both stages of a recipe and return their folders."""
    one, two = folder / "one", folder / "two"
    laptop = LAPTOP if recipe in FIXED_SIZE else [*LAPTOP, "--image_size", str(IMAGE_SIZE)]
    settings = ["--config", RECIPES / recipe / "stage1.yaml", "--model_name_or_path", base, "--dataset", texts]
    run(RECIPES / "stage1.py", *settings, "--output_dir", one, *laptop)
    settings = ["--config", RECIPES / recipe / "stage2.yaml", "--model_name_or_path", one, "--dataset", pairs]
    run(RECIPES / "stage2.py", *settings, "--image_root", pairs.parent, "--output_dir", two, *laptop)
    return one, two


# The recipes differ in their backbone alone: the fast tests train one.
@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=() if name == "qwen2-vl-2b" else pytest.mark.slow) for name in BACKBONES],
)
def test_a_recipe_trains_a_tiny_model_of_its_backbone(
    recipe: str,
    tiny_model: Callable[[str], Path],
    run_script: Callable[..., None],
    texts: Path,
    pairs: Path,
    tmp_path: Path,
):
    base = tiny_model(BACKBONES[recipe])
    stages = train_both_stages(run_script, recipe, base, texts, pairs, tmp_path)
    image_size = None if recipe in FIXED_SIZE else IMAGE_SIZE
    # sentence-transformers cannot batch texts with images for Llama-3.2-Vision.
    check_stages(base, *stages, image_size, batch_size=1 if recipe.startswith("llama-3.2") else 32)


@pytest.mark.slow  # test_mine.py launches stage 2 in the fast tests
@pytest.mark.parametrize("recipe", ["llava-1.6-7b", "llava-onevision-7b"])
def test_a_recipe_of_the_paper_trains_when_it_is_launched_by_accelerate(
    recipe: str,
    tiny_model: Callable[[str], Path],
    launch: Callable[..., str],
    texts: Path,
    pairs: Path,
    tmp_path: Path,
):
    base = tiny_model(BACKBONES[recipe])
    check_stages(base, *train_both_stages(launch, recipe, base, texts, pairs, tmp_path))


def test_every_recipe_backbone_is_tested_with_a_tiny_model():
    assert {path.parent.name for path in RECIPES.glob("*/stage2.yaml")} == {*BACKBONES, "tiny"}


@pytest.mark.slow  # the next test trains a backbone, and test_a_recipe_trains_... both stages
def test_the_tiny_recipes_make_a_backbone_an_embedding_model_a_clip_and_a_comparison(
    run_script: Callable[..., None], capsys: pytest.CaptureFixture, tmp_path: Path
):
    tower, backbone, one, two, clip = (tmp_path / name for name in ("tower", "backbone", "one", "two", "clip"))
    tiny = RECIPES / "tiny"
    small = ["--num_rows", 64, "--per_device_train_batch_size", 8]
    steps = ["--max_steps", 2, "--warmup_steps", 0]
    run_script(
        tiny / "vision.py", "--config", tiny / "vision.yaml", "--output_dir", tower, "--texts", 200, *small, *steps,
    )  # fmt: skip
    run_script(
        tiny / "backbone.py", "--config", tiny / "backbone.yaml", "--output_dir", backbone, "--vision", tower,
        *small, *steps,
    )  # fmt: skip
    run_script(
        RECIPES / "stage1.py", "--config", tiny / "stage1.yaml", "--output_dir", one,
        "--model_name_or_path", backbone, *small, *steps,
    )  # fmt: skip
    run_script(
        RECIPES / "stage2.py", "--config", tiny / "stage2.yaml", "--output_dir", two,
        "--model_name_or_path", one, *small, *steps,
    )  # fmt: skip
    run_script(
        tiny / "clip.py", "--config", tiny / "clip.yaml", "--output_dir", clip,
        "--tokenizer", backbone, "--seconds", 2, *small,
    )  # fmt: skip
    progress = capsys.readouterr().err
    assert "Training CLIP: 100%" in progress and "/1000000" not in progress  # of its seconds, not of unknown steps
    models = [f"Before={backbone}", f"Stage 1={one}", f"Stage 2={two}", f"CLIP={clip}"]
    evaluation.main(["--output_dir", str(tmp_path), "--size", "20", "--models", *models])
    printed = capsys.readouterr().out

    trained = SiglipVisionModel.from_pretrained(tower).half().state_dict()
    loaded = LlavaForConditionalGeneration.from_pretrained(backbone).model.vision_tower.state_dict()
    assert identical(trained, loaded)
    (language, vision), (language_one, vision_one), (language_two, vision_two) = map(
        split_weights, (backbone, one, two)
    )
    assert identical(vision_one, vision) and not identical(language_one, language)
    assert not identical(vision_two, vision_one) and not identical(language_two, language_one)
    expected = UniMEModel.from_pretrained(two).encode(ITEMS)
    for options in ({"trust_remote_code": True}, {}):
        np.testing.assert_allclose(SentenceTransformer(str(two), **options).encode(ITEMS), expected, atol=1e-5)

    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["Before", "Stage 1", "Stage 2", "CLIP"]
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in printed
    page = (tmp_path / "report.html").read_text()
    for title in results:
        assert title in table and title in page


@pytest.mark.slow
def test_the_tower_and_the_language_model_of_the_tiny_backbone_train_in_turn(
    run_script: Callable[..., None], tmp_path: Path
):
    def run(name: str, start: Path, output: str, *settings: object) -> Path:
        small = ["--num_rows", 64, "--per_device_train_batch_size", 8, "--max_steps", 2, "--warmup_steps", 0]
        small += ["--model_name_or_path", start, "--output_dir", tmp_path / output]
        tiny = RECIPES / "tiny"
        run_script(tiny / f"{name}.py", "--config", tiny / f"{name}.yaml", *small, *settings)
        return tmp_path / output

    start = RECIPES.parent / "checkpoints" / "tiny-backbone"
    tower = run("vision", start, "tower", "--emoji", 0.9)
    backbone = run("backbone", start, "backbone", "--vision", tower)

    before, after = (
        LlavaForConditionalGeneration.from_pretrained(folder, dtype="float32") for folder in (start, backbone)
    )
    token_embeddings = before.get_input_embeddings().weight
    assert torch.equal(load_file(tower / "words.safetensors")["weight"], token_embeddings)
    trained = SiglipVisionModel.from_pretrained(tower, dtype="float32").half().state_dict()
    vision, loaded = (model.model.vision_tower.half().state_dict() for model in (before, after))
    assert identical(loaded, trained) and not identical(trained, vision)
    # Two steps from the old weights, not from random ones: the direction of the weights has hardly changed.
    old, new = (model.model.language_model.layers[0].mlp.up_proj.weight.float().flatten() for model in (before, after))
    assert 0.99 < torch.cosine_similarity(old, new, dim=0) < 1


@pytest.mark.slow
def test_interrupted_trainings_of_the_tiny_models_resume_exactly(run_script: Callable[..., None], tmp_path: Path):
    def resumed(name: str, start: str, *settings: object) -> Path:
        output, tiny = tmp_path / name, RECIPES / "tiny"
        command = [tiny / f"{name}.py", "--config", tiny / f"{name}.yaml", "--output_dir", output, "--use_cpu", "true"]
        command += ["--model_name_or_path", RECIPES.parent / "checkpoints" / start, *settings, "--num_rows", 64]
        command += ["--per_device_train_batch_size", 8, "--max_steps", 3, "--warmup_steps", 0]
        command += ["--save_steps", 2, "--save_total_limit", 2]
        run_script(*command)
        saved, state = output / "model.safetensors", output / "checkpoint-2" / "trainer_state.json"
        uninterrupted, written = load_file(saved), state.stat().st_mtime_ns
        saved.unlink()
        shutil.rmtree(output / "checkpoint-3")
        run_script(*command)
        assert identical(load_file(saved), uninterrupted)
        assert state.stat().st_mtime_ns == written  # the first two steps were not taken again
        return output

    vision = resumed("vision", "tiny-backbone")
    resumed("backbone", "tiny-backbone", "--vision", vision)
    resumed("tower", "tiny-backbone", "--styles", "openmoji", "--tf32", "false", "--dataloader_num_workers", 2)


@pytest.mark.parametrize(
    "rows", [pytest.param(8, id="at the end of an epoch"), pytest.param(12, id="within an epoch")]
)
def test_repeating_a_finished_training_changes_nothing(
    rows: int,
    run_script: Callable[..., None],
    tiny_model: Callable[[str], Path],
    texts: Path,
    tmp_path: Path,
):
    texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:rows]))
    settings = ["--config", RECIPES / "tiny" / "stage1.yaml", "--model_name_or_path", tiny_model("llava-next")]
    settings += ["--dataset", texts, "--output_dir", tmp_path / "run", *LAPTOP]
    run_script(RECIPES / "stage1.py", *settings)
    first = UniMEModel.from_pretrained(tmp_path / "run").state_dict()
    run_script(RECIPES / "stage1.py", *settings)
    assert identical(UniMEModel.from_pretrained(tmp_path / "run").state_dict(), first)
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.slow
def test_the_script_of_the_styles_trains_every_step_and_runs_none_twice(tmp_path: Path):
    small = "--num_rows 64 --per_device_train_batch_size 8 --task_block_size 4 --max_steps 2 --warmup_steps 0"
    small += " --save_steps 1"
    small += " --graph_cache_gb 1 --styles openmoji --use_cpu true --tf32 false --dataloader_num_workers 0"
    small += " --dataloader_prefetch_factor null"
    of_tower = small.replace(" --task_block_size 4", "").replace(" --graph_cache_gb 1", "")
    python = tmp_path / "python"  # the script's commands with other sizes, on a CPU
    python.write_text(
        f'#!/bin/bash\necho "$1" >> {tmp_path}/calls\n[ "$1" = recipes/stage2.py ] && '
        f'exec {sys.executable} "$@" {small}\nexec {sys.executable} "$@" {of_tower}\n'
    )
    python.chmod(0o755)
    torchrun = tmp_path / "torchrun"
    torchrun.write_text(f'#!/bin/bash\nshift 2 # one process\nexec {python} "$@"\n')
    torchrun.chmod(0o755)
    start = RECIPES.parent / "checkpoints" / "tiny-backbone"
    command = ["bash", RECIPES / "tiny" / "unime-tiny-styles.sh", start, tmp_path / "out"]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(command, cwd=RECIPES.parent, env=environment, check=True, timeout=900)
    assert (tmp_path / "calls").read_text().split() == [
        *("recipes/tiny/tower.py", "recipes/stage2.py", "recipes/stage2.py"),
        *["recipes/tiny/tower.py"] * 3,
    ]

    steps = ("tower", "stage2", "cells", "cells-2", "cells-3")
    before, tower, tuned, *cells = (
        load_model(str(folder), dtype="float32")[0].backbone
        for folder in (start, *(tmp_path / "out" / step for step in steps))
    )
    assert type(tower).__name__ == "FastVlmModel"
    assert identical(tower.language_model.state_dict(), before.language_model.state_dict())
    assert not identical(tuned.language_model.state_dict(), before.language_model.state_dict())
    # The last three have the first language model, and the tower of the step before, trained further.
    for model, earlier in zip(cells, [tuned, *cells], strict=False):
        assert identical(model.language_model.state_dict(), before.language_model.state_dict())
        weights, old = (of.vision_tower.state_dict() for of in (model, earlier))
        assert not identical(weights, old)
        assert all(torch.allclose(old[name], weight, atol=0.01) for name, weight in weights.items() if "conv" in name)
    model, processor = load_model(str(tmp_path / "out" / "cells-3"))
    vectors = model.encode(["a cat", Image.new("RGB", (96, 96), "red")], processor)
    assert np.isfinite(vectors).all() and vectors[0] @ vectors[1] < 0.999
