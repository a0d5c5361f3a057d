"""The table of supported architectures is complete, and new recipes' backbones pass all of its steps."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from architectures import PAGE, RESULTS, STEPS, check, first_sentence, page
from safetensors import safe_open
from tiny_architectures import tiny_architecture
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from unime import UniMEModel, load_model, save_checkpoint


CONTENT = json.loads(RESULTS.read_text())
# Backbones of recipes whose tiny models the other tests do not build; each takes several seconds.
RECIPE_TYPES = ["gemma3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("internvl", "qwen3_5"))]


def backbone(model_type: str, folder: Path) -> str:
    """Save a tiny model and its processor."""
    native, processor = tiny_architecture(model_type)
    native.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_the_table_has_every_image_text_architecture_of_the_installed_transformers():
    assert CONTENT["transformers"] == version("transformers"), "run `make test-architectures`"
    assert CONTENT["results"].keys() == MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == page(CONTENT["results"], CONTENT["transformers"])


def test_every_step_of_a_model_has_passed_or_has_an_error_of_one_sentence():
    for name, result in CONTENT["results"].items():
        if "not tested" in result:
            assert "\n" not in result["not tested"] + result.get("detail", "")
        elif len(result["passed"]) < len(STEPS):
            assert result["errors"], name
            assert all(error.strip() and "\n" not in error for error in result["errors"].values()), name


@pytest.mark.parametrize("model_type", RECIPE_TYPES)
def test_the_backbone_of_a_recipe_passes_every_step(model_type: str, tmp_path: Path):
    outcomes = {step: error and first_sentence(error) for step, error in check(model_type, tmp_path)}
    assert outcomes == dict.fromkeys(STEPS)


def test_a_checkpoint_has_the_published_names_of_weights(tmp_path: Path):
    model, processor = load_model(backbone("step3p7", tmp_path / "native"))  # transformers renames its vision tower
    save_checkpoint(model, processor, tmp_path / "saved")
    names = []
    for folder in ("native", "saved"):
        with safe_open(tmp_path / folder / "model.safetensors", "pt") as file:
            names.append(set(file.keys()) - {"lm_head.weight"})
    assert names[0] == names[1]
    loaded, _ = load_model(str(tmp_path / "saved"))
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("model_type", ["hy_v4_vl", "hyperclovax_vision_v2"])
def test_a_backbone_whose_weights_transformers_renames_loads_all_of_them(model_type: str, tmp_path: Path):
    native, _ = tiny_architecture(model_type)
    native.save_pretrained(tmp_path)
    loaded = UniMEModel.from_backbone(str(tmp_path), dtype="float32").backbone.state_dict()
    expected = {name.removeprefix("model."): weight for name, weight in native.state_dict().items()}
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.items())


def test_padding_does_not_change_texts_of_paligemma(tmp_path: Path):
    model, processor = load_model(backbone("paligemma", tmp_path), dtype="float32")
    texts = ["a cat", "a longer text about a cat on a tile"]
    assert model.encode(texts, processor)[0] == pytest.approx(model.encode(texts[0], processor), abs=1e-5)
