"""`unime embed`: its output, resuming, and its error messages."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import lancedb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import typer
from file_modes import private_files
from PIL import Image
from typer.testing import CliRunner, Result

from unime import load_model
from unime.checkpoint import PROMPTS, fingerprint
from unime.cli.embed import embed
from unime.index import parquet_shards


ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "checkpoints" / "unime-tiny")

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(embed)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words), "--model", TINY])


def report(*words: object) -> dict:
    """Run with `--json` and return the report."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(*words: object) -> str:
    """Run a command that must be refused and return its message, with which `main` exits with status 2."""
    refused = run(*words)
    assert isinstance(refused.exception, (ValueError, OSError)), refused.output
    return str(refused.exception)


def files(folder: Path) -> dict[str, int]:
    """Return the modification time of each shard."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write a folder of five images, two of them equal, and a text."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, colour in zip("abcde", ("red", "green", "blue", "red", "yellow"), strict=True):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    (folder / "note.txt").write_text("a slice of pizza")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "b.png", "kind": "Grün"}) + "\n")
    return folder


def test_a_folder_becomes_a_table_with_the_embeddings_of_encode(corpus: Path, tmp_path: Path) -> None:
    result = report(corpus, tmp_path / "vectors")
    assert (result["embedded"], result["kept"], result["rejected"], result["dimensions"]) == (6, 0, 0, 192)
    table = pd.read_parquet(tmp_path / "vectors")
    assert list(table.columns) == ["id", "text", "image", "metadata", "embedding"]
    assert list(table["id"]) == ["a.png", "b.png", "c.png", "d.png", "e.png", "note.txt"]
    assert list(table["image"][:5]) == [str(corpus / f"{name}.png") for name in "abcde"]
    assert table["text"][5] == "a slice of pizza" and pd.isna(table["image"][5])
    assert [json.loads(text) for text in table["metadata"]] == [{}, {"kind": "Grün"}, {}, {}, {}, {}]
    model, processor = load_model(TINY, dtype="float32")
    images = [Image.open(corpus / f"{name}.png") for name in "abcde"]
    items = [{"image": image, "instruction": PROMPTS["image"]} for image in images] + ["a slice of pizza"]
    vectors = np.stack(table["embedding"])
    np.testing.assert_allclose(vectors, model.encode(items, processor), atol=1e-5)
    assert np.array_equal(vectors[0], vectors[3])
    (shard,) = (tmp_path / "vectors").iterdir()
    schema = pq.read_schema(shard)
    assert str(schema.field("embedding").type) == "fixed_size_list<element: float>[192]"
    assert json.loads(schema.metadata[b"unime"]) == {
        "source": str(corpus),
        "checkpoint": TINY,
        "revision": fingerprint(TINY),
        "instruction": None,
        "dimensions": 192,
        "dtype": "float32",
        "image_size": None,
        "preset": None,
        "draft_jpegs": False,
    }
    assert not (tmp_path / "vectors.rejected.jsonl").exists()
    assert private_files(tmp_path / "vectors") == []
    read = datasets.load_dataset(str(tmp_path / "vectors"), split="train", cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(read.with_format("numpy")["embedding"][:], vectors)


def test_a_prompt_an_instruction_and_a_dimension_are_applied(corpus: Path, tmp_path: Path) -> None:
    report(corpus, tmp_path / "named", "--prompt", "image", "--truncate-dim", 16)
    report(corpus, tmp_path / "instructed", "--instruction", PROMPTS["image"])
    named, instructed = (np.stack(pd.read_parquet(tmp_path / name)["embedding"]) for name in ("named", "instructed"))
    assert named.shape == (6, 16) and instructed.shape == (6, 192)
    np.testing.assert_allclose(
        named, instructed[:, :16] / np.linalg.norm(instructed[:, :16], axis=1, keepdims=True), atol=1e-5
    )
    model, processor = load_model(TINY, dtype="float32")
    expected = model.encode({"text": "a slice of pizza", "instruction": PROMPTS["image"]}, processor)
    np.testing.assert_allclose(instructed[5], expected, atol=1e-5)


def test_a_second_run_embeds_only_what_is_new(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_shards, "WINDOW_ENTRIES", 2)
    output = tmp_path / "vectors"
    report(corpus, output)
    before = files(output)
    assert [name[:6] for name in before] == ["000000", "000001", "000002"]
    result = report(corpus, output)
    assert (result["embedded"], result["kept"]) == (0, 6) and files(output) == before
    Image.new("RGB", (40, 30), "black").save(corpus / "c.png")
    (corpus / "note.txt").unlink()
    (output / ".left.part").touch()  # left by a killed run
    result = report(corpus, output)
    assert (result["embedded"], result["kept"]) == (3, 2)
    after = files(output)
    assert len(after) == 3 and set(after) & set(before) == {min(before)} and after[min(before)] == before[min(before)]
    table = pd.read_parquet(output)
    assert list(table["id"]) == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    report(corpus, tmp_path / "fresh")
    fresh = pd.read_parquet(tmp_path / "fresh")
    np.testing.assert_allclose(np.stack(table["embedding"]), np.stack(fresh["embedding"]), atol=1e-5)


def test_rejected_entries_are_listed_with_their_reasons(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parquet_shards, "WINDOW_ENTRIES", 2)
    (corpus / "a.png").write_bytes(b"")
    (corpus / "d.png").write_text("no image")
    (corpus / "e.png").unlink()
    (corpus / "e.png").symlink_to("nowhere")
    rejected_file = tmp_path / "vectors.rejected.jsonl"
    for kept in (0, 3):  # the list is complete even when nothing was left to embed
        result = report(corpus, tmp_path / "vectors")
        assert (result["embedded"], result["kept"], result["rejected"]) == (3 - kept, kept, 3)
        rejected = {row["id"]: row["reason"] for row in map(json.loads, rejected_file.read_text().splitlines())}
        assert list(rejected) == ["a.png", "d.png", "e.png"]
        assert "a.png is empty" in rejected["a.png"] and "not a readable image" in rejected["d.png"]
        assert "is a symbolic link to nowhere" in rejected["e.png"]
    assert list(pd.read_parquet(tmp_path / "vectors")["id"]) == ["b.png", "c.png", "note.txt"]
    output = run(corpus, tmp_path / "vectors").stdout
    assert "0 entries embedded into" in output and "3 kept from an earlier run, 3 rejected" in output
    assert str(rejected_file) in output
    for output in ("vectors", "strict"):  # whether or not the entry was rejected before
        strict = run(corpus, tmp_path / output, "--strict")
        assert strict.exit_code == 1 and strict.stderr.count("entry 'a.png': its image") == 1
    for name in "ade":
        (corpus / f"{name}.png").unlink()
    assert report(corpus, tmp_path / "vectors")["rejected"] == 0
    assert not rejected_file.exists()
    assert run(corpus, tmp_path / "vectors", "--strict").exit_code == 0


def test_a_lance_dataset_has_the_same_content(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_shards, "WINDOW_ENTRIES", 4)
    report(corpus, tmp_path / "vectors")
    report(corpus, tmp_path / "vectors.lance")
    table = lancedb.connect(tmp_path).open_table("vectors").to_arrow()
    expected = pd.read_parquet(tmp_path / "vectors")
    assert table.column_names == list(expected.columns) and table["id"].to_pylist() == list(expected["id"])
    np.testing.assert_allclose(np.stack(table["embedding"].to_pylist()), np.stack(expected["embedding"]), atol=1e-5)
    assert json.loads(table.schema.metadata[b"unime"])["revision"] == fingerprint(TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "vectors", "vectors.lance"]
    assert "vectors.lance exists: remove it, or choose another output" in refusal(corpus, tmp_path / "vectors.lance")


def test_wrong_usage_is_refused_in_one_sentence(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "vectors"
    report(corpus, output)
    before = files(output)
    changed = refusal(corpus, output, "--prompt", "classification")
    assert f"{output} holds embeddings with the instruction None, not '{PROMPTS['classification']}'" in changed
    resized = refusal(corpus, output, "--image-size", '{"size": {"height": 48, "width": 48}}')
    assert f"{output} holds embeddings with the image_size None, not {{'size': {{'height': 48" in resized
    number = refusal(corpus, output, "--image-size", 336)
    assert "has no size that a number could limit: leave image_size out" in number
    drafted = refusal(corpus, output, "--draft-jpegs")
    assert f"{output} holds embeddings with the draft_jpegs False, not True" in drafted
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("a")
    assert f"holds embeddings with the source '{corpus}'" in refusal(tmp_path / "other", output)
    assert files(output) == before
    assert f"is inside the source {corpus} and would become part of it" in refusal(corpus, corpus / "vectors")
    not_embeddings = refusal("openmoji", corpus)
    assert (
        f"{corpus} holds " in not_embeddings
        and "which is not a file of embeddings: choose a new folder" in not_embeddings
    )
    assert "there is no folder or file" in refusal(tmp_path / "gone", tmp_path / "new")
    assert "there is no prompt 'nice': choose from query, document, image" in refusal(corpus, "x", "--prompt", "nice")
    assert "exclude each other" in refusal(corpus, "x", "--prompt", "image", "--instruction", "a")
    assert "truncate_dim must be between 1 and 192, got 0" in refusal(corpus, tmp_path / "new", "--truncate-dim", 0)
    assert "this machine cannot compute on cuda:99: " in refusal(corpus, tmp_path / "new", "--device", "cuda:99")
    assert "this machine cannot compute on nonsense: " in refusal(corpus, tmp_path / "new", "--device", "nonsense")


@pytest.mark.slow
def test_a_killed_run_resumes_without_losing_or_repeating_entries(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    images, output = tmp_path / "images", tmp_path / "vectors"
    subprocess.run([sys.executable, ROOT / "recipes" / "tiny" / "write_images.py", images], check=True)
    assert len(list(images.glob("*.png"))) == 3773
    call = "import typer; from unime.cli.embed import embed; typer.run(embed)"
    command = [sys.executable, "-c", call, images, output, "--model", TINY]
    for done in (1, 2):  # killed when there is one shard, and again when there are two
        process = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(list(output.glob("0*.parquet"))) < done:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    record_property("kills", 2)
    before = files(output)
    kept = sum(pq.read_metadata(path).num_rows for path in output.glob("0*.parquet"))
    assert 2048 <= kept < 3773
    result = report(images, output)
    assert (result["kept"], result["embedded"]) == (kept, 3773 - kept)
    after = files(output)
    assert all(after[name] == changed for name, changed in before.items() if name.endswith(".parquet"))
    assert len(after) == 4 and not list(output.glob(".*"))
    table = pd.read_parquet(output)
    assert list(table["id"]) == sorted(path.name for path in images.glob("*.png"))
    report(images, tmp_path / "at-once")
    whole = pd.read_parquet(tmp_path / "at-once")
    assert list(whole["id"]) == list(table["id"])
    np.testing.assert_allclose(np.stack(table["embedding"]), np.stack(whole["embedding"]), atol=1e-5)
