"""Forbidden and broken image paths: every interface refuses them without opening the file."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import gradio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_index import TINY, rows

from unime import load_model
from unime.corpus.corpus import open_corpus
from unime.data.jsonl import load_rows
from unime.data.rows import read_row
from unime.data.sources import DataArguments, open_rows
from unime.eval.benchmarks.caption_retrieval import flickr30k, sharegpt4v, urban1k
from unime.index.index import Index
from unime.page.uploads import open_upload


ErrorMessage = Callable[..., str]

MISSING = "does not exist"
OUTSIDE = "is outside of {root}: move it there or set another image_root"
URL = "is a URL, and nothing is downloaded: save the file and give its path"

# name -> (path in the row, error message)
PATHS = {
    "missing": ("gone.png", MISSING),
    "folder": ("folder.png", "is a folder"),
    "broken symlink": ("broken.png", "is a symbolic link to nowhere.png, which does not exist"),
    "symlink to itself": ("loop.png", "is a symbolic link to loop.png, which does not exist"),
    "pipe": ("pipe.png", "is not a regular file"),
    "upwards": ("../secret.png", OUTSIDE),
    "upwards and down again": ("folder.png/../../secret.png", OUTSIDE),
    "absolute": ("{outside}/secret.png", OUTSIDE),
    "symlink to outside": ("link.png", OUTSIDE),
    "symlinked folder outside": ("away/secret.png", OUTSIDE),
    "device": ("/dev/zero", OUTSIDE),
    "home": ("~/secret.png", MISSING),
    "url": ("https://example.org/cat.png", URL),
    "file url": ("file:///etc/passwd", URL),
    "data url": ("data:image/png;base64," + "A" * 9999, URL),
    "null byte": ("a\0b.png", "cannot be opened (embedded null byte): fix the path"),
    "too long": ("a" * 300 + ".png", "cannot be read (File name too long): fix that"),
    "no name": ("", "is a folder"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of invalid images and a good one; a second good image is outside the folder."""
    outside = tmp_path_factory.mktemp("outside")
    root = outside / "root"
    root.mkdir()
    for path in (outside / "secret.png", root / "good.png"):
        Image.new("RGB", (40, 24), "red").save(path)
    (root / "folder.png").mkdir()
    (root / "broken.png").symlink_to("nowhere.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "away").symlink_to(outside)
    os.mkfifo(root / "pipe.png")
    return root


def path_of(name: str, root: Path) -> str:
    return PATHS[name][0].format(outside=root.parent)


def expected_reason(name: str, root: Path) -> str:
    return PATHS[name][1].format(root=root)


def write(folder: Path, lines: list[dict]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize("name", PATHS, ids=lambda name: f"{name}-training row")
def test_a_training_row_does_not_open_the_path(
    name: str, root: Path, tmp_path: Path, error_message: ErrorMessage
) -> None:
    items = [{"query": {"text": "a"}, "positive": {"image": path}} for path in ("good.png", path_of(name, root))]
    training = load_rows(write(tmp_path, items), image_root=root)
    assert training[0]["positives"][0]["image"][0].size == (40, 24)
    message = error_message(lambda: training[1])
    assert message.startswith("rows.jsonl, row 1, positive: ") and expected_reason(name, root) in message
    assert len(message) < 600


@pytest.mark.parametrize("name", PATHS, ids=lambda name: f"{name}-mapped columns")
def test_a_mapped_dataset_does_not_open_the_path(
    name: str, root: Path, tmp_path: Path, error_message: ErrorMessage
) -> None:
    paths = ["good.png", path_of(name, root)]
    data = datasets.Dataset.from_dict({"caption": ["a", "b"], "image": paths})
    (tmp_path / "pairs").mkdir()
    data.to_parquet(tmp_path / "pairs" / "train.parquet")
    columns = {"query.text": "caption", "positive.image": "image"}
    training = open_rows(DataArguments(str(tmp_path / "pairs"), image_root=str(root), columns=columns))
    assert training[0]["positives"][0]["image"][0].size == (40, 24)
    message = error_message(lambda: training[1])
    assert message.startswith("pairs, row 1, positive: ") and expected_reason(name, root) in message


TRUSTED = ("symlink to outside", "symlinked folder outside")  # links in a folder that the user names
OUTSIDE_OF_DATASET = "is outside of {root}: use the dataset as published"


def evaluation_reason(name: str, root: Path) -> str:
    """Return the error for a path, all of which are refused before the first embedding without being opened."""
    reason = PATHS[name][1]
    if reason in (URL, PATHS["null byte"][1]):
        return reason
    if reason == OUTSIDE:
        return OUTSIDE_OF_DATASET.format(root=root)
    return "is not a regular file" if name in ("folder", "pipe", "no name") else "does not exist"


@pytest.mark.parametrize("name", PATHS, ids=lambda name: f"{name}-evaluation")
def test_an_evaluation_does_not_open_the_path(
    name: str, root: Path, tmp_path: Path, error_message: ErrorMessage
) -> None:
    talk = [{"value": ""}, {"value": "a caption"}]
    captions = tmp_path / "captions.json"
    captions.write_text(
        json.dumps([{"image": path, "conversations": talk} for path in ("good.png", path_of(name, root))])
    )
    if name in TRUSTED:
        assert sharegpt4v(captions, root)[0].candidates[1]["image"].size == (40, 24)
        return
    message = error_message(lambda: sharegpt4v(captions, root))
    assert message.startswith("sharegpt4v, row 1: ") and evaluation_reason(name, root) in message


STORED = ["upwards", "absolute", "symlink to outside", "device", "url", "missing", "pipe"]


@pytest.mark.parametrize("name", STORED, ids=lambda name: f"{name}-stored image")
def test_an_image_column_does_not_open_the_path(
    name: str, root: Path, tmp_path: Path, error_message: ErrorMessage
) -> None:
    """A dataset may store the path of an image instead of its bytes; the path must lie in the dataset's folder."""
    row = {"image": {"bytes": None, "path": path_of(name, root)}, "text": ["a caption"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))})
    source = root / f"stored {name}"
    source.mkdir()
    pq.write_table(pa.Table.from_pylist([row], features.arrow_schema), source / "test.parquet")
    for name_in_root in ("pipe.png", "link.png"):
        os.link(root / name_in_root, source / name_in_root, follow_symlinks=False)
    if name in TRUSTED:
        assert flickr30k(str(source))[0].candidates[0]["image"].size == (40, 24)
        return
    message = error_message(lambda: flickr30k(str(source)))
    assert message.startswith("flickr30k, row 0: ") and evaluation_reason(name, source) in message


