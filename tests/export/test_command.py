"""`unime export` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from safetensors import safe_open
from typer.testing import CliRunner

from unime import load_model, save_checkpoint
from unime.cli.export import export


@pytest.fixture(scope="module")
def run() -> Callable[..., str]:
    """Return a function that runs the command and returns its standard output."""
    app = typer.Typer()
    app.command()(export)

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_plain_keeps_the_dtype(run: Callable[..., str], tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = save_checkpoint(*load_model(str(tiny_model("llava")), dtype="float16"), tmp_path / "half")
    run("--model", checkpoint, "--output", tmp_path / "plain")
    with safe_open(tmp_path / "plain/model.safetensors", "pt") as weights:
        assert {str(weights.get_tensor(key).dtype) for key in weights.keys()} == {"torch.float16"}


def test_plain_is_the_default_and_keeps_the_licence(run: Callable[..., str], tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    report = json.loads(run("--model", root / "checkpoints/unime-tiny", "--output", tmp_path / "plain", "--json"))
    assert report["format"] == "plain" and not any(name.endswith(".py") for name in report["files"])
    assert report["files"]["config.json"] == (tmp_path / "plain/config.json").stat().st_size
    assert "license: " in (tmp_path / "plain/README.md").read_text()
    with pytest.raises(ValueError, match="is not empty: choose a new folder"):
        run("--model", root / "checkpoints/unime-tiny", "--output", tmp_path / "plain")


def test_weights_are_converted_on_request(
    run: Callable[..., str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    output = run("--model", tiny_model("llava"), "--output", tmp_path / "plain", "--dtype", "bfloat16")
    assert "model.safetensors" in output and f"wrote {tmp_path / 'plain'}" in output
    assert json.loads((tmp_path / "plain/config.json").read_text())["dtype"] == "bfloat16"


def test_onnx_in_half_precision_is_refused(run: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an ONNX export is float32, not float16"):
        run("--format", "onnx", "--output", tmp_path / "onnx", "--dtype", "float16")


@pytest.mark.slow
def test_onnx_reports_the_largest_difference(
    run: Callable[..., str], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    report = json.loads(
        run("--model", tiny_model("llava"), "--output", tmp_path / "onnx", "--format", "onnx", "--json")
    )
    assert 0 <= report["largest difference"] <= 1e-5 and report["files"]["model.onnx"] > 0
