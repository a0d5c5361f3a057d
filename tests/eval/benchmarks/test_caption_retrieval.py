"""Caption retrieval and SugarCrepe on small files in the published layout."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unime.eval.benchmarks import sugarcrepe
from unime.eval.benchmarks.caption_retrieval import coco, dci, docci, flickr30k, sharegpt4v, urban1k
from unime.eval.benchmarks.sugarcrepe import KINDS
from unime.eval.miniatures.caption_miniature import (
    write_dci,
    write_docci,
    write_sharegpt4v,
    write_short_captions,
    write_sugarcrepe,
    write_urban1k,
)
from unime.eval.tasks import evaluate


def encode(items):
    """Embed an item as the first number in its text or the gray of its image; `none` has a dimension of its own."""
    numbers = []
    for item in items:
        words = [word for word in item.get("text", "").split() if word.isdigit()]
        numbers.append(
            int(words[0]) if words else 12 if "text" in item else round(np.asarray(item["image"]).mean() / 20)
        )
    return np.eye(13, dtype=np.float32)[numbers]


@pytest.fixture
def captioned(tmp_path: Path) -> Callable[[list[list[str]]], str]:
    return lambda texts: str(write_short_captions(tmp_path / "set", texts))


def test_an_image_is_found_by_any_of_its_five_captions(captioned: Callable[[list[list[str]]], str]):
    texts = [[f"a {number}", "none", f"the {number}", "none", "none"] for number in range(4)]
    texts[3] = ["none"] * 5
    t2i, i2t = flickr30k(captioned(texts))
    assert (t2i.name, i2t.name) == ("flickr30k_t2i", "flickr30k_i2t")
    assert (len(t2i.queries), len(t2i.candidates)) == (20, 4) == (len(i2t.candidates), len(i2t.queries))
    assert t2i.positives[7] == [1] and i2t.positives[1] == [5, 6, 7, 8, 9]
    results, _ = evaluate(encode, [t2i, i2t], model="numbers", progress=False)
    assert results["tasks"]["flickr30k_t2i"]["R@1"] == 6 / 20  # two captions each of three images have their number
    assert results["tasks"]["flickr30k_i2t"]["R@1"] == 3 / 4  # one hit of five is enough
    assert results["tasks"]["flickr30k_t2i"]["R@5"] == 1.0  # four images


def test_coco_uses_five_captions_of_six(captioned: Callable[[list[list[str]]], str]):
    t2i, i2t = coco(captioned([[f"{number} {word}" for word in "abcdef"] for number in range(3)]))
    assert len(t2i.queries) == 15 and [query["text"] for query in t2i.queries][4:6] == ["0 e", "1 a"]
    assert i2t.queries[2]["image"].getpixel((0, 0)) == (40, 40, 40) and "instruction" not in i2t.queries[2]


def test_long_captions_are_read_as_published(tmp_path: Path):
    path = write_sharegpt4v(tmp_path, [f"{number} is\nhere.\n" for number in range(3)])
    items = json.loads(path.read_text())
    (tmp_path / "share.json").write_text(json.dumps(items + [items[0]] * 1000))
    t2i, i2t = sharegpt4v(tmp_path / "share.json", tmp_path)
    assert len(t2i.queries) == 1000 and t2i.queries[1] == {"text": "1 is here. "}
    assert t2i.meta_task == i2t.meta_task == "long" and i2t.positives[2] == [2]
    (tmp_path / "coco" / "train2017" / "1.jpg").unlink()
    with pytest.raises(ValueError, match="^sharegpt4v, row 1: the image .*1.jpg does not exist; give the folder"):
        sharegpt4v(tmp_path / "share.json", tmp_path)


def test_a_caption_of_urban1k_is_its_first_line(tmp_path: Path):
    write_urban1k(tmp_path, {number: f"{number} cars\nand a second line\n" for number in (10, 9)})
    t2i, i2t = urban1k(tmp_path)
    assert [query["text"] for query in t2i.queries] == ["9 cars", "10 cars"]
    results, _ = evaluate(encode, [t2i, i2t], model="numbers", progress=False)
    assert results["meta_tasks"] == {"long": 1.0}
    # As in the published code, only a line feed ends a line.
    (tmp_path / "caption" / "9.txt").write_text("9 cars\u2028and\x0ba\x85bus\r\nand a second line\n")
    assert urban1k(tmp_path)[0].queries[0]["text"] == "9 cars\u2028and\x0ba\x85bus"
    (tmp_path / "caption" / "9.txt").unlink()
    with pytest.raises(ValueError, match="urban1k: the image 9.jpg has no caption .*9.txt"):
        urban1k(tmp_path)
    with pytest.raises(ValueError, match="no images match .*image/.*jpg; give the folder"):
        urban1k(tmp_path / "caption")


def test_the_test_split_of_docci_is_read(tmp_path: Path):
    write_docci(tmp_path, [f"Number {number} here. It is gray." for number in range(3)])
    t2i, i2t = docci(tmp_path / "docci_descriptions.jsonlines", tmp_path / "images")
    assert [query["text"] for query in t2i.queries][1:] == ["Number 1 here. It is gray.", "Number 2 here. It is gray."]
    results, _ = evaluate(encode, [t2i, i2t], model="numbers", progress=False)
    assert results["meta_tasks"] == {"long": 1.0} and results["tasks"]["docci_i2t"]["chance"] == pytest.approx(1 / 3)
    (tmp_path / "images" / "test_00002.jpg").unlink()
    with pytest.raises(ValueError, match="docci, row 2: the image .*test_00002.jpg does not exist; give .*--docci-im"):
        docci(tmp_path / "docci_descriptions.jsonlines", tmp_path / "images")
    (tmp_path / "docci_descriptions.jsonlines").write_text(json.dumps({"split": "test", "image_file": "a.jpg"}))
    with pytest.raises(ValueError, match="docci, line 1: missing description; use the published file"):
        docci(tmp_path / "docci_descriptions.jsonlines", tmp_path / "images")
    with pytest.raises(ValueError, match="docci: there is no file .*nothing.jsonlines"):
        docci(tmp_path / "nothing.jsonlines", tmp_path / "images")


def test_captions_of_dci_are_one_text_of_sentences(tmp_path: Path):
    write_dci(tmp_path, [(f"Number {number} here.", "Wide..\nA line </s> and its end. ") for number in range(4)])
    t2i, i2t = dci(tmp_path)
    assert t2i.queries[3] == {"text": "Number 3 here. Wide. A line. and its end"} and i2t.positives[3] == [3]
    results, _ = evaluate(encode, [t2i, i2t], model="numbers", progress=False)
    assert results["meta_tasks"] == {"long": 1.0}
    (tmp_path / "photos" / "sa_1.jpg").unlink()
    with pytest.raises(ValueError, match="dci, row 1: the image .*sa_1.jpg does not exist; unpack sa_000138.tar"):
        dci(tmp_path)
    (tmp_path / "annotations" / "0-data.json").write_text(json.dumps({"image": "sa_0.jpg", "short_caption": "a"}))
    with pytest.raises(ValueError, match="dci, 0-data.json: missing extra_caption; use the published file"):
        dci(tmp_path)
    (tmp_path / "splits.json").write_text(json.dumps({"train": 3}))
    with pytest.raises(ValueError, match="dci: the split 'train' of .*splits.json is not a list of files"):
        dci(tmp_path)


@pytest.fixture
def crepe(tmp_path: Path) -> Path:
    """Write SugarCrepe's seven files of three rows, so that `swap_obj` has one error and `add_att` two."""
    captions = {}
    for kind in KINDS:
        wrong = {"swap_obj": 1, "add_att": 2}.get(kind, 0)
        pairs = [(f"{number} is there", "none") for number in range(3)]
        captions[kind] = [pair[::-1] if number < wrong else pair for number, pair in enumerate(pairs)]
    write_sugarcrepe(tmp_path, tmp_path / "val2017", captions)
    return tmp_path


