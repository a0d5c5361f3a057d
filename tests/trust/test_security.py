"""What may not be in the source, what no page may run, and that nothing is unpacked."""

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
from unime.eval.report.model_card import training_table


ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["cli", "data", "eval", "export", "page", "recipes", "search", "serve", "trainers", "metrics", "benchmarks"]
SOURCES = sorted({*ROOT.glob("*.py"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))})
TEMPLATES = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.jinja"))

# Modules that make objects of bytes, or files of archives.
UNWANTED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile", "zipfile", "pty"}
HARMLESS = {"pickle.UnpicklingError", "zipfile.is_zipfile"}  # an error's name; a look at a file's last bytes
CALLS = {
    "eval": "a text is run",
    "exec": "a text is run",
    "compile": "a text is run",
    "__import__": "a module is taken by a text",
    "os.system": "a shell reads a text",
    "os.popen": "a shell reads a text",
    "shutil.unpack_archive": "an archive is unpacked",
    "yaml.load": "objects are made of a text: yaml.safe_load",
    "torch.load": "objects are made of bytes: safetensors",
    "importlib.import_module": "a module is taken by a text",
    "Markup": "a text is taken for HTML",
    "input": "a person is asked",
}
ARGUMENTS = {"shell": "a shell reads a text", "allow_pickle": "objects are made of bytes"}


def offences(source: str) -> Iterator[str]:
    """Name what a source does that nothing of ours may do."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            names = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in UNWANTED and name not in HARMLESS)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in CALLS:
            yield f"calls {name}: {CALLS[name]}"
        for keyword in node.keywords:
            if keyword.arg in ARGUMENTS and ast.unparse(keyword.value) != "False":
                yield f"gives {keyword.arg}: {ARGUMENTS[keyword.arg]}"
            if keyword.arg == "weights_only" and ast.unparse(keyword.value) != "True":
                yield "gives weights_only other than True: objects are made of bytes"
            if keyword.arg == "autoescape" and ast.unparse(keyword.value) != "True":
                yield "gives autoescape other than True: texts are taken for HTML"
        if name == "Environment" and not {"autoescape", "loader"} & {keyword.arg for keyword in node.keywords}:
            if not ast.unparse(node).startswith("Environment()"):
                yield "makes an Environment without autoescape: texts are taken for HTML"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_runs_texts_or_makes_objects_of_bytes(path: Path):
    assert list(offences(path.read_text())) == []


def test_trust_in_a_checkpoint_s_code_is_given_where_a_caller_gives_it_only():
    """Two may: mteb's encoder by an argument, and a model that is a checkpoint's own code already, for its processor.

    `benchmarks` trust the checkpoint that they measure, our own.
    """
    given = {
        f"{path.relative_to(ROOT).as_posix()}: {ast.unparse(keyword.value)}"
        for path in SOURCES
        if path.parent.name != "benchmarks"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
    }
    assert given == {"modeling_unime.py: trusted"}


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "import pickle",
        "from zipfile import ZipFile",
        "subprocess.run(text, shell=True)",
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
def test_an_offence_is_found(source: str):
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "yaml.safe_load(text)", "np.load(path)", "re.compile(text)", "from zipfile import is_zipfile"],
)
def test_what_only_looks_like_an_offence_is_none(source: str):
    assert list(offences(source)) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_templates_escape_everything(path: Path):
    """What they show is escaped as they are rendered, unless they themselves say otherwise, or show it in a script."""
    text = path.read_text()
    assert not re.search(r"\|\s*safe\b|autoescape|Markup|<script|\son\w+\s*=|javascript:", text, re.IGNORECASE)
    # An attribute without quotes could be left with a space.
    assert not re.search(r"\s[\w-]+=\{\{", text)


class Scripts(HTMLParser):
    """Counts the elements that would run or load something."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "object", "svg") or any(name.startswith("on") for name, _ in attributes):
            self.found.append(tag)


def test_a_card_shows_what_the_record_of_a_stranger_s_checkpoint_says_as_text():
    hostile = "<img src=x onerror=alert(1)> | another column\n\n# A heading"
    stage = {"trainer": hostile, "started from": hostile, "rows": hostile, "processes": 1, "steps": 2}
    table = training_table([stage | {"arguments": {hostile: hostile}, "adapter": {hostile: hostile}}])
    assert Scripts(table).found == [] and "&lt;img" in table
    lines = table.splitlines()
    assert len(lines) == 8  # head, rule, four of the stage, one argument, the adapter
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {4}


def archive(path: Path, **files: bytes) -> Path:
    """Write a zip archive with a file that would leave the folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("../../slipped.txt", "out")
        for name, content in files.items():
            packed.writestr(name, content)
    return path


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Path]]]:
    """Give what finds files of an archive, in the test's folder or in the cache of `datasets`."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", str(cache / "extracted"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(cache / "downloads"))
    yield lambda: [path for path in tmp_path.rglob("*") if path.name in ("slipped.txt", "inside.jsonl")]


def test_an_archive_by_the_name_of_a_table_is_not_unpacked(tmp_path: Path, unpacked: Callable[[], list[Path]]):
    path = archive(tmp_path / "rows.jsonl", **{"inside.jsonl": b'{"text": "a"}\n'})
    with pytest.raises(ValueError, match="rows.jsonl is an archive, and none is unpacked here: unpack it, and give"):
        open_corpus(path)
    assert unpacked() == []


def test_an_archive_beside_tables_is_not_unpacked(tmp_path: Path, unpacked: Callable[[], list[Path]]):
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "source" / "rows.parquet")
    archive(tmp_path / "source" / "rows.zip", **{"inside.jsonl": b"{}"})
    with pytest.raises(ValueError, match="cannot be read as a table"):
        open_corpus(tmp_path / "source")
    assert unpacked() == []


def test_an_archive_in_a_folder_has_images_is_none_of_them(tmp_path: Path, unpacked: Callable[[], list[Path]]):
    archive(tmp_path / "images.zip", **{"inside.jsonl": b"{}"})
    (tmp_path / "own.txt").write_text("a text")
    assert [entry.id for entry in open_corpus(tmp_path)] == ["own.txt"]
    assert unpacked() == []


def test_a_sentence_that_quotes_a_stranger_gives_the_terminal_no_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    retitle = "\x1b]0;taken\x07"  # has a terminal change its title, or worse
    monkeypatch.setattr("sys.argv", ["unime", "embed", str(tmp_path / f"no{retitle}where"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert "there is no folder or file" in error and "]0;taken" in error
    assert "\x1b" not in error and "\x07" not in error and error.count("\n") == 1
