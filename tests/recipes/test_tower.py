"""The distillation of a vision tower: what it starts from, what it learns from, and its loss by hand."""

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
from unime.openmoji.views import View


ROOT = Path(__file__).resolve().parents[2]
EMOJI = (3, 40, 41, 900)
CPU = ("--use_cpu", "true", "--tf32", "false", "--dataloader_num_workers", 2)


@pytest.fixture(scope="module")
def tower(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(ROOT / "recipes" / "tiny" / "tower.py")


@pytest.fixture(scope="module")
def teacher() -> UniMEModel:
    return load_model(str(ROOT / "checkpoints" / "unime-tiny"), dtype="float32", attn_implementation="eager")[0]


@pytest.fixture(scope="module")
def drawings(tower: ModuleType) -> Tensor:
    _, processor = load_model(str(ROOT / "checkpoints" / "unime-tiny"))
    return tower.pixel_values(processor.image_processor, [draw_image(View.whole(index).spec) for index in EMOJI])


def test_rows_are_drawings_with_openmojis_image_of_the_same_content(tower: ModuleType):
    rows = tower.StyledImages(tower.ScriptArguments(num_rows=60, styles=["openmoji"]), seed=1)
    again = tower.StyledImages(tower.ScriptArguments(num_rows=60, styles=["openmoji"]), seed=1)
    singles = 0
    for index in range(60):
        row = rows[index]
        assert row["image"].tobytes() == again[index]["image"].tobytes()
        assert row["image"].mode == "RGB"
        if row["emoji"] == tower.NO_EMOJI:
            assert row["target"].mode == "RGB" and row["image"].size == row["target"].size
            continue
        singles += 1
        assert same_drawing()[row["emoji"]] == row["emoji"]
        assert row["target"] is None  # the features of whole drawings are known
        assert row["image"].tobytes() != draw_image(View.whole(row["emoji"]).spec).tobytes()
    assert 30 < singles < 54  # 0.7 of them


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
    distillation = tower.TowerDistillation(model, teacher, drawings, EMOJI).train()
    statistics = next(layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    before = statistics.running_mean.clone()
    distillation(drawings, torch.tensor(EMOJI))["loss"].backward()
    assert not torch.equal(before, statistics.running_mean)  # they are learned here
    _, processor = load_model(str(ROOT / "checkpoints" / "unime-tiny"))
    assert tower.image_features(model, drawings).shape == tower.image_features(teacher, drawings).shape
    save_checkpoint(model.eval(), processor, tmp_path)
    loaded, processor = load_model(str(tmp_path), dtype="float32")
    items = ["a cat", Image.new("RGB", (96, 96), "red")]
    np.testing.assert_allclose(loaded.encode(items, processor), model.encode(items, processor), atol=1e-5)
    np.testing.assert_allclose(loaded.encode("a cat", processor), teacher.encode("a cat", processor), atol=1e-5)


@pytest.mark.slow
def test_the_command_trains_a_new_tower(run_script: Callable[..., None], tmp_path: Path):
    tiny = ROOT / "recipes" / "tiny"
    sizes = ["--num_rows", 8, "--per_device_train_batch_size", 4, "--max_steps", 2, "--warmup_steps", 0]
    settings = ["--config", tiny / "tower.yaml", *CPU, "--styles", "openmoji", "--output_dir", tmp_path, *sizes]
    run_script(tiny / "tower.py", *settings)
    model, processor = load_model(str(tmp_path))
    assert type(model.backbone).__name__ == "FastVlmModel"
    assert processor.image_processor.crop_size["height"] == 96  # vLLM counts tokens by it
    vectors = model.encode(["a cat", Image.new("RGB", (96, 96), "red")], processor)
    assert np.isfinite(vectors).all() and vectors[0] @ vectors[1] < 0.999


def test_a_batch_has_targets_for_scenes_and_crops_only(tower: ModuleType):
    _, processor = load_model(str(ROOT / "checkpoints" / "unime-tiny"))
    red, blue, green = (Image.new("RGB", (96, 96), color) for color in ("red", "blue", "green"))
    rows = [{"image": red, "target": None, "emoji": 3}, {"image": blue, "target": green, "emoji": tower.NO_EMOJI}]
    collator = tower.ImageCollator(processor.image_processor)
    batch = collator(rows)
    assert batch["pixels"].equal(tower.pixel_values(processor.image_processor, [red, blue]))
    assert batch["targets"].equal(tower.pixel_values(processor.image_processor, [green]))
    assert batch["labels"].tolist() == [3, tower.NO_EMOJI]
    assert set(collator(rows[:1])) == {"pixels", "labels"}


def test_the_loss_at_the_start_is_that_of_the_right_answers(tower: ModuleType, teacher: UniMEModel, drawings: Tensor):
    distillation = tower.TowerDistillation(teacher, teacher, drawings, EMOJI)
    labels = torch.tensor([40, tower.NO_EMOJI, 900])
    pixels = drawings[[1, 2, 3]]
    # The features are right, so only the cross-entropy is left: cosine 1 with the right drawing.
    cosines = distillation.references @ distillation.references.T
    expected = torch.stack([(cosines[place] - 1).div(tower.TEMPERATURE).exp().sum().log() for place in (1, 3)]).mean()
    assert distillation(pixels, labels, pixels[1:2])["loss"].item() == pytest.approx(expected.item(), abs=1e-4)
    # The target of a scene is another image: now its error counts, in units of the variance.
    features = tower.image_features(teacher, drawings[[2, 0]])
    error = (features[0] - features[1]).square().mean() / 3 / distillation.variance
    loss = distillation(pixels, labels, drawings[:1])["loss"].item()
    assert loss == pytest.approx((expected + error).item(), rel=1e-4)
    # A drawing that is taken for another counts in both parts.
    wrong = tower.image_features(teacher, drawings[[0, 1]])
    error = (wrong[0] - wrong[1]).square().mean() / distillation.variance
    confusion = (cosines[1] - cosines[1, 0]).div(tower.TEMPERATURE).exp().sum().log()
    loss = distillation(drawings[1:2], torch.tensor([3]))["loss"].item()
    assert loss == pytest.approx((error + confusion).item(), rel=1e-4)


def test_steps_lower_the_loss(tower: ModuleType, teacher: UniMEModel, drawings: Tensor):
    torch.manual_seed(0)
    distillation = tower.TowerDistillation(tower.with_convolutional_tower(teacher), teacher, drawings, EMOJI).train()
    optimizer = torch.optim.AdamW([p for p in distillation.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(8):
        losses.append(distillation(1 - drawings, torch.tensor(EMOJI))["loss"])
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    assert set(distillation.state_dict()) == {f"model.{name}" for name in distillation.model.state_dict()}
