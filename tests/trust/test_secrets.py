"""Published, printed and logged text contains neither tokens nor the name of the user."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from file_modes import private_files
from peft import LoraConfig
from typer.testing import CliRunner

from unime import load_model, save_checkpoint
from unime.checkpoint import redact_home
from unime.cli.main import app
from unime.eval.report.model_card import evaluated_card, write_files
from unime.eval.run_metadata import run_metadata
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, merge_checkpoint


TOKEN = "hf_aVerySecretTokenOfTheHub"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home folder of a user whose environment contains tokens."""
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "UNIME_API_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, TOKEN)
    return home


def leaks(folder: Path) -> list[str]:
    """Return the files that contain the token or the name of the user, except those for resuming, which stay local."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "checkpoint-" not in str(path)]
    assert files
    return [path.name for path in files if TOKEN.encode() in path.read_bytes() or b"alice" in path.read_bytes()]


ROWS = [
    {"query": {"text": name}, "positive": {"text": name * 2}, "negatives": [], "task": "letters", "label": None}
    for name in "abcdefgh"
]


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_the_files_of_a_training_contain_no_secrets(
    tiny_model: Callable[[str], Path],
    home: Path,
    kind: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    shutil.copytree(tiny_model("llava"), home / "backbone")
    base = str(save_checkpoint(*load_model(str(home / "backbone"), dtype="float32"), home / "base"))
    assert leaks(home / "base") == []
    settings = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
    args = ContrastiveConfig(str(home / "run"), hub_token=TOKEN, logging_steps=1, save_steps=1, **settings)
    lora = LoraConfig(r=2, target_modules=["q_proj"]) if kind == "adapter" else None
    model, processor = load_model(base)
    with caplog.at_level(logging.DEBUG):
        trainer = ContrastiveTrainer(model, args, train_dataset=ROWS, processing_class=processor, peft_config=lora)
        trainer.train()
        trainer.save_model()
    output = home / "run"
    assert leaks(output) == []
    assert not list(output.glob("*.bin"))  # no pickles either
    assert private_files(output) == []
    assert not any(TOKEN.encode() in path.read_bytes() for path in (output / "checkpoint-1").iterdir())
    if kind == "adapter":
        assert "base_model: ~/base" in (output / "README.md").read_text()
        output = merge_checkpoint(base, output, home / "merged")
    write_files(output, evaluated_card(load_model(str(output))[0], "unime"))
    assert private_files(output) == []
    assert "~/base" in (output / "README.md").read_text()  # the starting point of the training is still named
    assert leaks(output) == []
    assert TOKEN not in caplog.text and TOKEN not in "".join(capfd.readouterr())


def test_the_metadata_of_a_run_has_its_command_but_not_the_user(home: Path, tiny_model: Callable[[str], Path]):
    model = str(shutil.copytree(tiny_model("llava"), home / "model"))
    metadata = run_metadata(model, None, ["--models", f"UniME={model}", "--output_dir", str(home / "results")], seed=1)
    assert metadata["model"] == "~/model"
    assert metadata["command"] == "python -m unime.eval --models UniME=~/model --output_dir ~/results"
    assert "alice" not in json.dumps(metadata) and TOKEN not in json.dumps(metadata)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{home}/a/b", "~/a/b"),
        ("--model X={home}/a --to {home}/b", "--model X=~/a --to ~/b"),
        ("{home}s/a", "{home}s/a"),  # the home of another user, with the same prefix
        ("org/model", "org/model"),
        ("runs/model", "runs/model"),
    ],
)
def test_the_home_folder_is_shown_as_a_tilde(home: Path, text: str, shown: str):
    assert redact_home(text.format(home=home)) == shown.format(home=home)


def test_paths_stay_if_the_home_folder_is_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/")
    assert redact_home("/models/a") == "/models/a"


@pytest.mark.parametrize("command", [["--help"], ["serve", "--help"], ["serve", "--port", "99999"], ["info", "/none"]])
def test_no_command_prints_secrets_of_the_environment(home: Path, command: list[str]):
    result = CliRunner().invoke(app, command)
    assert TOKEN not in result.output and TOKEN not in str(result.exception)
