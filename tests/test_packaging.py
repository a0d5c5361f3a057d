"""What `pyproject.toml` declares is what the package imports."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]
# The extra that makes every module of a subpackage importable; modules with another extra are named.
EXTRAS = {
    "unime": None,
    "unime.cli": None,
    "unime.cli.plan": "train",
    "unime.cli.plan_evaluation": "train",
    "unime.export": "export",
    "unime.storage": "train",
    "unime.data": "train",
    "unime.data.teacher": "sentence-transformers",
    "unime.trainers": "train",
    "unime.eval": "eval",
    "unime.eval.encoders.mteb_encoder": "mteb",
    "unime.eval.mteb_suites": "mteb",
    "unime.corpus": "index",
    "unime.index": "index",
    "unime.serve": "serve",
    "unime.openmoji": "openmoji",
    "unime.page": "page",
    "unime.app": "page",
}
DISTRIBUTIONS = packages_distributions()


def modules() -> dict[str, Path]:
    """Return every module of the package by its full name, subpackages under their own name."""
    names = {}
    for package in PACKAGES:
        for path in ROOT.joinpath(*package.split(".")[1:]).glob("*.py"):
            names[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    return names


MODULES = modules()


@cache
def imports(name: str, lazy: bool) -> list[str]:
    """Return the full names that a module imports: when it is imported itself, or (`lazy`) inside functions."""
    tree = ast.parse(MODULES[name].read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    type_checking = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    inside = {id(node) for outer in functions for node in ast.walk(outer)}
    skipped = {id(node) for outer in type_checking for node in ast.walk(outer)}
    package = name if MODULES[name].stem == "__init__" else name.rpartition(".")[0]
    names = []
    for node in ast.walk(tree):
        if id(node) in skipped or (id(node) in inside) != lazy:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parts, *([node.module] if node.module else [])])
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    return names


def third_party(names: list[str]) -> set[str]:
    """Return the distributions that the names belong to."""
    roots = {name.partition(".")[0] for name in names} - {"unime"} - sys.stdlib_module_names
    return {canonicalize_name(DISTRIBUTIONS.get(root, [root])[0]) for root in roots}


@cache
def needed(name: str) -> frozenset[str]:
    """Return the distributions that importing a module takes, through the modules of the package that it imports."""
    reached, queue = set(), [name]
    while queue:
        module = queue.pop()
        if module in MODULES and module not in reached:
            reached.add(module)
            queue += [*imports(module, lazy=False), module.rpartition(".")[0]]
    return frozenset().union(*(third_party(imports(module, lazy=False)) for module in reached))


@cache
def declared(extra: str | None) -> frozenset[str]:
    """Return the distributions of an extra and of the core, through references of one extra to another."""
    lines = [*PYPROJECT["project"]["dependencies"]]
    lines += PYPROJECT["project"]["optional-dependencies"][extra] if extra else []
    names = set()
    for requirement in map(Requirement, lines):
        if requirement.name == "unime":
            names |= set().union(*map(declared, requirement.extras))
        else:
            names.add(canonicalize_name(requirement.name))
    return frozenset(names)


def extra_of(name: str) -> str | None:
    """Return the extra of the longest entry of `EXTRAS` that a module lies under."""
    return EXTRAS[max((known for known in EXTRAS if f"{name}.".startswith(f"{known}.")), key=len)]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_needs_only_the_core_and_its_extra(name: str) -> None:
    missing = needed(name) - declared(extra_of(name))
    assert not missing, f"{name} cannot be imported with the extra {extra_of(name)!r}: declare {sorted(missing)}"


@pytest.mark.parametrize("name", MODULES)
def test_what_a_function_imports_is_declared_in_some_extra(name: str) -> None:
    everything = declared(None).union(*map(declared, PYPROJECT["project"]["optional-dependencies"]))
    missing = third_party(imports(name, lazy=True)) - everything
    assert not missing, f"{name} imports {sorted(missing)} inside a function: declare it in an extra"


def test_every_subpackage_is_installed() -> None:
    folders = {path.parent for path in ROOT.glob("*/**/__init__.py")}
    folders = {
        path for path in folders if not path.relative_to(ROOT).parts[0].startswith((".", "build", "runs", "tests"))
    }
    assert sorted(PACKAGES) == sorted(["unime", *(f"unime.{'.'.join(p.relative_to(ROOT).parts)}" for p in folders)])


def test_every_data_file_of_the_package_is_installed() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        folder = ROOT.joinpath(*package.split(".")[1:])
        files = {path for end in ("jinja", "css", "typed") for path in folder.glob(f"*.{end}")}
        shipped = {path for pattern in patterns.get(package, []) for path in folder.glob(pattern)}
        assert files <= shipped, f"package-data of {package} lacks {sorted(path.name for path in files - shipped)}"


def test_the_extra_all_holds_every_extra_of_a_user() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    (line,) = extras["all"]
    for_developers = {"all", "dev", "docs", "slow", "bench", "study", "ray", "deepspeed", "liger"}
    assert Requirement(line).extras == set(extras) - for_developers


def test_every_pin_satisfies_its_bound() -> None:
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    versions = {canonicalize_name(name): version for name, version in pins}
    lines = [*PYPROJECT["project"]["dependencies"]]
    lines += [line for extra in PYPROJECT["project"]["optional-dependencies"].values() for line in extra]
    for requirement in map(Requirement, lines):
        if requirement.name != "unime":
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} excludes the pin {version}"


def test_the_version_stands_once() -> None:
    assert f'__version__ = "{PYPROJECT["project"]["version"]}"' in (ROOT / "__init__.py").read_text()
