"""The package's layout: the direction of imports, and file names."""

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import unime


ROOT = Path(__file__).parents[1]
# Subpackages in the direction of imports. Each may import the root files and the subpackages in its set.
SUBPACKAGES = {
    "storage": set(),
    "data": {"storage"},
    "trainers": {"storage", "data"},
    "eval": {"storage", "data"},
    "corpus": {"storage", "data"},
    "index": {"storage", "data", "corpus"},
    "serve": set(),
    "export": set(),
    "openmoji": {"storage", "data", "corpus", "eval"},
    "page": {"data", "corpus", "index", "openmoji"},
    "cli": {"storage", "data", "trainers", "eval", "corpus", "index", "serve", "export"},
}
# The OpenMoji data is an optional extra: other subpackages may import it only inside the function that needs it.
LAZY_OPENMOJI = {"data", "eval", "corpus"}
ROOT_MODULES = [
    "extras",
    "json_output",
    "isolate_failures",
    "image_formats",
    "image_colors_unime",
    "configuration_phi3_v",
    "image_processing_phi3_v",
    "processing_phi3_v",
    "modeling_phi3_v",
    "configuration_unime",
    "processing_unime",
    "windows_unime",
    "image_tokens_unime",
    "image_input_unime",
    "image_size",
    "batching_unime",
    "pooling_unime",
    "judging",
    "rerank_answers",
    "rerank_cross_encoder",
    "encoding_unime",
    "judge_model",
    "judge_endpoint",
    "cpu_prepacking_unime",
    "modeling_unime",
    "unime_phi3_v",
    "native_form",
    "checkpoint_safety",
    "reranker",
    "adapters",
    "presets",
    "llava_qwen",
    "checkpoint",
    "checkpoint_average",
    "__init__",
]
MAY_IMPORT = {file: set(ROOT_MODULES[:index]) for index, file in enumerate(ROOT_MODULES)} | {
    name: {*ROOT_MODULES, name, *allowed} for name, allowed in SUBPACKAGES.items()
}

