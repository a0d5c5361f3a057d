"""The table of supported architectures is complete, and new recipes' backbones pass all of its steps."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from architectures import PAGE, RESULTS, STEPS, check, first_sentence, page
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


CONTENT = json.loads(RESULTS.read_text())
# Backbones of recipes whose tiny models the other tests do not build.
RECIPE_TYPES = ["gemma3", "internvl", "qwen3_5"]


def test_the_table_has_every_image_text_architecture_of_the_installed_transformers():
    assert CONTENT["transformers"] == version("transformers"), "run `make test-architectures`"
    assert CONTENT["results"].keys() == MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()


def test_the_page_is_made_from_the_results():
    assert PAGE.read_text() == page(CONTENT["results"], CONTENT["transformers"])


def test_every_step_of_a_model_has_passed_or_has_an_error_of_one_sentence():
    for name, result in CONTENT["results"].items():
        if "not tested" in result:
            assert result["not tested"] and "\n" not in result["not tested"]
        elif len(result["passed"]) < len(STEPS):
            assert result["errors"], name
            assert all(error.strip() and "\n" not in error for error in result["errors"].values()), name


@pytest.mark.parametrize("model_type", RECIPE_TYPES)
def test_the_backbone_of_a_recipe_passes_every_step(model_type: str, tmp_path: Path):
    outcomes = {step: error and first_sentence(error) for step, error in check(model_type, tmp_path)}
    assert outcomes == dict.fromkeys(STEPS)
