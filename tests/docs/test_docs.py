"""The documentation: its code runs, and every name that it promises has a docstring."""

import re
import runpy
import shlex
import sys
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from inspect import getdoc
from pathlib import Path

import pytest

import unime
import unime.trainers
from unime.cli.main import app


ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# A block is skipped if a comment on the line before it says what it needs: <!-- needs: GPU -->
BLOCK = re.compile(r"(?:^<!-- needs: (?P<needs>[^\n]+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
NOT_CODE = {"json", "yaml", "text"}
IDENTIFIER = re.compile(r"^::: ([\w.]+)$", flags=re.MULTILINE)


def page_name(page: Path) -> str:
    return page.relative_to(ROOT / "docs").as_posix()


def blocks(page: Path) -> list[re.Match]:
    return [match for match in BLOCK.finditer(page.read_text()) if match["language"] not in NOT_CODE]


def documented() -> list[str]:
    return [
        name for page in (ROOT / "docs" / "reference").glob("*.md") for name in IDENTIFIER.findall(page.read_text())
    ]


@cache
def resolve(name: str) -> object:
    """Return the object that a full name stands for."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=page_name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("checkpoints", "docs", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    namespace = {"__name__": "docs"}
    for block in blocks(page):
        if block["needs"]:
            continue
        line = page.read_text()[: block.start("code")].count("\n") + 1
        if block["language"] == "python":
            exec(compile("\n" * (line - 1) + block["code"], page_name(page), "exec"), namespace)
        else:
            for command in block["code"].replace("\\\n", "").splitlines():
                program, *arguments = shlex.split(command)
                # They run in this process, which has imported torch already.
                if program == "python":
                    monkeypatch.setattr(sys, "argv", arguments)
                    runpy.run_path(arguments[0], run_name="__main__")
                    continue
                assert program == "unime", f"{page_name(page)}, line {line}: the test cannot run {program}"
                app(arguments, prog_name="unime", standalone_mode=False)


def test_every_block_of_code_has_a_language_that_the_test_knows() -> None:
    languages = {match["language"] for page in PAGES for match in BLOCK.finditer(page.read_text())}
    assert languages <= {"python", "bash", *NOT_CODE}
    for page in PAGES:
        text = page.read_text()
        assert len(re.findall(r"^```", text, flags=re.MULTILINE)) == 2 * len(BLOCK.findall(text)), page_name(page)


@pytest.mark.parametrize("name", documented())
def test_a_documented_name_has_a_docstring(name: str) -> None:
    assert getdoc(resolve(name)), f"{name} has no docstring"


def test_every_public_name_is_in_the_reference() -> None:
    objects = [resolve(name) for name in documented()]
    for module in (unime, unime.trainers):
        for name in module.__all__:
            assert getattr(module, name) in objects, f"docs/reference lacks {module.__name__}.{name}"


def test_links_to_files_that_are_not_pages_become_text() -> None:
    spec = spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text, images = hooks.rewrite_links("studies/README.md")
    assert images and all((ROOT / image).is_file() for image in images)
    assert "](../" not in text
    formula = '<span class="arithmatex">\\(a &lt; b\\)</span>'
    assert hooks.on_page_content(f"<p>{formula}</p>").startswith("<p><math")
