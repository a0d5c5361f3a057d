"""The study of unseen styles: one difference per variant, and no training on the artists it decides and reports by."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from unime.openmoji.styles import HELD_OUT_STYLE


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(ROOT / "recipes" / "tiny" / "style_study.py")


def test_each_variant_differs_from_the_reference_in_one_thing(study: ModuleType) -> None:
    reference, *others = study.VARIANTS.values()
    assert reference == study.REFERENCE
    for variant in others:
        assert sum(value != asdict(reference)[name] for name, value in asdict(variant).items()) == 1
    assert not any(HELD_OUT_STYLE in variant.styles for variant in study.VARIANTS.values())
    assert [name for name, variant in study.VARIANTS.items() if study.VALIDATION_STYLE in variant.styles] == [
        "4 styles"
    ]


@pytest.mark.parametrize("tower", ["segformer", "siglip", "resnet"])
def test_a_tower_scores_every_name_and_learns_from_a_step(study: ModuleType, tower: str) -> None:
    torch.manual_seed(0)
    model = study.NamedTower(tower)
    colours = random.Random(0)
    images = [Image.new("RGB", (96, 96), tuple(colours.randrange(256) for _ in range(3))) for _ in range(2)]
    pixels = study.pixels(images)
    assert pixels.shape == (2, 3, 96, 96) and -1 <= pixels.min() and pixels.max() <= 1
    scores = model(pixels)
    assert scores.shape == (2, study.NAMES)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in model.tower.parameters())


def test_results_are_a_table_in_percent(study: ModuleType) -> None:
    result = {"openmoji": 0.9, "openmoji, dark": 0.5, "fluent": 0.25, "emojione": 0.125}
    assert study.table({"1 style": result}).splitlines()[2] == "| 1 style | 90.0 | 50.0 | 25.0 | 12.5 |"


def test_the_table_of_the_recipes_has_the_saved_results(study: ModuleType) -> None:
    saved = json.loads(study.RESULTS.read_text())
    assert saved["settings"] == {"steps": 240, "seed": 0, "names": study.NAMES, "batch": study.BATCH}
    section = (ROOT / "recipes" / "README.md").read_text().split("## An unseen style")[1].split("\n## ")[0]
    rows = [line.rsplit(" | ", 4)[1:] for line in section.splitlines() if line.startswith("| ")][2:]
    for name, variant in study.VARIANTS.items():
        tower = study.NamedTower(variant.tower).tower
        assert saved["results"][name]["parameters"] == sum(parameter.numel() for parameter in tower.parameters())
    columns = ("openmoji", "openmoji, dark", "fluent", "emojione")
    expected = [[f"{100 * result[column]:.1f}" for column in columns] for result in saved["results"].values()]
    assert [[cell.strip(" |") for cell in row] for row in rows] == expected
