"""The direction of imports, and the other rules of the tree that a reader should be able to rely on."""

import ast
import re
import sys
from pathlib import Path

import pytest

import unime


ROOT = Path(__file__).parents[1]
# Subpackages in the direction of imports: each may import the root files and the subpackages in its set.
SUBPACKAGES = {
    "storage": set(),
    "data": {"storage"},
    "trainers": {"storage", "data"},
    "eval": {"storage", "data"},
    "corpus": {"storage", "data"},
    "index": {"storage", "data", "corpus"},
    "serve": {"data"},
    "export": set(),
    "openmoji": {"storage", "data", "corpus", "eval"},
    "page": {"data", "corpus", "index", "openmoji"},
    "cli": {"storage", "data", "trainers", "eval", "corpus", "index", "serve", "export"},
}
# The OpenMoji data is an optional extra: other subpackages may import it only inside the function that needs it.
OPENS_OPENMOJI = {"data", "eval", "corpus"}
ROOT_FILES = [
    "extras",
    "configuration_unime",
    "processing_unime",
    "batching_unime",
    "pooling_unime",
    "encoding_unime",
    "cpu_prepacking_unime",
    "modeling_unime",
    "checkpoint_safety",
    "checkpoint",
    "__init__",
]
MAY_IMPORT = {file: set(ROOT_FILES[:position]) for position, file in enumerate(ROOT_FILES)} | {
    name: {*ROOT_FILES, name, *others} for name, others in SUBPACKAGES.items()
}

PAGE = ROOT / "app.py"  # a Space runs it as a script
PACKAGE = sorted({*ROOT.glob("*.py")} - {PAGE}) + [
    path for folder in SUBPACKAGES for path in sorted((ROOT / folder).rglob("*.py"))
]
SCRIPTS = [
    PAGE,
    *(
        path
        for folder in ("benchmarks", "metrics", "recipes", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ),
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(source: str, package: list[str], whole: bool = True) -> list[tuple[int, str]]:
    """Return (relative level, full dotted name) of every import in `source`; not `whole`: those that run on import."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree) if whole else tree.body:
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = [*above, *([node.module] if node.module else [])]
            found += [(node.level, ".".join([*module, alias.name])) for alias in node.names]
    return found


def wrong_imports(name: str, source: str) -> list[str]:
    """Return a sentence for every import by which the package's file `name` breaks the drawing."""
    parts = name.removesuffix(".py").split("/")
    module, package = parts[0], ["unime", *parts[:-1]]
    if module not in MAY_IMPORT:
        return [f"{name} is not listed: add {module!r} to MAY_IMPORT, which states the direction of imports"]
    wrong = []
    for level, target in imported(source, package):
        if level == 0 and target.split(".")[0] == "unime":
            wrong.append(f"{name} imports {target} by its absolute name: inside the package imports are relative")
        elif level:
            rest = target.split(".")[1:]
            other = rest[0] if rest and rest[0] in (*MAY_IMPORT, "recipes", "tests") else "__init__"
            lazy = (level, target) not in imported(source, package, whole=False)
            if other == "openmoji" and module in OPENS_OPENMOJI and lazy:
                continue
            if other not in MAY_IMPORT[module]:
                wrong.append(f"{name} imports {target}: {module} may import only {sorted(MAY_IMPORT[module])}")
    if len(parts) == 1:
        dotted = re.findall(r"^\s*from\s+(?:\.\w+\.[\w.]+|\.)\s+import.*", source, re.MULTILINE)
        wrong += [f"{name} says {line.strip()!r}: root files import siblings only, without dots" for line in dotted]
    return wrong


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    wrong = wrong_imports(name_of(path), path.read_text())
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_recipes_and_tests_use_the_installed_package(path: Path) -> None:
    for level, target in imported(path.read_text(), ["unime"]):
        assert not level, f"{name_of(path)} imports {target} relatively: recipes and tests import `from unime...`"
        assert target.split(".")[:2] not in (["unime", "recipes"], ["unime", "tests"]), (
            f"{name_of(path)} imports {target}, which an installed package does not have"
        )


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_files_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring at its head"


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
def test_a_wrong_import_is_found_and_the_file_named(name: str, source: str, reason: str) -> None:
    sentences = wrong_imports(name, source)
    assert sentences and all(sentence.startswith(name) for sentence in sentences)
    assert any(reason in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("modeling_unime.py", "from .configuration_unime import UniMEConfig\nimport torch"),
        ("openmoji/dataset.py", "from .emoji import catalogue\nfrom ..batching_unime import micro_batches"),
        ("data/sources.py", "def f():\n    from ..openmoji.dataset import openmoji_rows"),
        ("trainers/losses.py", "from .. import UniMEModel\nfrom ..data.collator import ContrastiveCollator"),
    ],
)
def test_a_right_import_passes(name: str, source: str) -> None:
    assert wrong_imports(name, source) == []


def test_nothing_makes_pytest_import_the_root_under_the_folder_name() -> None:
    traps = [ROOT / "conftest.py", *(ROOT / "tests").rglob("__init__.py")]
    present = [name_of(path) for path in traps if path.exists()]
    assert not present, f"remove {present}: pytest would import the package a second time under the folder's name"


def test_the_package_is_imported_once() -> None:
    file = str(Path(unime.__file__).parent / "modeling_unime.py")
    names = [name for name, module in sys.modules.items() if vars(module).get("__file__") == file]
    assert names == ["unime.modeling_unime"], f"{file} is imported as {names}"
