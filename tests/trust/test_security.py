"""The source runs no untrusted code, pages run no scripts, and archives are never unpacked."""

import ast
import re
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import datasets
import pytest

from unime.cli.main import main
from unime.corpus.corpus import open_corpus
from unime.eval.report.charts import line_chart
from unime.eval.report.model_card import training_table


ROOT = Path(__file__).resolve().parents[2]
SUBPACKAGES = "cli corpus data eval export index openmoji page serve storage trainers".split()
FOLDERS = [*SUBPACKAGES, "recipes", "metrics", "benchmarks"]
SOURCES = sorted({*ROOT.glob("*.py"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))})
# Charts are inserted as SVG, in which ElementTree has escaped all text.
CHARTS = ("{{ chart.svg | safe }}",)
TEMPLATES = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.jinja"))

# Modules that create objects from bytes, or files from archives.
UNWANTED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile", "zipfile", "pty"}
# The name of an error, a check of a file's last bytes, and the members of an archive, which are read in memory.
HARMLESS = {"pickle.UnpicklingError", "zipfile.is_zipfile", "tarfile.open"}
CALLS = {
    "eval": "it runs a text",
    "exec": "it runs a text",
    "compile": "it runs a text",
    "__import__": "it imports a module by name",
    "os.system": "a shell interprets a text",
    "os.popen": "a shell interprets a text",
    "shutil.unpack_archive": "it unpacks an archive",
    "yaml.load": "it creates objects from a text: use yaml.safe_load",
    "torch.load": "it creates objects from bytes: use safetensors, or weights_only=True",
    "importlib.import_module": "it imports a module by name",
    "Markup": "it treats a text as HTML",
    "input": "it waits for the user",
}
ARGUMENTS = {"shell": "a shell interprets a text", "allow_pickle": "it creates objects from bytes"}


def violations(source: str) -> Iterator[str]:
    """Describe every construct in a source that this project forbids."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            names = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in UNWANTED and name not in HARMLESS)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        weights_only = any(ast.unparse(keyword) == "weights_only=True" for keyword in node.keywords)
        if name.endswith(".extractall"):
            yield f"calls {name}: an archive chooses the paths that are written"
        if name in CALLS and not (name == "torch.load" and weights_only):
            yield f"calls {name}: {CALLS[name]}"
        for keyword in node.keywords:
            if keyword.arg in ARGUMENTS and ast.unparse(keyword.value) != "False":
                yield f"passes {keyword.arg}: {ARGUMENTS[keyword.arg]}"
            if keyword.arg == "weights_only" and ast.unparse(keyword.value) != "True":
                yield "passes weights_only other than True: it creates objects from bytes"
            if keyword.arg == "autoescape" and ast.unparse(keyword.value) != "True":
                yield "passes autoescape other than True: it treats texts as HTML"
        if name == "Environment" and not {"autoescape", "loader"} & {keyword.arg for keyword in node.keywords}:
            if not ast.unparse(node).startswith("Environment()"):
                yield "creates an Environment without autoescape: it treats texts as HTML"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_runs_texts_or_creates_objects_from_bytes(path: Path):
    assert list(violations(path.read_text())) == []


def test_code_of_a_checkpoint_is_trusted_only_where_the_caller_trusts_it():
    """A model that already runs the code of its checkpoint trusts it for the processor too.

    `benchmarks` trust the checkpoint that they measure, which is our own.
    """
    trusting = {
        f"{path.relative_to(ROOT).as_posix()}: {ast.unparse(keyword.value)}"
        for path in SOURCES
        if path.parent.name != "benchmarks"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
    }
    assert trusting == {"modeling_unime.py: trusted"}


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "import pickle",
        "from zipfile import ZipFile",
        "subprocess.run(text, shell=True)",
        "archive.extractall()",
        "subprocess.run(text, shell=loud)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader)",
        "Markup(text)",
        "Environment(autoescape=False)",
        "Environment(trim_blocks=True)",
    ],
)
def test_a_violation_is_found(source: str):
    assert list(violations(source))


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "yaml.safe_load(text)", "np.load(path)", "re.compile(text)", "from zipfile import is_zipfile"],
)
def test_similar_but_harmless_constructs_are_allowed(source: str):
    assert list(violations(source)) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_templates_escape_everything(path: Path):
    """Rendering escapes values, unless the template turns that off or inserts them into a script."""
    text = path.read_text()
    for chart in CHARTS if path.name == "report.html.jinja" else ():
        text = text.replace(chart, "")
    assert not re.search(r"\|\s*safe\b|autoescape|Markup|<script|\son\w+\s*=|javascript:", text, re.IGNORECASE)
    # A space would end the value of an attribute without quotes.
    assert not re.search(r"\s[\w-]+=\{\{", text)


class Scripts(HTMLParser):
    """A parser that collects the elements that would run or load something."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "object", "svg") or any(name.startswith("on") for name, _ in attributes):
            self.elements.append(tag)