def test_groups_of_sugarcrepe_are_unweighted_means_of_their_perturbations(crepe: Path):
    results, _ = evaluate(encode, [], sugarcrepe.tasks(crepe, crepe / "val2017"), model="numbers", progress=False)
    assert results["compositional"]["swap_obj"] == pytest.approx(2 / 3)
    assert results["compositional_groups"] == {
        "replace": 1.0,
        "swap": pytest.approx(5 / 6),
        "add": pytest.approx((1 + 1 / 3) / 2),
    }
    assert results["overall"] is None and results["tasks"] == {}


def test_incomplete_files_of_sugarcrepe_are_refused(crepe: Path):
    (crepe / "val2017" / "000000000002.jpg").unlink()
    with pytest.raises(ValueError, match="^replace_obj.json, row 2: the image .* does not exist; give COCO's val2017"):
        sugarcrepe.tasks(crepe, crepe / "val2017")
    (crepe / "replace_obj.json").write_text(json.dumps({"0": {"filename": "000000000000.jpg", "caption": "a"}}))
    with pytest.raises(ValueError, match="^replace_obj.json, row 0: missing negative_caption"):
        sugarcrepe.tasks(crepe, crepe / "val2017")
    (crepe / "replace_obj.json").unlink()
    with pytest.raises(ValueError, match="the file .*replace_obj.json does not exist; give the folder data/ of"):
        sugarcrepe.tasks(crepe, crepe / "val2017")
