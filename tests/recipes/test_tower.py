"""The distillation of a vision tower: what it starts from, what it learns from, and its loss by hand."""

import collections
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unime import UniMEModel, load_model, save_checkpoint
from unime.openmoji.catalogue import same_drawing
from unime.openmoji.dataset import draw_image
from unime.openmoji.names import emoji_with_name
from unime.openmoji.scenes import Placed, crop_spec
from unime.openmoji.views import View
from unime.openmoji.vocabulary import COLOUR_NAMES, objects


ROOT = Path(__file__).resolve().parents[2]
CPU = ("--use_cpu", "true", "--tf32", "false", "--dataloader_num_workers", 2)


@pytest.fixture(scope="module")
def tower(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(ROOT / "recipes" / "tiny" / "tower.py")


@pytest.fixture(scope="module")
def teacher() -> UniMEModel:
    return load_model(str(ROOT / "checkpoints" / "tiny-backbone"), dtype="float32", attn_implementation="eager")[0]


@pytest.fixture(scope="module")
def drawings(tower: ModuleType) -> Tensor:
    _, processor = load_model(str(ROOT / "checkpoints" / "tiny-backbone"))
    return tower.pixel_values(
        processor.image_processor, [draw_image(View.whole(index).spec) for index in (3, 40, 41, 900)]
    )


def test_rows_are_drawings_with_openmojis_image_of_the_same_content(tower: ModuleType):
    rows = tower.StyledImages(tower.ScriptArguments(num_rows=60, styles=["openmoji"]), seed=1)
    again = tower.StyledImages(tower.ScriptArguments(num_rows=60, styles=["openmoji"]), seed=1)
    references = tower.references()
    kinds = collections.Counter()
    for index in range(60):
        row, content = rows[index], tower.sample_content(0.5, random.Random(f"1/{index}"))
        assert row["image"].tobytes() == again[index]["image"].tobytes()
        assert row["image"].mode == "RGB"
        if row["label"] == tower.SCENE:
            kinds["scene"] += 1
            assert row["target"].tobytes() == content.render().tobytes()
            assert row["target"].mode == "RGB" and row["image"].size == row["target"].size
            assert sum(row["occupied"]) in (2, 3, 4, 5, 9)
            grey = (np.asarray(row["target"]) == 225).all(axis=2)  # an empty cell is grey, a tile is not
            assert row["occupied"] == [
                not grey[y : y + 32, x : x + 32].all() for y in (0, 32, 64) for x in (0, 32, 64)
            ]
            continue
        assert set(row) == {"image", "label"}  # the features of references are known
        if isinstance(content, Placed):
            kinds["crop"] += 1
            assert row["label"] == references[crop_spec(content)]
            continue
        kinds["emoji"] += 1
        whole = View.whole(same_drawing()[content.index]).spec
        assert row["label"] == references[whole]
        assert row["image"].tobytes() != draw_image(whole).tobytes()
    assert 18 < kinds["emoji"] < 42 and 12 < kinds["scene"] < 34 and kinds["crop"] > 2  # 0.5, 0.375 and 0.125 of them


@pytest.mark.parametrize(
    ("styles", "openmoji", "expected"),
    [
        (["openmoji", "noto", "fluent"], 0.5, {"openmoji": 0.5, "noto": 0.25, "fluent": 0.25}),
        (["openmoji"], 0.5, {"openmoji": 1}),
        (["noto", "fluent"], 0.9, {"noto": 0.5, "fluent": 0.5}),
    ],
)
def test_openmoji_has_its_share_of_the_styles(tower: ModuleType, styles: list[str], openmoji: float, expected: dict):
    rows = tower.StyledImages(tower.ScriptArguments(styles=styles, openmoji=openmoji), seed=1)
    rng = random.Random(0)
    counts = collections.Counter(rows.sample_style(rng) for _ in range(2000))
    assert {style: count / 2000 for style, count in counts.items()} == pytest.approx(expected, abs=0.04)


def test_references_are_the_drawings_and_crops_of_the_training_split(tower: ModuleType):
    specs = list(tower.references())
    crops = [spec for spec in specs if spec.startswith("crop")]
    assert len(crops) == len(objects()) * len(COLOUR_NAMES) and len(set(specs)) == len(specs)
    emoji = {same_drawing()[entry.index] for entry in emoji_with_name("train")}
    assert set(specs) - set(crops) == {View.whole(index).spec for index in emoji}


def test_a_new_convolutional_tower_reads_images_for_the_same_language_model(
    tower: ModuleType, teacher: UniMEModel, drawings: Tensor, tmp_path: Path
):
    torch.manual_seed(0)
    model = tower.with_convolutional_tower(teacher)
    trained = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"vision_tower", "multi_modal_projector"}
    assert all(parameter.requires_grad for parameter in teacher.parameters())  # the original stays as it is
    language = teacher.backbone.language_model.state_dict()
    assert all(
        torch.equal(weight, language[name]) for name, weight in model.backbone.language_model.state_dict().items()
    )
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    assert tower.image_features(model, torch.zeros(2, 3, 96, 96)).shape == (2, 9, 192)
    distillation = tower.TowerDistillation(model, teacher, drawings).train()
    statistics = next(layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    before = statistics.running_mean.clone()
    distillation(drawings, torch.arange(4))["loss"].backward()
    assert not torch.equal(before, statistics.running_mean)  # they are learned here
    _, processor = load_model(str(ROOT / "checkpoints" / "tiny-backbone"))
    assert tower.image_features(model, drawings).shape == tower.image_features(teacher, drawings).shape
    save_checkpoint(model.eval(), processor, tmp_path)
    loaded, processor = load_model(str(tmp_path), dtype="float32")
    items = ["a cat", Image.new("RGB", (96, 96), "red")]
    np.testing.assert_allclose(loaded.encode(items, processor), model.encode(items, processor), atol=1e-5)
    np.testing.assert_allclose(loaded.encode("a cat", processor), teacher.encode("a cat", processor), atol=1e-5)


@pytest.mark.slow
def test_the_command_trains_a_new_tower(run_script: Callable[..., None], tmp_path: Path):
    tiny = ROOT / "recipes" / "tiny"
    start, earlier = tmp_path / "start", [{"trainer": "of the language model"}]
    shutil.copytree(ROOT / "checkpoints" / "tiny-backbone", start)
    (start / "training.json").write_text(json.dumps(earlier))
    sizes = ["--num_rows", 8, "--per_device_train_batch_size", 4, "--max_steps", 2, "--warmup_steps", 0]
    settings = ["--config", tiny / "tower.yaml", *CPU, "--styles", "openmoji", *sizes]
    settings += ["--model_name_or_path", start]
    first, second = tmp_path / "first", tmp_path / "second"
    run_script(tiny / "tower.py", *settings, "--output_dir", first)
    run_script(tiny / "tower.py", *settings, "--output_dir", second, "--tower", first)
    model, processor = load_model(str(second))
    assert type(model.backbone).__name__ == "FastVlmModel"
    assert processor.image_processor.crop_size["height"] == 96  # vLLM counts tokens by it
    vectors = model.encode(["a cat", Image.new("RGB", (96, 96), "red")], processor)
    assert np.isfinite(vectors).all() and vectors[0] @ vectors[1] < 0.999
    record = json.loads((second / "training.json").read_text())
    assert record[:-2] == earlier
    assert [stage["trainer"] for stage in record[-2:]] == ["TowerTrainer"] * 2
    assert record[-2]["started from"].endswith("start") and record[-1]["started from"].endswith("first")


def test_a_tower_continues_from_that_of_another_checkpoint(tower: ModuleType, teacher: UniMEModel):
    torch.manual_seed(0)
    first = tower.with_convolutional_tower(teacher)
    second = tower.with_convolutional_tower(teacher, first)
    weights, other = first.state_dict(), tower.with_convolutional_tower(teacher).state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in second.state_dict().items())
    assert not all(torch.equal(weight, weights[name]) for name, weight in other.items())
    assert not {p.data_ptr() for p in second.parameters()} & {p.data_ptr() for p in first.parameters()}
    with pytest.raises(ValueError, match="tiny-backbone has no ResNet to continue from, but the tower of a llava"):
        tower.with_convolutional_tower(teacher, teacher)


