"""The index on disk: its content after each change of the corpus, and its search results."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from small_index import TINY, WORDS, corpus, no_model, rows

from unime.checkpoint import fingerprint
from unime.corpus.entry import Entry
from unime.index.index import Index, SyncResult
from unime.index.queries import query_item


def png(colour: str, size: tuple[int, int] = (24, 24)) -> bytes:
    data = BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def test_scores_are_cosines_in_descending_order(index: Index, loaded):
    model, processor = loaded
    assert index.sync(corpus(), *loaded) == SyncResult(6, 0, 0, 0, 0)
    query = model.encode("a dog", processor)
    cosines = model.encode(list(WORDS), processor) @ query
    hits = index.search(query, k=6)
    assert [hit.id for hit in hits] == [WORDS[position] for position in np.argsort(-cosines)]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1], atol=1e-5)
    assert (hits[0].text, hits[0].image, hits[0].metadata) == ("dog", None, {"length": 3, "first": "d"})
    assert [hit.id for hit in index.search(query, k=2)] == [hit.id for hit in hits[:2]]


def test_an_unchanged_corpus_does_not_load_the_model(index: Index, loaded):
    index.sync(corpus(), *loaded)
    before = rows(index)
    assert Index.open(index.folder).update(corpus(), no_model) == SyncResult(0, 0, 6, 0, 0)
    assert rows(index) == before


def test_only_new_and_changed_entries_are_embedded_and_missing_ones_are_removed(index: Index, loaded):
    model, processor = loaded
    index.sync(corpus(), *loaded)
    before = rows(index)
    updated = [Entry("dog", "a big dog"), *corpus(("piano", "rocket", "it's")), Entry("tiger", "tiger")]
    assert index.sync(updated, *loaded) == SyncResult(
        embedded=2, metadata_updated=1, unchanged=2, removed=2, rejected=0
    )
    after = rows(index)
    assert after.keys() == {"dog", "piano", "rocket", "it's", "tiger"}
    assert {name: after[name] for name in ("piano", "rocket")} == {name: before[name] for name in ("piano", "rocket")}
    assert (after["dog"]["text"], after["dog"]["first"]) == ("a big dog", None)
    np.testing.assert_allclose(after["dog"]["vector"], model.encode("a big dog", processor), atol=1e-5)
    assert index.sync(corpus(("dog",)), *loaded).removed == 4
    assert rows(index).keys() == {"dog"}


def test_rejected_entries_are_listed_and_their_old_rows_deleted(index: Index, loaded, tmp_path: Path):
    (tmp_path / "red.png").write_bytes(png("red"))
    (tmp_path / "blue.png").write_bytes(png("blue"))
    entries = [Entry(name, image=str(tmp_path / f"{name}.png")) for name in ("red", "blue")] + [Entry("void")]
    assert index.sync(entries, *loaded) == SyncResult(2, 0, 0, 0, 1)
    rejected = [json.loads(line) for line in (index.folder / "rejected.jsonl").read_text().splitlines()]
    assert [entry["id"] for entry in rejected] == ["void"] and "neither a text nor an image" in rejected[0]["reason"]
    (tmp_path / "red.png").write_bytes(b"no image")
    (tmp_path / "blue.png").unlink()
    assert index.sync(entries, *loaded) == SyncResult(0, 0, 0, removed=2, rejected=3)
    assert len(index) == 0
    assert len((index.folder / "rejected.jsonl").read_text().splitlines()) == 3


def test_images_are_found_by_images(index: Index, loaded, tmp_path: Path):
    model, processor = loaded
    (tmp_path / "red.png").write_bytes(png("red"))
    entries = [Entry("red", image=str(tmp_path / "red.png")), Entry("wide", image=png("blue", (900, 30)))]
    index.sync(entries, *loaded)
    red, wide = index.search(model.encode(query_item(image=Image.new("RGB", (24, 24), "red")), processor))
    assert (red.id, red.image) == ("red", str(tmp_path / "red.png"))
    assert red.score == pytest.approx(1, abs=1e-5)  # query and entry have the same instruction
    assert Image.open(BytesIO(wide.image)).size == (320, 11)  # a small copy, because the image has no file
    assert index.kinds == ["image"]


def test_a_search_for_more_entries_than_there_are_returns_all(index: Index, loaded):
    query = np.ones(192, np.float32)
    assert index.search(query) == index.search({"text": query}) == [] and index.kinds == []
    index.sync(corpus(("dog", "pizza")), *loaded)
    assert {hit.id for hit in index.search(query, k=100)} == {"dog", "pizza"}


def test_invalid_queries_are_rejected(index: Index):
    for query, k, reason in [
        (np.ones(192), 0, "k must be at least 1, got 0"),
        (np.ones(64), 5, "holds embeddings of 192 dimensions made by .*unime-tiny, but this model has 64"),
        (np.ones((2, 192)), 5, r"expected one query of shape \(192,\), got \(2, 192\)"),
    ]:
        with pytest.raises(ValueError, match=reason):
            index.search(query, k)


def test_a_folder_that_is_not_an_index_is_rejected(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere is not an index: create one with `unime index SOURCE .*nowhere`"):
        Index.open(tmp_path / "nowhere")
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ValueError, match="index.json does not describe an index"):
        Index.open(tmp_path)
    with pytest.raises(ValueError, match="exists and is not an empty folder: choose a new folder"):
        Index.create(tmp_path, TINY)


def test_a_run_that_was_killed_while_creating_the_index_is_resumed(tmp_path: Path, loaded):
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "index.json.part").write_text('{"check')
    Index.create(folder, TINY)
    shutil.rmtree(folder / "entries.lance")
    (folder / "entries.lance").mkdir()  # killed before the first version was written
    assert Index.open(folder).sync(corpus(), *loaded).embedded == 6


def test_a_model_is_identified_by_the_files_that_affect_its_embeddings(index: Index, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(TINY, copy)
    (copy / "README.md").write_text("another card")
    index.check_model(str(copy))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"changed": True}))
    with pytest.raises(
        ValueError, match=f"copy is another model .revision {fingerprint(str(copy))}.: use the model of"
    ):
        index.check_model(str(copy))


def test_a_missing_model_is_named_in_the_error(index: Index, tmp_path: Path):
    with pytest.raises(ValueError, match="the model .*/gone does not exist: give its current folder"):
        index.check_model(str(tmp_path / "gone"))


def test_a_model_of_other_dimensions_is_rejected(index: Index, loaded, tmp_path: Path):
    file = index.folder / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dimensions": 64}))
    with pytest.raises(ValueError, match="holds embeddings of 64 dimensions"):
        Index.open(index.folder).sync(corpus(), *loaded)


def test_only_one_process_writes_at_a_time(index: Index, loaded):
    with FileLock(index.folder / ".lock"), pytest.raises(ValueError, match="another process is writing to"):
        index.sync(corpus(), *loaded)


def test_an_open_index_sees_what_another_process_wrote(index: Index, loaded):
    reader = Index.open(index.folder)
    index.sync(corpus(), *loaded)
    index.table.compact()
    assert len(reader.search(np.ones(192, np.float32))) == 6
