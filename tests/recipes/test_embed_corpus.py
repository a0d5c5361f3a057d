"""Embedding on a Ray cluster of two nodes: undisturbed, with a killed worker, and with a killed driver."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from PIL import Image

from unime import load_model
from unime.corpus.corpus import open_corpus
from unime.index.entry_embedding import embed_entries


pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "unime-tiny"
MAX_SECONDS = 900  # a cluster starts about twenty processes
# By default Ray runs workers with niceness 15, which starves them on a busy machine.
ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 60 rows, three of them bad, in three Parquet files with several row groups."""
    folder = tmp_path_factory.mktemp("corpus") / "rows"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(60):
        encoded = BytesIO()
        Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(encoded, "png")
        (folder.parent / f"{number}.png").write_bytes(encoded.getvalue())
        stored = {"bytes": None, "path": f"{number}.png"} if number % 3 == 1 else {"bytes": encoded.getvalue()}
        text = None if number % 3 == 2 else f"text number {number}"
        rows.append({"id": f"row {number}", "text": text, "image": stored if number % 3 else None})
    rows[10]["image"] = {"path": "absent.png"}
    rows[20]["image"]["bytes"] = rows[20]["image"]["bytes"][:600]
    rows[30]["text"] = " "
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"id": pa.string(), "text": pa.string(), "image": image, "price": pa.float64()})
    for part in range(3):
        table = pa.Table.from_pylist(rows[20 * part : 20 * part + 20], schema=schema)
        pa.parquet.write_table(table, folder / f"{part}.parquet", row_group_size=7)
    return folder