def test_a_batch_has_targets_for_scenes_only(tower: ModuleType):
    _, processor = load_model(str(ROOT / "checkpoints" / "tiny-backbone"))
    red, blue, green = (Image.new("RGB", (96, 96), color) for color in ("red", "blue", "green"))
    scene = {"image": blue, "target": green, "label": tower.SCENE, "occupied": [True, *[False] * 8]}
    rows = [{"image": red, "label": 3}, scene]
    collator = tower.ImageCollator(processor.image_processor)
    batch = collator(rows)
    assert batch["pixels"].equal(tower.pixel_values(processor.image_processor, [red, blue]))
    assert batch["targets"].equal(tower.pixel_values(processor.image_processor, [green]))
    assert batch["labels"].tolist() == [3, tower.SCENE]
    assert batch["occupied"].tolist() == [scene["occupied"]]
    assert set(collator(rows[:1])) == {"pixels", "labels"}


def confusion(given: Tensor, references: Tensor, answers: list[int]) -> Tensor:
    """The mean cross-entropy of cosines around the references' mean, with the temperature 0.07."""
    centre = references.mean(dim=0)
    cosines = torch.nn.functional.cosine_similarity((given - centre)[:, None], (references - centre)[None], dim=2)
    return -(cosines / 0.07).log_softmax(dim=1)[torch.arange(len(answers)), answers].mean()


