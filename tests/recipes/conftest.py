"""Fixtures that run recipes as a user does, and small training files."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trl import TrlParser


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def launch() -> Callable[..., str]:
    """Return a function that runs a script of the project from its root and returns its output."""

    def run(*command: object) -> str:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--cpu"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.run(
            [*launcher, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert process.returncode == 0, process.stderr[-4000:]
        return process.stdout

    return run


@pytest.fixture(scope="session")
def parsed() -> Callable[..., tuple[Any, ...]]:
    """Return a function that parses the arguments of a script as the script does: YAML, then the command line."""

    def parse(module: ModuleType, *command: object) -> tuple[Any, ...]:
        classes = tuple(parameter.annotation for parameter in signature(module.main).parameters.values())
        return TrlParser(classes).parse_args_and_config([str(argument) for argument in command])

    return parse


@pytest.fixture(scope="session")
def run_script(script: Callable[[Path], ModuleType], parsed: Callable[..., tuple[Any, ...]]) -> Callable[..., None]:
    """Return a function that runs a script in this process, with the arguments of its command line."""

    def run(path: Path, *command: object) -> None:
        module = script(path)
        module.main(*parsed(module, *command))

    return run


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Write twelve texts with their teacher embeddings."""
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"text number {i}", "teacher": np.eye(12)[i].tolist()} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Write twelve rows of captions and images (`0.png` to `11.png`) in both directions, some with a negative."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for i in range(12):
        Image.fromarray(random.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        caption = {"text": f"the image of number {i}"}
        image = {"image": f"{i}.png", "instruction": "Represent the given image."}
        query, positive = (caption, image) if i % 2 else (image, caption)
        rows.append({"query": query, "positive": positive, "negatives": [{"text": f"no number {i}"}] * (i % 3 == 0)})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
