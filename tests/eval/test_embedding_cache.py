"""Embeddings are computed once, even if a run is interrupted, and shared by the processes of a launch."""

import json
import multiprocessing
import resource
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as distributed
from PIL import Image

from unime.eval.embedding_cache import EmbeddingCache, balanced_ranks
from unime.eval.lazy_items import LazyItems, file_identity
from unime.eval.tasks import CompositionalTask


def encode(items):
    """Embed an item as the length of its text and the width of its image."""
    sizes = [(len(item.get("text", "")), item["image"].width if "image" in item else 0) for item in items]
    return np.array(sizes, dtype=np.float32) + 1


def lazy(*texts: str) -> LazyItems:
    return LazyItems([{"text": text} for text in texts], read=Image.open)


@pytest.fixture
def calls() -> list[int]:
    return []


@pytest.fixture
def counting(calls: list[int]):
    def embed(items):
        calls.append(len(items))
        return encode(items)

    return embed


def test_cached_embeddings_are_not_computed_again(counting, calls: list[int], tmp_path: Path):
    items = lazy("a", "bb", "a", "ccc", "dddd", "eeeee")
    first = EmbeddingCache(counting, tmp_path, window=2)
    assert first(items).tolist() == [[2, 1], [3, 1], [2, 1], [4, 1], [5, 1], [6, 1]]
    assert calls == [2, 2, 1] and first.embedded_items == 5
    second = EmbeddingCache(counting, tmp_path, window=3)
    np.testing.assert_array_equal(second(lazy("dddd", "a", "new one")), [[5, 1], [2, 1], [8, 1]])
    assert calls == [2, 2, 1, 1] and second.embedded_items == 1


def test_lazy_items_keep_the_order_of_texts_and_images(tmp_path: Path):
    colors = ("red", "blue")
    for color in colors:
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{color}.png")
    red, blue = ({"type": "image", "image": str(tmp_path / f"{color}.png")} for color in colors)
    contents = [["a", red, "b", blue], ["a", blue, "b", red], [red, "a", blue, "b"], ["a", red, "b", blue]]
    items = LazyItems([{"content": content, "instruction": None} for content in contents], read=Image.open)
    keys = items.keys()
    assert keys[0] == keys[3] and len(set(keys)) == 3
    image = items[1]["content"][1]
    assert [items[1]["content"][0], image.getpixel((0, 0)), items[1]["content"][2]] == ["a", (0, 0, 255), "b"]
    CompositionalTask("order", items, items, items)
    with pytest.raises(ValueError, match="image 0 of task 'order': a part of 'content' must be"):
        CompositionalTask("order", LazyItems([{"content": [{"image": "a"}]}], read=Image.open), items[:1], items[:1])


def test_items_in_memory_that_differ_in_order_only_are_embedded_apart(counting, calls: list[int]):
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    cache = EmbeddingCache(lambda items: counting([{"text": "a"}] * len(items)))
    cache([["a", red, "b", blue], ["a", blue, "b", red], {"content": ["a", red, "b", blue]}, [red, "a"]])
    cache([{"text": "a", "image": red}])
    assert calls == [3]


def test_an_interrupted_run_computes_only_missing_embeddings(counting, calls: list[int], tmp_path: Path):
    items = lazy("a", "bb", "ccc", "dddd")

    def interrupted(items):
        if calls:
            raise KeyboardInterrupt
        return counting(items)

    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(interrupted, tmp_path, window=2)(items)
    (finished,) = tmp_path.glob("*.npy")
    (tmp_path / f".{finished.name}.1.part").write_bytes(finished.read_bytes()[:100])  # left by a killed process
    resumed = EmbeddingCache(counting, tmp_path, window=2)
    np.testing.assert_array_equal(resumed(items), encode(items))
    assert calls == [2, 2] and finished.exists()