def test_the_loss_of_a_reference_is_its_error_and_the_confusion_with_others(
    tower: ModuleType, teacher: UniMEModel, drawings: Tensor
):
    distillation = tower.TowerDistillation(teacher, teacher, drawings)
    features = tower.image_features(teacher, drawings)
    whole = features.flatten(1)
    # The features are right, so only the cross-entropy is left.
    expected = confusion(whole[[1, 3]], whole, [1, 3])
    loss = distillation(drawings[[1, 3]], torch.tensor([1, 3]))["loss"].item()
    assert loss == pytest.approx(expected.item(), rel=1e-3, abs=1e-5)
    # A drawing that is taken for another counts in both parts; the error in units of the variance.
    error = (features[0] - features[1]).square().mean() / features.var(dim=(0, 1)).mean()
    loss = distillation(drawings[1:2], torch.tensor([0]))["loss"].item()
    assert loss == pytest.approx((error + confusion(whole[1:2], whole, [0])).item(), rel=1e-4)


def test_the_loss_of_scenes_is_their_error_and_the_confusion_of_their_cells(
    tower: ModuleType, teacher: UniMEModel, drawings: Tensor
):
    distillation = tower.TowerDistillation(teacher, teacher, drawings)
    labels, occupied = torch.tensor([tower.SCENE, 2, tower.SCENE]), torch.zeros(2, 9, dtype=torch.bool)
    occupied[0, [0, 4, 8]] = occupied[1, 2] = True
    features = tower.image_features(teacher, drawings)
    cells = torch.cat([features[0, [0, 4, 8]], features[1, [2]]])
    reference = confusion(features[2:3].flatten(1), features.flatten(1), [2])
    expected = reference + confusion(cells, cells, [0, 1, 2, 3])
    loss = distillation(drawings[[0, 2, 1]], labels, drawings[:2], occupied)["loss"].item()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    # The second scene looks like another: its error counts, in units of the scenes' variance, and that of its cell.
    error = (features[3] - features[1]).square().mean() / 2 / features[:2].var(dim=(0, 1)).mean()
    wrong = torch.cat([cells[:3], features[3, [2]]])
    expected = reference + error + confusion(wrong, cells, [0, 1, 2, 3])
    loss = distillation(drawings[[0, 2, 3]], labels, drawings[:2], occupied)["loss"].item()
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_steps_lower_the_loss(tower: ModuleType, teacher: UniMEModel, drawings: Tensor):
    torch.manual_seed(0)
    distillation = tower.TowerDistillation(tower.with_convolutional_tower(teacher), teacher, drawings).train()
    optimizer = torch.optim.AdamW([p for p in distillation.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(8):
        losses.append(distillation(1 - drawings, torch.arange(4))["loss"])
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    assert set(distillation.state_dict()) == {f"model.{name}" for name in distillation.model.state_dict()}
