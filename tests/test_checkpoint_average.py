"""The mean of checkpoints: by hand, in their precision, and refused for different models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

from unime import UniMEModel, load_model, processor_from_backbone, save_checkpoint
from unime.checkpoint_average import average_checkpoints
from unime.cli.main import app


@pytest.fixture(scope="module")
def checkpoints(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return three checkpoints, of which the last has another backbone."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed, backbone in enumerate(["llava", "llava", "qwen2-vl"]):
        torch.manual_seed(seed)
        model = UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model(backbone)))
        save_checkpoint(model, processor_from_backbone(str(tiny_model(backbone))), folder / str(seed))
    return [folder / str(seed) for seed in range(3)]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_model(str(checkpoint))[0].state_dict()


@pytest.mark.parametrize(("options", "share"), [([], 0.5), (["--weight", 3, "--weight", 1], 0.75)])
def test_the_command_writes_the_weighted_mean_of_two_checkpoints(
    options: list, share: float, checkpoints: list[Path], tmp_path: Path
):
    command = ["average", *checkpoints[:2], "--output", tmp_path / "mean", *options]
    done = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
    assert done.stdout == f"averaged into {tmp_path / 'mean'}\n"
    first, second = map(weights, checkpoints[:2])
    mean = weights(tmp_path / "mean")
    assert mean.keys() == first.keys() and any((first[name] != second[name]).any() for name in first)
    for name, value in mean.items():
        torch.testing.assert_close(value, share * first[name] + (1 - share) * second[name], atol=1e-7, rtol=0)


def test_half_precision_is_averaged_in_float32(checkpoints: list[Path], tmp_path: Path):
    three = [checkpoints[0]] * 3  # sums in bfloat16 would not give the weights back
    average_checkpoints(three, tmp_path, dtype=torch.bfloat16)
    expected = load_model(str(checkpoints[0]), dtype=torch.bfloat16)[0].state_dict()
    for name, value in load_model(str(tmp_path), dtype=torch.bfloat16)[0].state_dict().items():
        assert torch.equal(value, expected[name])


def test_what_cannot_be_averaged_is_refused(checkpoints: list[Path], tmp_path: Path):
    with pytest.raises(ValueError, match="are not of one model: .* tensors differ in name or shape, such as"):
        average_checkpoints([checkpoints[0], checkpoints[2]], tmp_path / "mean")
    with pytest.raises(ValueError, match="nothing to average in 1 checkpoint: name at least two"):
        average_checkpoints(checkpoints[:1], tmp_path / "mean")
    with pytest.raises(ValueError, match="expected one weight for each of the 2 checkpoints"):
        average_checkpoints(checkpoints[:2], tmp_path / "mean", [1.0])
    assert not (tmp_path / "mean").exists()