APP = ROOT / "app.py"  # a Hub Space runs it as a script
PACKAGE = sorted({*ROOT.glob("*.py")} - {APP}) + [
    path for folder in SUBPACKAGES for path in sorted((ROOT / folder).rglob("*.py"))
]
SCRIPTS = [
    APP,
    *(
        path
        for folder in ("benchmarks", "metrics", "recipes", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ),
]


# File names that two modules of the package share, with the reason.
SHARED_FILE_NAMES = {
    "__init__.py": "every subpackage has one",
    "__main__.py": "`python -m unime.cli` and `python -m unime.eval`",
}


def relative_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(source: str, package: list[str], lazy: bool = True) -> list[tuple[int, str]]:
    """Return (relative level, full dotted name) of the imports in `source`, with those inside functions if `lazy`."""
    imports = []
    tree = ast.parse(source)
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            imports += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            module = [*parents, *([node.module] if node.module else [])]
            imports += [(node.level, ".".join([*module, alias.name])) for alias in node.names]
    return imports


def wrong_imports(name: str, source: str) -> list[str]:
    """Return an error for every import of the package's file `name` that breaks the layout."""
    parts = name.removesuffix(".py").split("/")
    module, package = parts[0], ["unime", *parts[:-1]]
    if module not in MAY_IMPORT:
        return [f"{name} is not listed: add {module!r} to MAY_IMPORT, which states the direction of imports"]
    errors = []
    for level, target in imports_of(source, package):
        if level == 0 and target.split(".")[0] == "unime":
            errors.append(f"{name} imports {target} by its absolute name: inside the package imports are relative")
        elif level:
            submodules = target.split(".")[1:]
            first = next(iter(submodules), "")
            imported = first if first in (*MAY_IMPORT, "recipes", "tests") else "__init__"
            is_lazy = (level, target) not in imports_of(source, package, lazy=False)
            if imported == "openmoji" and module in LAZY_OPENMOJI and is_lazy:
                continue
            if imported not in MAY_IMPORT[module]:
                errors.append(f"{name} imports {target}: {module} may import only {sorted(MAY_IMPORT[module])}")
    if len(parts) == 1:
        not_siblings = re.findall(r"^\s*from\s+(?:\.\w+\.[\w.]+|\.)\s+import.*", source, re.MULTILINE)
        errors += [
            f"{name} has {line.strip()!r}: root files import siblings only, because the Hub copies nothing else"
            for line in not_siblings
        ]
    return errors


@pytest.mark.parametrize("path", PACKAGE, ids=relative_name)
def test_imports_point_in_one_direction(path: Path) -> None:
    errors = wrong_imports(relative_name(path), path.read_text())
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize("path", SCRIPTS, ids=relative_name)
def test_recipes_and_tests_use_the_installed_package(path: Path) -> None:
    for level, target in imports_of(path.read_text(), ["unime"]):
        assert not level, (
            f"{relative_name(path)} imports {target} relatively: recipes and tests import `from unime...`"
        )
        assert target.split(".")[:2] not in (["unime", "recipes"], ["unime", "tests"]), (
            f"{relative_name(path)} imports {target}, which an installed package does not have"
        )


@pytest.mark.parametrize("path", PACKAGE, ids=relative_name)
def test_every_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{relative_name(path)} has no module docstring"


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("configuration_unime.py", "from .modeling_unime import UniMEModel", "may import only"),
        ("modeling_unime.py", "def f():\n    from .trainers.losses import contrastive_loss", "may import only"),
        ("modeling_unime.py", "from . import processing_unime", "siblings only"),
        ("modeling_unime.py", '"""\nfrom .trainers.losses import contrastive_loss\n"""', "siblings only"),
        ("checkpoint.py", "from . import UniMEModel", "may import only"),
        ("data/rows.py", "from ..eval.tasks import RetrievalTask", "may import only"),
        ("data/sources.py", "from ..openmoji.dataset import openmoji_rows", "may import only"),
        ("trainers/losses.py", "def f():\n    from ..openmoji import dataset", "may import only"),
        ("trainers/losses.py", "from ..eval import metrics", "may import only"),
        ("eval/tasks.py", "from ..trainers import ContrastiveTrainer", "may import only"),
        ("index/index.py", "from ..eval import metrics", "may import only"),
        ("serve/server.py", "from ..index.index import Index", "may import only"),
        ("openmoji/dataset.py", "from ..recipes import tiny", "may import only"),
        ("openmoji/dataset.py", "import unime.configuration_unime", "absolute"),
        ("helpers.py", "", "is not listed"),
    ],
)
def test_a_wrong_import_is_reported_with_the_file(name: str, source: str, reason: str) -> None:
    errors = wrong_imports(name, source)
    assert errors and all(error.startswith(name) for error in errors)
    assert any(reason in error for error in errors)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("modeling_unime.py", "from .configuration_unime import UniMEConfig\nimport torch"),
        ("openmoji/dataset.py", "from .catalogue import catalogue\nfrom ..batching_unime import micro_batches"),
        ("data/sources.py", "def f():\n    from ..openmoji.dataset import openmoji_rows"),
        ("trainers/losses.py", "from .. import UniMEModel\nfrom ..data.collator import ContrastiveCollator"),
    ],
)
def test_an_allowed_import_passes(name: str, source: str) -> None:
    assert wrong_imports(name, source) == []


def test_no_file_makes_pytest_import_the_package_under_the_name_of_its_folder() -> None:
    files = [ROOT / "conftest.py", *(ROOT / "tests").rglob("__init__.py")]
    present = [relative_name(path) for path in files if path.exists()]
    assert not present, f"remove {present}: pytest would import the package a second time under the name of the folder"


def test_the_package_is_imported_once() -> None:
    file = str(Path(unime.__file__).parent / "modeling_unime.py")
    names = [name for name, module in sys.modules.items() if vars(module).get("__file__") == file]
    assert names == ["unime.modeling_unime"], f"{file} is imported as {names}"


def test_no_two_modules_of_the_package_share_a_file_name() -> None:
    modules = defaultdict(list)
    for path in PACKAGE:
        modules[path.name].append(relative_name(path))
    shared = {name: paths for name, paths in modules.items() if len(paths) > 1 and name not in SHARED_FILE_NAMES}
    assert not shared, f"name these files after what sets them apart: {shared}"
    unused = [name for name in SHARED_FILE_NAMES if len(modules[name]) < 2]
    assert not unused, f"no longer shared, remove from SHARED_FILE_NAMES: {unused}"
