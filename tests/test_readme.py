"""The Python of the README runs as it is, and the commands of the README and the documentation exist."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

from unime.cli.main import app
from unime.cli.prepare import ModelArguments
from unime.data.sources import DataArguments
from unime.eval.__main__ import EvaluationArguments
from unime.eval.benchmarks import BenchmarkArguments
from unime.trainers import ContrastiveConfig


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/README.md"), *(ROOT / "docs").rglob("*.md")]
PROGRAMS = ("accelerate", "make", "pip", "python", "unime")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
# Commands that parse their options with dataclasses, beside or instead of typer's options.
DATACLASSES = {
    "eval": (EvaluationArguments, BenchmarkArguments),
    "check-data": (DataArguments,),
    "prepare": (DataArguments, ModelArguments),
    "plan": (DataArguments, ContrastiveConfig),
}


def commands(page: Path) -> list[list[str]]:
    """Return the words of each command of this project in the bash blocks of a page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines = [line for line in lines if line.split(" ")[0] in PROGRAMS]
    return [shlex.split(line, comments=True) for line in lines]


def parameters(page: Path) -> list:
    return [pytest.param(command, id=f"{page.relative_to(ROOT)}: {' '.join(command)}") for command in commands(page)]


COMMANDS = [parameter for page in PAGES for parameter in parameters(page)]


def dataclass_options(*dataclasses: type) -> set[str]:
    """Return the options of an `HfArgumentParser` of these dataclasses, with their aliases."""
    options = [field for dataclass in dataclasses for field in fields(dataclass)]
    return {f"--{field.name}" for field in options} | {
        alias for field in options for alias in field.metadata.get("aliases", ())
    }


@cache
def command_options(name: str) -> set[str]:
    """Return the options of `unime NAME`."""
    options = {option for parameter in get_command(app).commands[name].params for option in parameter.opts}
    return options | dataclass_options(*DATACLASSES.get(name, ()))


@cache
def script_options(path: Path) -> set[str]:
    """Return the options of a script without running it: the fields of its dataclasses and its literal options."""
    code = path.read_text()
    nodes = list(ast.walk(ast.parse(code)))
    options = {
        f"--{node.target.id}"
        for node in nodes
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ("trl", "unime"):
            dataclasses = [alias.name for alias in node.names if alias.name.endswith(("Arguments", "Config"))]
            options |= dataclass_options(*(getattr(import_module(node.module), name) for name in dataclasses))
    if "TrlParser" in code:
        options.add("--config")
    return options | set(re.findall(r'"(--[a-z_-]+)"', code)) | {"--help"}


def hyphenated(options: set[str]) -> set[str]:
    return {option.replace("_", "-") for option in options}


def used_options(words: list[str]) -> set[str]:
    return hyphenated({word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)})


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_every_snippet_of_the_readme_runs(index: int, tmp_path: Path) -> None:
    for name in ("checkpoints", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run(
        [sys.executable, "-c", SNIPPETS[index]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_readme_has_three_snippets() -> None:
    assert len(SNIPPETS) == 3


def test_commands_are_found_in_the_readme() -> None:
    assert {command[0] for command in commands(ROOT / "README.md")} == set(PROGRAMS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_of_the_documentation_exists(command: list[str]) -> None:
    program, *words = command
    if program == "make":
        unknown = {word for word in words if "=" not in word} - set(TARGETS)
    elif program == "pip":
        groups = re.findall(r"\.\[(.*)\]", " ".join(words))
        unknown = {extra for group in groups for extra in group.split(",")} - set(EXTRAS)
    elif program == "unime":
        assert words[0] in get_command(app).commands
        unknown = used_options(words[1:]) - hyphenated(command_options(words[0]))
    elif "unime.eval" in words:
        unknown = used_options(words[words.index("unime.eval") :]) - hyphenated(
            dataclass_options(*DATACLASSES["eval"])
        )
    else:
        position = next(index for index, word in enumerate(words) if word.endswith(".py"))
        path = ROOT / words[position]
        assert path.is_file(), f"{path} does not exist"
        unknown = used_options(words[position:]) - hyphenated(script_options(path))
    assert not unknown, f"unknown: {sorted(unknown)}"
    files = [word for word in words if re.match(r"(recipes|checkpoints|docs|benchmarks)/", word)]
    missing = [file for file in files if not (ROOT / file).exists()]
    assert not missing, f"missing: {missing}"


def test_every_extra_that_the_readme_names_exists() -> None:
    named = {
        extra
        for group in re.findall(r"\(extras? (.*?)\)", README, flags=re.DOTALL)
        for extra in group.split("`")[1::2]
    }
    listed = re.search(r"# extras: ([a-z -]+) \.\.\.", README)[1].split()
    assert named and listed and (named | set(listed)) <= set(EXTRAS), sorted((named | set(listed)) - set(EXTRAS))


def test_the_scores_on_unseen_images_are_those_of_the_benchmark() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "unseen_images.json").read_text())["rows"]
    numbers = re.findall(r"^\| [^|]+\| +(\d+) \| +([\d.]+) \| +([\d.]*) \| +([\d.]+) \|$", README, re.MULTILINE)

    def shown(share: float | str) -> str:
        return share if isinstance(share, str) else f"{100 * share:.1f}"

    measured = [(row["candidates"], *(shown(row[name]) for name in ("chance", "untrained", "hit@1"))) for row in rows]
    assert sorted((int(count), *shares) for count, *shares in numbers) == sorted(measured)


def test_the_supplementary_scores_are_those_of_the_card() -> None:
    results = json.loads((ROOT / "checkpoints" / "unime-tiny" / "results-openmoji.json").read_text())["Styles"]
    tasks = results["supplementary_tasks"]
    scores = [tasks[f"{kind}_name_t2i"]["hit@1"] for kind in ("plain", "dark", "unseen")]
    scores += [tasks["unseen_name_t2i"]["baseline"], tasks["plain_subcategory"]["hit@1"]]
    scores.append(results["tasks"]["subcategory"]["hit@1"])
    paragraph = next(part for part in README.split("\n\n") if part.startswith("It recognises the drawings of artists"))
    assert re.findall(r"([\d.]+)%", paragraph) == [f"{100 * score:.1f}" for score in scores]
