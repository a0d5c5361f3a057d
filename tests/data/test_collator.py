"""Collators: distinct items, and indices that connect them to the rows."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from unime import micro_batches, processor_from_backbone
from unime.data.collator import ContrastiveCollator, DistillationCollator
from unime.data.rows import content_hash, label_hash, task_hash


def reversed_halves(items: Sequence[Any]) -> list[tuple[list[int], Mapping[str, Tensor]]]:
    """Prepare items as two micro-batches in reverse order; the tensors hold the content hashes."""
    order = list(range(len(items)))[::-1]
    halves = [order[: len(order) // 2], order[len(order) // 2 :]]
    return [(half, {"content": torch.tensor([content_hash(items[i]) for i in half])}) for half in halves if half]


def item_contents(batch: Mapping[str, Any]) -> list[int]:
    """Return the content hash of each item, in the order that a trainer restores."""
    outputs = torch.cat([tensors["content"] for tensors in batch["micro_batches"]])
    items = torch.empty_like(outputs)
    items[batch["order"]] = outputs
    return items.tolist()


def candidate_contents(batch: Mapping[str, Any]) -> list[int]:
    return batch["content"][batch["candidate"]].tolist()


def row(query: Any, positive: Any, *negatives: Any, task: str = "names", label: str | None = None) -> dict[str, Any]:
    return {"query": query, "positive": positive, "negatives": list(negatives), "task": task, "label": label}


def hashes(*items: Any) -> list[int]:
    return [content_hash(item) for item in items]


ROWS = [
    row("a cat", "Katze", "Hund", "Maus"),
    row("a dog", "Hund", "Katze"),
    row("the cat", "Katze", "a dog"),
    row("a bird", "Vogel", "Maus", "Katze"),
]


def test_every_distinct_item_is_embedded_once() -> None:
    batch = ContrastiveCollator(reversed_halves)(ROWS)
    assert item_contents(batch) == hashes("a cat", "a dog", "the cat", "a bird", "Katze", "Hund", "Vogel", "Maus")
    assert batch["order"].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


def test_items_that_differ_in_order_only_are_distinct_and_equal_ones_are_embedded_once() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    item, swapped = ["a", red, "b", blue], ["a", blue, "b", red]
    rows = [row("a cat", item, swapped), row("a dog", {"content": list(item)}), row({"content": [red, "a"]}, swapped)]
    batch = ContrastiveCollator(reversed_halves)([*rows, row({"text": "a", "image": red}, item)])
    assert item_contents(batch) == hashes("a cat", "a dog", [red, "a"], item, swapped)
    assert batch["positive"].tolist() == [0, 0, 1, 0]


def test_indices_map_rows_to_candidates_and_candidates_to_items() -> None:
    batch = ContrastiveCollator(reversed_halves)(ROWS)
    # The candidates are the positives Katze, Hund, Vogel, then the negatives Maus and "a dog", also a query.
    assert batch["query"].tolist() == [0, 1, 2, 3]
    assert batch["candidate"].tolist() == [4, 5, 6, 7, 1]
    assert batch["positive"].tolist() == [0, 1, 0, 2]
    assert candidate_contents(batch) == hashes("Katze", "Hund", "Vogel", "Maus", "a dog")
    assert batch["label"].tolist() == [-1] * 5
    names = ("order", "identity", "content", "query", "candidate", "positive", "task")
    assert all(batch[name].dtype == torch.int64 for name in names)


def test_content_does_not_depend_on_the_instruction_and_identity_does() -> None:
    ask, show = ({"text": "a cat", "instruction": text} for text in ("Find it:", "Represent it:"))
    batch = ContrastiveCollator(reversed_halves)([row(ask, show), row("a cat", "Katze", task="translation")])
    assert len(set(batch["identity"].tolist())) == 4
    assert batch["content"].tolist() == hashes("a cat", "a cat", "a cat", "Katze")
    assert batch["query"].tolist() == [0, 1]
    assert batch["task"].tolist() == [task_hash("names"), task_hash("translation")]


def test_a_negative_that_is_a_positive_in_the_batch_is_not_added_again() -> None:
    batch = ContrastiveCollator(reversed_halves)([row("a cat", "Katze", "Hund"), row("a dog", "Hund", label="dog")])
    assert candidate_contents(batch) == hashes("Katze", "Hund")
    assert batch["label"].tolist() == [-1, label_hash("names", "dog")]


def test_a_text_with_two_labels_is_two_candidates_and_one_item() -> None:
    rows = [
        row("is it red?", "yes", task="question", label="red"),
        row("is it blue?", "yes", task="question", label="blue"),
        row("is it very red?", "yes", task="question", label="red"),
    ]
    batch = ContrastiveCollator(reversed_halves)(rows)
    assert len(item_contents(batch)) == 4
    assert batch["candidate"].tolist() == [3, 3]
    assert batch["positive"].tolist() == [0, 1, 0]
    assert candidate_contents(batch) == hashes("yes", "yes")
    assert batch["label"].tolist() == [label_hash("question", "red"), label_hash("question", "blue")]


def test_the_same_label_in_two_tasks_is_two_labels() -> None:
    rows = [row("cat?", "cat", task="names", label="cat"), row("cat!", "cat", task="crop", label="cat")]
    labels = ContrastiveCollator(reversed_halves)(rows)["label"]
    assert len(labels) == 2 and labels[0] != labels[1]


def test_images_with_the_same_pixels_are_one_item() -> None:
    red, same, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "#ff0000", "blue"))
    rows = [row({"image": red}, "red"), row({"image": same}, "rouge"), row({"image": blue}, {"image": red})]
    batch = ContrastiveCollator(reversed_halves)(rows)
    assert batch["query"].tolist() == [0, 0, 1]
    assert batch["candidate"].tolist() == [2, 3, 0]
    assert batch["identity"].tolist() == item_contents(batch)


def test_a_file_that_is_only_opened_is_decoded_once_for_its_hashes_and_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (32, 24), "red").save(tmp_path / "red.jpg")
    decoded, load = [], JpegImageFile.load

    def counting_load(image: JpegImageFile) -> Any:
        if image._im is None:
            decoded.append(image)
        return load(image)

    monkeypatch.setattr(JpegImageFile, "load", counting_load)
    with Image.open(tmp_path / "red.jpg") as opened:
        batch = ContrastiveCollator(reversed_halves)([row("red", opened)])
        assert batch["content"].tolist() == item_contents(batch)
        assert len(decoded) == 1 and opened._im is None


def test_a_batch_of_texts_has_their_teacher_embeddings() -> None:
    rows = [{"text": "a cat", "teacher": [0.0, 1.0, 0.5]}, {"text": "a dog", "teacher": [1.0, 0.0, 0.25]}]
    batch = DistillationCollator(reversed_halves)(rows)
    assert item_contents(batch) == hashes("a cat", "a dog")
    assert batch["teacher"].dtype == torch.float32
    assert batch["teacher"].tolist() == [[0.0, 1.0, 0.5], [1.0, 0.0, 0.25]]
    assert "texts" not in batch


def test_a_batch_for_an_online_teacher_has_the_texts() -> None:
    batch = DistillationCollator(reversed_halves)([{"text": "a cat"}, {"text": "a cat"}])
    assert batch["texts"] == ["a cat"] and "teacher" not in batch
    assert item_contents(batch) == hashes("a cat")


def test_a_text_in_several_rows_is_embedded_once_and_keeps_each_teacher_embedding() -> None:
    texts = ["a cat", "a dog", "a cat", "a bird", "a dog"]
    rows = [{"text": text, "teacher": [float(number), 1.0]} for number, text in enumerate(texts)]
    batch = DistillationCollator(reversed_halves)(rows)
    assert item_contents(batch) == hashes("a cat", "a dog", "a bird")
    assert batch["text"].tolist() == [0, 1, 0, 2, 1]
    assert batch["teacher"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert batch["provenance"] == ["the text 'a cat'", "the text 'a dog'", "the text 'a bird'"]


@pytest.mark.parametrize("name", ["llava", "qwen2-vl"])
def test_the_order_covers_all_rows_of_the_micro_batches(name: str, tiny_model: Any) -> None:
    folder: Path = tiny_model(name)
    prepare = partial(micro_batches, processor_from_backbone(folder), micro_batch_tokens=64)
    image = {"image": Image.new("RGB", (30, 30), "red"), "text": "what is it?"}
    batch = ContrastiveCollator(prepare)([*ROWS, row(image, "a tile of one colour and nothing else on it")])
    assert sorted(batch["order"].tolist()) == list(range(10))
    rows = [len(tensors["input_ids"]) for tensors in batch["micro_batches"]]
    assert sum(rows) == 10 and len(rows) > 2
    assert ["pixel_values" in tensors for tensors in batch["micro_batches"]] == [False] * (len(rows) - 1) + [True]