def test_windows_are_bounded_by_their_images(counting, calls: list[int], tmp_path: Path):
    Image.new("RGB", (3, 4)).save(tmp_path / "frame.png")
    videos = [{"text": f"{number}", "image": [str(tmp_path / "frame.png")] * 2} for number in range(3)]
    items = LazyItems([*videos, *({"text": f"text {number}"} for number in range(9))], read=Image.open)
    cache = EmbeddingCache(lambda items: counting([{"text": item["text"]} for item in items]), tmp_path, window=8)
    done: list[int] = []
    assert cache(items, done.append).shape == (12, 2)
    assert calls == [1, 1, 2, 8]  # a video costs 7, a text 1
    assert sum(done) == 12 and len(done) == 5 and min(done[:-1]) > 0
    cache(items, done.append)
    assert sum(done) == 24


def test_files_are_not_held_open(tmp_path: Path):
    items = lazy(*(f"number {number}" for number in range(200)))
    first = EmbeddingCache(encode, tmp_path, window=1)(items)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limit[1]))
    try:
        cache = EmbeddingCache(encode, tmp_path)
        np.testing.assert_array_equal(cache(items), first)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert cache.embedded_items == 0


def test_windows_are_shared_by_their_cost():
    assert balanced_ranks([1, 1, 9, 1, 4, 1, 1], 2) == [1, 1, 0, 1, 1, 1, 1]
    assert balanced_ranks([2, 2, 1], 2) == [0, 1, 0] and balanced_ranks([5], 8) == [0] and balanced_ranks([], 2) == []


def test_a_changed_image_is_another_item(counting, calls: list[int], tmp_path: Path):
    image = tmp_path / "image.png"
    items = LazyItems([{"image": str(image)}], read=Image.open, identity=file_identity)
    for width in (3, 5):
        Image.new("RGB", (width, 4)).save(image)
        cache = EmbeddingCache(counting, tmp_path / "cache")
        assert [cache(items).tolist(), cache(items).tolist()] == [[[1, width + 1]]] * 2
    assert calls == [1, 1]
    image.unlink()
    assert items.keys() != []  # a missing image is an error only when it is read


def test_the_key_of_an_item_depends_on_its_content():
    def key(**item: object) -> str:
        return LazyItems([item], read=Image.open).keys()[0]

    assert key(text="a") == key(text="a", image=None) == key(text="a", instruction="")
    others = [key(text="a"), key(image="a"), key(text="a", instruction="b"), key(text="a", image="b"), key(text=None)]
    videos = [key(video=["a", "b"]), key(video=["a"], image="b"), key(video=["a"])]
    videos.append(key(content=[{"type": "video", "video": ["a", "b"]}, {"type": "image", "image": "c"}]))
    videos.append(key(content=[{"type": "video", "video": ["a", "b", "c"]}]))
    assert len({*others, *videos, key(image=["a", "b"]), key(image=["ab"])}) == 12


def test_slices_are_lists_of_items():
    items = lazy("a", "bb", "ccc")
    assert items[1:] == [{"text": "bb"}, {"text": "ccc"}] and list(items)[-1] == items[2]


def embed_in_turn(folder: Path, rank: int) -> None:
    """Embed as one of two processes, and write the result."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    cache = EmbeddingCache(encode, folder / "cache", window=2)
    embeddings = [cache(lazy("a", "bb", "ccc", "dddd", "eeeee")).tolist(), cache(lazy("a", "ffffff")).tolist()]
    (folder / f"{rank}.json").write_text(json.dumps([embeddings, cache.embedded_items]))
    distributed.destroy_process_group()


def test_two_processes_share_the_work_and_have_the_same_embeddings(tmp_path: Path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=embed_in_turn, args=(tmp_path, rank), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    (first, first_items), (second, second_items) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first == second == [[[2, 1], [3, 1], [4, 1], [5, 1], [6, 1]], [[2, 1], [7, 1]]]
    assert (first_items, second_items) == (4, 2)  # windows of 2, 2 and 1 in turns, then one of 1