@pytest.fixture(scope="module")
def indexed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict[str, str]]:
    """Index a corpus of all paths and a good one; return the rows of the index and the reasons of the rejections."""
    folder = tmp_path_factory.mktemp("index")
    lines = [{"id": name, "image": path_of(name, root)} for name in PATHS] + [{"id": "good", "image": "good.png"}]
    index = Index.create(folder / "index", TINY)
    index.sync(open_corpus(write(folder, lines), image_root=root), *load_model(TINY, dtype="float32"))
    rejected = map(json.loads, (index.folder / "rejected.jsonl").read_text().splitlines())
    return rows(index), {entry["id"]: entry["reason"] for entry in rejected}


@pytest.mark.parametrize("name", PATHS, ids=lambda name: f"{name}-index")
def test_an_index_lists_the_path_as_rejected(name: str, root: Path, indexed: tuple[dict, dict[str, str]]) -> None:
    index_rows, reasons = indexed
    assert list(index_rows) == ["good"] and len(reasons) == len(PATHS)
    assert reasons[name].startswith(f"entry '{name}': ") and expected_reason(name, root) in reasons[name]
    assert "\n" not in reasons[name]


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """Yield a folder with an image that its reader is not permitted to read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "image").mkdir()
        (folder / "caption").mkdir()
        (folder / "caption" / "1.txt").write_text("red")
        Image.new("RGB", (40, 24), "red").save(folder / "image" / "1.jpg")
        (folder / "image" / "1.jpg").chmod(0)
        user = os.geteuid()
        if user == 0:  # file modes do not restrict root
            os.seteuid(65534)
        yield folder
        os.seteuid(user)


@pytest.mark.parametrize("interface", ["training row", "evaluation", "corpus", "page"])
def test_an_unreadable_file_is_refused(interface: str, unreadable: Path, error_message: ErrorMessage) -> None:
    path = unreadable / "image" / "1.jpg"
    row = {"query": {"text": "a"}, "positive": {"image": "image/1.jpg"}, "task": "t", "where": "row 0"}
    message = {
        "training row": lambda: error_message(lambda: read_row(row, unreadable)),
        "evaluation": lambda: error_message(lambda: urban1k(unreadable)[0].candidates[0]),
        "corpus": lambda: error_message(lambda: open_corpus(path.parent)[0].item()),
        "page": lambda: error_message(lambda: open_upload(str(path)), gradio.Error),
    }[interface]()
    if interface == "page":  # visitors must not learn which files exist
        assert "1.jpg cannot be read as an image: upload a PNG, JPEG, WebP or GIF file" in message
    else:
        assert f"{path}" in message and "cannot be read (Permission denied): fix that or remove the " in message
