"""CIRCO on small files in the published layout."""

import json
from pathlib import Path

import numpy as np
import pytest

from unime.eval.benchmarks import circo
from unime.eval.miniatures.circo_miniature import IMAGES, write_circo
from unime.eval.miniatures.hub_files import save_gray_tile
from unime.eval.tasks import evaluate


def encode(items):
    """Embed an image as the axis of its number, and a query as decreasing weights of the numbers in its text."""
    rows = np.zeros((len(items), IMAGES), dtype=np.float32)
    for row, item in zip(rows, items, strict=True):
        if "text" in item:
            numbers = [int(word) for word in item["text"].split()]
            row[numbers] = np.arange(IMAGES, IMAGES - len(numbers), -1)
            row /= np.linalg.norm(row)
        else:
            row[round(np.asarray(item["image"]).mean() / 20)] = 1
    return rows


def test_average_precision_of_several_positives(tmp_path: Path):
    # Positives at places 1 and 3 of the ranking 3 5 1 0; all others are tied, so that a positive comes last of them.
    queries = [(0, "3 5 1 0", [3, 1]), (2, "7 6", [6]), (1, "4", [4, 0])]
    (task,) = circo.tasks(write_circo(tmp_path, queries))
    assert task.positives[0] == [IMAGES - 1 - 3, IMAGES - 1 - 1]  # in the order of COCO's file
    assert task.queries[0]["image"].getpixel((0, 0)) == (0, 0, 0) and task.queries[0]["text"] == "3 5 1 0"
    assert task.queries[0]["instruction"].startswith("Given an image, find a similar everyday image")
    results, _ = evaluate(encode, [task], model="numbers", progress=False)
    scores = results["tasks"]["circo_val"]
    first, second = (1 + 2 / 3) / 2, 1 / 2
    assert scores["mAP@5"] == pytest.approx((first + second + 1 / 2) / 3) == results["overall"]
    assert scores["mAP@10"] == pytest.approx((first + second + (1 + 2 / 8) / 2) / 3)
    assert scores["metric"] == "mAP@5" and scores["candidates"] == IMAGES
    # Random guesses: one of the three queries has one positive.
    two = 2 / 8 * sum((1 + (place - 1) / 7) / place for place in range(1, 6)) / 2
    assert scores["chance"] == pytest.approx((2 * two + sum(1 / place for place in range(1, 6)) / 8) / 3)


def test_incomplete_files_are_refused(tmp_path: Path):
    write_circo(tmp_path, [(0, "3", [3])])
    image = tmp_path / "COCO2017_unlabeled" / "unlabeled2017" / "000000000005.jpg"
    image.unlink()
    with pytest.raises(ValueError, match="CIRCO, image 2: the image .*000000000005.jpg does not exist; unpack COCO's"):
        circo.tasks(tmp_path)
    save_gray_tile(image, 5)
    annotations = tmp_path / "annotations" / "val.json"
    row = json.loads(annotations.read_text())[0]
    for change, message in (
        ({"gt_img_ids": [99]}, "row 0: COCO's unlabeled images have no image 99; use both files as published"),
        ({"gt_img_ids": None}, "row 0: missing gt_img_ids; use the published file"),
    ):
        annotations.write_text(json.dumps([row | change]))
        with pytest.raises(ValueError, match=message):
            circo.tasks(tmp_path)
    annotations.unlink()
    with pytest.raises(ValueError, match="CIRCO: there is no file .*val.json"):
        circo.tasks(tmp_path)