@pytest.fixture(scope="module")
def expected(rows: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the embeddings of the rows without Ray, and the reasons of rejected rows, by id."""
    model, processor = load_model(str(TINY), dtype="float32")
    vectors, reasons = {}, {}
    for window in embed_entries(model, processor, open_corpus(rows, image_root=rows.parent)):
        vectors |= {entry.id: vector for entry, vector in zip(window.entries, window.vectors, strict=True)}
        reasons |= {rejected.id: rejected.reason for rejected in window.rejected}
    assert set(reasons) == {"row 10", "row 20", "row 30"}
    return vectors, reasons


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start a cluster of two nodes with two CPUs each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        node = {"num_cpus": 2, "object_store_memory": 200 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            cluster.add_node(**node)
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts the recipe; its output goes to `log`."""
    started = []

    def start(source: Path, output: Path, *settings: object) -> subprocess.Popen:
        command = [sys.executable, "recipes/embed_corpus.py", "--source", source, "--output_dir", output]
        with (tmp_path / "log").open("a") as log:
            command = list(map(str, [*command, "--model", TINY, *settings]))
            started.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def wait(condition: Callable[[], bool], event: str) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{event} did not happen in {MAX_SECONDS} s"
        time.sleep(0.02)


def done(output: Path) -> list[Path]:
    """Return the files with rows that are marked as done."""
    markers = [path for path in (output / "checkpoints").glob("*.parquet") if ".pending." not in path.name]
    return [path for marker in markers for path in (output / "vectors").glob(f"{marker.stem}*.parquet")]


def assert_as_expected(output: Path, expected: tuple[dict[str, np.ndarray], dict[str, str]]) -> None:
    vectors, reasons = expected
    table = pa.dataset.dataset(output / "vectors").to_table().to_pylist()
    assert sorted(row["id"] for row in table) == sorted([*vectors, *reasons])  # no row is lost or written twice
    assert {row["id"]: row["rejected"] for row in table if row["rejected"] is not None} == reasons
    for row in table:
        assert (row["embedding"] is None) == (row["id"] in reasons)
        if row["embedding"] is not None:
            np.testing.assert_allclose(row["embedding"], vectors[row["id"]], atol=1e-5)
    lines = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert {line["id"]: line["reason"] for line in lines} == reasons


def test_a_killed_worker_is_replaced_and_no_row_is_lost_or_written_twice(
    rows, expected, address, start, tmp_path, record_property
):
    output = tmp_path / "output"
    small = ("--image_root", rows.parent, "--workers", 2, "--rows_per_file", 2)
    run = start(rows, output, "--address", address, *small)
    wait(lambda: len(done(output)) >= 2 or run.poll() is not None, "the first output")
    assert run.poll() is None, (tmp_path / "log").read_text()[-3000:]
    workers = [
        child
        for child in psutil.Process().children(recursive=True)
        if "Embedder" in " ".join(child.cmdline()) and "ray::" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)
    record_property("kills", 1)
    assert len(done(output)) < 30  # in the middle
    assert run.wait(MAX_SECONDS) == 0, (tmp_path / "log").read_text()[-3000:]
    assert_as_expected(output, expected)


def test_after_a_killed_driver_the_same_command_embeds_the_remaining_rows(
    rows, expected, address, start, tmp_path, record_property
):
    output = tmp_path / "output"
    small = ("--image_root", rows.parent, "--workers", 2, "--rows_per_file", 2)
    run = start(rows, output, "--address", address, *small)
    wait(lambda: len(done(output)) >= 3 or run.poll() is not None, "the first output")
    assert run.poll() is None, (tmp_path / "log").read_text()[-3000:]
    run.kill()
    run.wait()
    record_property("kills", 1)
    time.sleep(5)  # Ray stops the workers of a dead driver
    before = {path: path.stat().st_mtime_ns for path in done(output)}
    assert 3 <= len(before) < 30

    resumed = start(rows, output, "--address", address, *small)
    assert resumed.wait(MAX_SECONDS) == 0, (tmp_path / "log").read_text()[-3000:]
    assert_as_expected(output, expected)
    assert {path: path.stat().st_mtime_ns for path in before} == before

    written = {path: path.stat().st_mtime_ns for path in done(output)}
    assert start(rows, output, "--address", address, *small).wait(MAX_SECONDS) == 0  # nothing remains to be done
    assert {path: path.stat().st_mtime_ns for path in done(output)} == written
    assert_as_expected(output, expected)

    changed = start(rows, output, *small, "--instruction", "Represent the given image.")
    assert changed.wait(MAX_SECONDS) == 1
    assert (
        f"{output} has embeddings made with other settings: choose another output_dir"
        in (tmp_path / "log").read_text()
    )


def test_a_folder_of_images_is_embedded_on_this_machine(rows, start, tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for number in range(6):
        (folder / "deep" / f"{number}.png").write_bytes((rows.parent / f"{number}.png").read_bytes())
    (folder / "notes.md").write_text("no image")
    output = tmp_path / "output"
    run = start(f"file://{folder}", f"file://{output}", "--workers", 1, "--truncate_dim", 64)
    assert run.wait(MAX_SECONDS) == 0, (tmp_path / "log").read_text()[-3000:]
    assert f"skipping 1 files that are not images: {folder / 'notes.md'}" in (tmp_path / "log").read_text()

    model, processor = load_model(str(TINY), dtype="float32")
    (window,) = embed_entries(model, processor, open_corpus(folder / "deep"), truncate_dim=64)
    table = pa.dataset.dataset(output / "vectors").to_table().sort_by("id")
    assert table["id"].to_pylist() == [f"deep/{number}.png" for number in range(6)] == table["image"].to_pylist()
    np.testing.assert_allclose(np.stack(table["embedding"].to_pylist()), window.vectors, atol=1e-5)


def test_rows_with_wrong_types_are_rejected_with_their_reasons(script, tmp_path):
    from pyarrow.fs import SubTreeFileSystem

    module = script(ROOT / "recipes" / "embed_corpus.py")
    remote = SubTreeFileSystem(str(tmp_path), module.LocalFileSystem())  # stands in for any remote file system
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    embedder = module.Embedder(module.ScriptArguments("", "", str(TINY)), module.Location(remote, ""))
    numbers = pa.table({"id": [1, None], "text": [3.5, 4.5], "row_hash": [0, 1]})
    assert embedder(numbers)["rejected"].to_pylist() == [
        "entry '1': its text has type float: make it a string",
        "entry 'None': its text has type float: make it a string",
    ]
    lists = pa.table({"id": ["a"], "image": [["red.png"]], "row_hash": [0]})
    assert embedder(lists)["rejected"].to_pylist() == ["entry 'a': its image has type list: give one path"]
    paths = pa.table({"id": [None, "b", "c"], "image": ["red.png", "absent.png", "red.png"], "row_hash": [0, 1, 2]})
    nameless, absent, red = embedder(paths)["rejected"].to_pylist()
    assert nameless == "entry 'None': it has no id: give it one"
    assert absent.startswith("entry 'b': its image absent.png cannot be read (")
    assert red is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("--source", "absent"), "there is no absent: fix --source"),
        (
            ("--identifier", "sku"),
            "has no column sku: it has id, text, image, price; name your columns with --identifier",
        ),
        (("--text", "title", "--image", "photo"), "has no column title or photo: it has id, text, image, price"),
    ],
)
def test_wrong_use_is_refused_before_ray_starts(rows, script, tmp_path, settings, message):
    module = script(ROOT / "recipes" / "embed_corpus.py")
    command = ["--source", rows, "--output_dir", tmp_path, "--model", TINY, *settings]
    with pytest.raises((ValueError, OSError), match=message):
        module.main(*module.TrlParser((module.ScriptArguments,)).parse_args_and_config(list(map(str, command))))
