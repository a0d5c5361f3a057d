"""A miniature MMEB-eval: all 36 subsets in the published layout, with texts, images and both as candidates."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unime.data.mmeb_train import TARGET_PROMPTS
from unime.eval.benchmarks.mmeb import SETS, tasks
from unime.eval.embedding_cache import EmbeddingCache
from unime.eval.miniatures.hub_files import write_hub_dataset
from unime.eval.miniatures.mmeb_miniature import ROWS, published_rows, write_images
from unime.eval.tasks import evaluate


Publish = Callable[..., Path]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    def write(names: list[str], images: bool = True, change: Callable[[dict], dict] = dict) -> Path:
        write_hub_dataset(tmp_path, {name: [change(row) for row in published_rows(name)] for name in names})
        if images:
            write_images(tmp_path, names)
        return tmp_path

    return write


def encode(items):
    """Embed an item as the number in its text or the gray of its image, one dimension each."""
    numbers = []
    for item in items:
        words = [word for word in item.get("text", "").split() if word.isdigit()]
        numbers.append(int(words[0]) if words else round(np.asarray(item["image"])[0, 0, 0] / 20))
    return np.eye(ROWS, dtype=np.float32)[numbers]


def test_all_36_subsets_run_and_their_means_follow_the_leaderboard(publish: Publish):
    folder = publish(list(SETS))
    opened = tasks(str(folder), folder)
    seen = []

    def counting(items):
        seen.extend(items)
        return encode(items)

    # Queries of one subset get the embedding of their neighbor.
    def with_errors(items):
        rows = counting(items)
        wrong = [item.get("instruction") == SETS["NIGHTS"][2] for item in items]
        return np.where(np.array(wrong)[:, None], np.roll(rows, 1, axis=1), rows)

    results, _ = evaluate(EmbeddingCache(with_errors), opened, model="numbers", benchmark="mmeb", progress=False)
    assert len(results["tasks"]) == 36
    assert {name for name, task in results["tasks"].items() if task["hit@1"] < 1} == {"NIGHTS"}
    assert results["overall"] == pytest.approx(35 / 36)
    assert results["mean_of_meta_tasks"] == pytest.approx((3 + 11 / 12) / 4)
    assert results["distributions"] == {"IND": pytest.approx(19 / 20), "OOD": 1.0}
    assert [task["candidates"] for task in results["tasks"].values()] == [4] * 36
    assert not any("<|image_1|>" in (item.get("text") or "") for item in seen)
    # Each subset has eight queries and eight distinct candidates, although its rows list 32.
    assert all(len(task.queries) == len(task.candidates) == ROWS for task in opened)


def test_published_strings_are_split_into_items(publish: Publish):
    folder = publish(["WebQA", "OVEN", "RefCOCO-Matching", "MSCOCO", "ImageNet-1K"])
    by_name = {task.name: task for task in tasks(str(folder), folder, ["WebQA", "RefCOCO-Matching", "ImageNet-1K"])}
    assert list(by_name) == ["WebQA", "RefCOCO-Matching", "ImageNet-1K"]
    assert by_name["WebQA"].queries[2] == {
        "text": "number 2",
        "instruction": "Find a Wikipedia image that answers this question:",
    }
    target = by_name["RefCOCO-Matching"].candidates[0]
    assert target["instruction"] == "Select the portion of the image that follows the language expressions:"
    assert target["image"].size == (4, 4) and "text" not in target
    assert by_name["ImageNet-1K"].candidates[1] == {"text": "number 1"}
    assert by_name["ImageNet-1K"].positives[3] == by_name["ImageNet-1K"].pools[3][:1]


def test_candidates_without_an_instruction_get_one_with_target_prompts(publish: Publish):
    folder = publish(list(SETS))
    for task in tasks(str(folder), folder, target_prompts=True):
        published = SETS[task.name][3]
        by_meta_task = {"classification": "Represent the class label:", "vqa": "Represent the answer:"}
        expected = published or by_meta_task.get(task.meta_task, "Represent the image caption:")
        assert {item["instruction"] for item in task.candidates} == {expected}
        # MMEB-train uses the same.
        assert published or TARGET_PROMPTS.get(task.name.replace("-1K", "_1K"), expected) == expected


def test_wrong_files_are_refused_in_one_sentence(publish: Publish, tmp_path: Path):
    with pytest.raises(ValueError, match="unknown subset 'CIFAR-100' of MMEB: choose from ImageNet-1K, N24News"):
        tasks("anywhere", subsets=["CIFAR-100"])

    def change(row: dict) -> dict:
        row = dict(row)
        row["qry"] = row.pop("qry_text")
        return row

    folder = publish(["ImageNet-1K"], change=change)
    with pytest.raises(
        ValueError, match="MMEB ImageNet-1K: .* lacks the column.s. qry_text; found: .*Use the dataset as"
    ):
        tasks(str(folder), folder, ["ImageNet-1K"])


def test_missing_images_are_named_before_anything_is_embedded(publish: Publish):
    folder = publish(["OK-VQA", "CIRR"], images=False)
    sentence = r"^MMEB OK-VQA, row 0: the folder .*images does not exist; unpack images.zip of MMEB-eval and give"
    with pytest.raises(ValueError, match=sentence):
        tasks(str(folder), folder, ["OK-VQA"])
    (folder / "images" / "CIRR").mkdir(parents=True)
    for number in range(ROWS):
        Image.new("RGB", (4, 4)).save(folder / "images" / "CIRR" / f"{number}.png")
    (folder / "images" / "CIRR" / "5.png").unlink()
    with pytest.raises(ValueError, match=r"^MMEB CIRR, row 5: the image .*CIRR/5.png does not exist"):
        tasks(str(folder), folder, ["CIRR"])
    (folder / "images" / "CIRR" / "5.png").write_bytes(b"no image")
    (task,) = tasks(str(folder), folder, ["CIRR"])
    with pytest.raises(ValueError, match=r"MMEB CIRR: cannot read the image .*5.png: it is not a readable image"):
        task.queries[5]


def test_links_in_the_folder_of_images_are_followed(publish: Publish, tmp_path: Path):
    folder = publish(["CIRR"])
    disk = tmp_path / "another disk"
    (folder / "images").rename(disk)
    (folder / "images").symlink_to(disk)
    (task,) = tasks(str(folder), folder, ["CIRR"])
    assert task.queries[0]["image"].size == (4, 4)

    def upwards(row: dict) -> dict:
        return row | {"qry_img_path": "../" + row["qry_img_path"]}

    folder = publish(["NIGHTS"], change=upwards)
    with pytest.raises(
        ValueError, match=r"^MMEB NIGHTS, row 0: its file \.\./\S+ is outside of .*: use the dataset as"
    ):
        tasks(str(folder), folder, ["NIGHTS"])


@pytest.mark.parametrize("folder_of_images", ["image-tasks/MMEB", "image-tasks"])
def test_a_clone_of_mmeb_v2_is_read(folder_of_images: str, publish: Publish, tmp_path: Path):
    folder = publish(["CIRR"])
    (tmp_path / "MMEB-V2" / folder_of_images).mkdir(parents=True)
    (folder / "images").rename(tmp_path / "MMEB-V2" / folder_of_images / "images")
    (task,) = tasks(str(folder), tmp_path / "MMEB-V2", ["CIRR"])
    assert task.queries[0]["image"].size == (4, 4)


def test_rows_without_candidates_are_named(publish: Publish):
    folder = publish(["CIRR"], change=lambda row: row | {"tgt_text": row["tgt_text"][:2]})
    with pytest.raises(
        ValueError,
        match="MMEB CIRR, row 0: expected equally .* got 2 texts and 4 images",
    ):
        tasks(str(folder), folder, ["CIRR"])