def test_a_card_escapes_the_training_record_of_an_untrusted_checkpoint():
    hostile = "<img src=x onerror=alert(1)> | another column\n\n# A heading"
    stage = {"trainer": hostile, "started from": hostile, "rows": hostile, "processes": 1, "steps": 2}
    table = training_table([stage | {"arguments": {hostile: hostile}, "adapter": {hostile: hostile}}])
    assert Scripts(table).elements == [] and "&lt;img" in table
    lines = table.splitlines()
    assert len(lines) == 8  # head, rule, four of the stage, one argument, the adapter
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {4}


def test_charts_of_a_report_escape_the_titles_of_models():
    hostile = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    chart = line_chart(hostile, {hostile: [(0, 1.0), (1, 2.0)]}, {hostile: "highlight"}, "chart")
    assert Scripts(chart.svg).elements == ["svg"] and "&lt;script&gt;" in chart.svg


def archive(path: Path, **files: bytes) -> Path:
    """Write a zip archive with a file whose path leaves the folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("../../slipped.txt", "out")
        for name, content in files.items():
            packed.writestr(name, content)
    return path


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Path]]]:
    """Return a function that finds unpacked files, in the folder of the test or in the cache of `datasets`."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", str(cache / "extracted"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(cache / "downloads"))
    yield lambda: [path for path in tmp_path.rglob("*") if path.name in ("slipped.txt", "inside.jsonl")]


def test_an_archive_with_the_name_of_a_table_is_not_unpacked(tmp_path: Path, unpacked: Callable[[], list[Path]]):
    path = archive(tmp_path / "rows.jsonl", **{"inside.jsonl": b'{"text": "a"}\n'})
    with pytest.raises(ValueError, match="rows.jsonl is an archive, and archives are not unpacked: unpack it"):
        open_corpus(path)
    assert unpacked() == []


def test_an_archive_beside_tables_is_not_unpacked(tmp_path: Path, unpacked: Callable[[], list[Path]]):
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "source" / "rows.parquet")
    archive(tmp_path / "source" / "rows.zip", **{"inside.jsonl": b"{}"})
    with pytest.raises(ValueError, match="cannot be read as a table"):
        open_corpus(tmp_path / "source")
    assert unpacked() == []


def test_an_archive_in_a_folder_of_images_is_ignored(tmp_path: Path, unpacked: Callable[[], list[Path]]):
    archive(tmp_path / "images.zip", **{"inside.jsonl": b"{}"})
    (tmp_path / "note.txt").write_text("a text")
    assert [entry.id for entry in open_corpus(tmp_path)] == ["note.txt"]
    assert unpacked() == []


def test_an_error_that_quotes_untrusted_text_sends_no_control_characters_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    retitle = "\x1b]0;taken\x07"  # an escape sequence that changes the title of the terminal
    monkeypatch.setattr("sys.argv", ["unime", "embed", str(tmp_path / f"no{retitle}where"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert "there is no folder or file" in error and "]0;taken" in error
    assert "\x1b" not in error and "\x07" not in error and error.count("\n") == 1
