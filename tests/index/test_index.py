"""The index on disk: what it holds after each change of the corpus, and what it finds."""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from small_index import TINY, WORDS, corpus, not_needed, rows

from unime.checkpoint import fingerprint
from unime.corpus.corpus import Entry
from unime.index.index import Index, SyncResult
from unime.index.queries import query_item


def png(colour: str, size: tuple[int, int] = (24, 24)) -> bytes:
    data = BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def test_scores_are_cosines_and_the_nearest_comes_first(store: Index, loaded):
    model, processor = loaded
    assert store.sync(corpus(), *loaded) == SyncResult(6, 0, 0, 0, 0)
    query = model.encode("a dog", processor)
    cosines = model.encode(list(WORDS), processor) @ query
    hits = store.search(query, k=6)
    assert [hit.id for hit in hits] == [WORDS[place] for place in np.argsort(-cosines)]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1], atol=1e-5)
    assert (hits[0].text, hits[0].image, hits[0].metadata) == ("dog", None, {"length": 3, "first": "d"})
    assert [hit.id for hit in store.search(query, k=2)] == [hit.id for hit in hits[:2]]


def test_an_unchanged_corpus_needs_no_model(store: Index, loaded):
    store.sync(corpus(), *loaded)
    before = rows(store)
    assert Index.open(store.folder).update(corpus(), not_needed) == SyncResult(0, 0, 6, 0, 0)
    assert rows(store) == before


def test_only_what_differs_is_embedded_and_what_is_gone_is_removed(store: Index, loaded):
    model, processor = loaded
    store.sync(corpus(), *loaded)
    before = rows(store)
    now = [Entry("dog", "a big dog"), *corpus(("piano", "rocket", "it's")), Entry("tiger", "tiger")]
    assert store.sync(now, *loaded) == SyncResult(embedded=2, described=1, unchanged=2, removed=2, rejected=0)
    after = rows(store)
    assert after.keys() == {"dog", "piano", "rocket", "it's", "tiger"}
    assert {name: after[name] for name in ("piano", "rocket")} == {name: before[name] for name in ("piano", "rocket")}
    assert (after["dog"]["text"], after["dog"]["first"]) == ("a big dog", None)
    np.testing.assert_allclose(after["dog"]["vector"], model.encode("a big dog", processor), atol=1e-5)
    assert store.sync(corpus(("dog",)), *loaded).removed == 4
    assert rows(store).keys() == {"dog"}


def test_bad_entries_are_listed_and_lose_their_old_rows(store: Index, loaded, tmp_path: Path):
    (tmp_path / "red.png").write_bytes(png("red"))
    (tmp_path / "blue.png").write_bytes(png("blue"))
    entries = [Entry(name, image=str(tmp_path / f"{name}.png")) for name in ("red", "blue")] + [Entry("void")]
    assert store.sync(entries, *loaded) == SyncResult(2, 0, 0, 0, 1)
    listed = [json.loads(line) for line in (store.folder / "rejected.jsonl").read_text().splitlines()]
    assert [problem["id"] for problem in listed] == ["void"] and "neither a text nor an image" in listed[0]["reason"]
    (tmp_path / "red.png").write_bytes(b"no image")
    (tmp_path / "blue.png").unlink()
    assert store.sync(entries, *loaded) == SyncResult(0, 0, 0, removed=2, rejected=3)
    assert len(store) == 0
    assert len((store.folder / "rejected.jsonl").read_text().splitlines()) == 3


def test_images_are_found_by_images(store: Index, loaded, tmp_path: Path):
    model, processor = loaded
    (tmp_path / "red.png").write_bytes(png("red"))
    entries = [Entry("red", image=str(tmp_path / "red.png")), Entry("wide", image=png("blue", (900, 30)))]
    store.sync(entries, *loaded)
    red, wide = store.search(model.encode(query_item(image=Image.new("RGB", (24, 24), "red")), processor))
    assert (red.id, red.image) == ("red", str(tmp_path / "red.png"))
    assert red.score == pytest.approx(1, abs=1e-5)  # both sides are asked the same
    assert Image.open(BytesIO(wide.image)).size == (320, 11)  # no file of its own: a small copy
    assert store.holds_images


def test_fewer_entries_than_asked_for_are_all_found(store: Index, loaded):
    query = np.ones(192, np.float32)
    assert store.search(query) == [] and not store.holds_images
    store.sync(corpus(("dog", "pizza")), *loaded)
    assert {hit.id for hit in store.search(query, k=100)} == {"dog", "pizza"}


def test_wrong_queries_are_refused(store: Index):
    for query, k, reason in [
        (np.ones(192), 0, "k must be at least 1, got 0"),
        (np.ones(64), 5, "holds vectors of 192 dimensions, made by .*unime-tiny; this model makes 64"),
        (np.ones((2, 192)), 5, r"expected one query of shape \(192,\), got \(2, 192\)"),
    ]:
        with pytest.raises(ValueError, match=reason):
            store.search(query, k)


def test_what_is_no_index_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere is no index: make one with `unime index SOURCE .*nowhere`"):
        Index.open(tmp_path / "nowhere")
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ValueError, match="index.json describes no index"):
        Index.open(tmp_path)
    with pytest.raises(ValueError, match="holds something already: give a new folder"):
        Index.create(tmp_path, TINY)


def test_a_run_that_was_killed_while_it_made_the_index_is_continued(tmp_path: Path, loaded):
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "index.json.part").write_text('{"check')
    Index.create(folder, TINY)
    shutil.rmtree(folder / "entries.lance")
    (folder / "entries.lance").mkdir()  # its first version was not written yet
    assert Index.open(folder).sync(corpus(), *loaded).embedded == 6


def test_a_model_is_known_by_what_decides_its_vectors(store: Index, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(TINY, copy)
    (copy / "README.md").write_text("another card")
    store.check_model(str(copy))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"changed": True}))
    with pytest.raises(
        ValueError, match=f"copy is another model .revision {fingerprint(str(copy))}.: give the model of"
    ):
        store.check_model(str(copy))


def test_a_model_that_is_gone_is_named(store: Index, tmp_path: Path):
    with pytest.raises(ValueError, match="there is no model .*/gone: give the folder where it is now"):
        store.check_model(str(tmp_path / "gone"))


def test_a_model_of_other_dimensions_embeds_nothing(store: Index, loaded, tmp_path: Path):
    file = store.folder / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dimensions": 64}))
    with pytest.raises(ValueError, match="holds vectors of 64 dimensions"):
        Index.open(store.folder).sync(corpus(), *loaded)


def test_two_processes_do_not_write_at_a_time(store: Index, loaded):
    with FileLock(store.folder / ".lock"), pytest.raises(ValueError, match="another process is writing to"):
        store.sync(corpus(), *loaded)


def test_an_open_index_sees_what_another_process_has_written(store: Index, loaded):
    reader = Index.open(store.folder)
    store.sync(corpus(), *loaded)
    store.table.merge()
    assert len(reader.search(np.ones(192, np.float32))) == 6
