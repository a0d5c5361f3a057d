"""MMEB-train, on small folders in its published layout."""

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from unime.data.mmeb_train import INSTRUCTIONS, TARGET_PROMPTS, mmeb_train
from unime.data.rows import ROW_COLUMNS


Publish = Callable[..., Path]
ROWS = {
    "ImageNet_1K": [
        {
            "qry": "<|image_1|>\nRepresent the given image for classification\n",
            "qry_image_path": f"images/ImageNet_1K/Train/{number}.jpg",
            "pos_text": name,
            "pos_image_path": "",
        }
        for number, name in enumerate(("tench", "goldfish", "white shark", "hammerhead"))
    ],
    "CIRR": [
        {
            "qry": "<|image_1|>\nGiven an image, find a similar everyday image with the described changes: two dogs\n",
            "qry_image_path": "images/CIRR/Train/0.jpg",
            "pos_text": "<|image_1|>\nRepresent the given image.\n",
            "pos_image_path": "images/CIRR/Train/1.jpg",
        }
    ],
    "WebQA": [
        {
            # As published: an image token before a question without an image.
            "qry": "<|image_1|>\nFind a Wikipedia image that answers this question: How high is it?\n",
            "qry_image_path": "",
            "pos_text": "<|image_1|>\nRepresent the given Wikipedia image with related text information: A tower\n",
            "pos_image_path": "images/WebQA/Train/0.jpg",
        }
    ],
}


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Return a function that writes subsets in the layout of the Hub, with a README that lists their files."""

    def write(subsets: dict[str, list[dict]] = ROWS) -> Path:
        configs = ["---", "configs:"]
        for name, rows in subsets.items():
            file = f"{name}/original-00000-of-00001.parquet"
            (tmp_path / name).mkdir(parents=True)
            Dataset.from_list([row | {"neg_text": "", "neg_image_path": ""} for row in rows]).to_parquet(
                tmp_path / file
            )
            configs += [f"- config_name: {name}", "  data_files:", "  - split: original", f"    path: {file}"]
            for row in rows:
                for key in ("qry_image_path", "pos_image_path"):
                    if row.get(key):
                        path = tmp_path / row[key]
                        path.parent.mkdir(parents=True, exist_ok=True)
                        Image.new("RGB", (6, 4), (9, 99, 199)).save(path)
        (tmp_path / "README.md").write_text("\n".join([*configs, "---", ""]))
        return tmp_path

    return write


def test_the_twenty_subsets_of_the_paper_exist():
    assert len(INSTRUCTIONS) == 20


def test_published_strings_become_items(publish: Publish):
    folder = publish()
    dataset = mmeb_train(str(folder), folder, subsets=list(ROWS))
    assert len(dataset) == 6 and dataset.with_format(None)["task"][:] == ["ImageNet_1K"] * 4 + ["CIRR", "WebQA"]
    classification, retrieval, question = dataset[1], dataset[4], dataset[5]
    assert tuple(classification) == ROW_COLUMNS
    assert classification["query"].pop("image")[0].size == (6, 4)
    assert classification["query"] == {"instruction": "Represent the given image for classification"}
    assert classification["positives"][0] == {"text": "goldfish"} and classification["negatives"] == []
    assert retrieval["query"]["text"] == "two dogs" and retrieval["query"]["instruction"].endswith(
        "described changes:"
    )
    assert len(retrieval["positives"][0].pop("image")) == 1
    assert retrieval["positives"][0] == {"instruction": "Represent the given image."}
    assert question["query"] == {
        "text": "How high is it?",
        "instruction": "Find a Wikipedia image that answers this question:",
    }
    assert question["positives"][0]["text"] == "A tower" and "image" in question["positives"][0]


def test_target_prompts_give_every_candidate_an_instruction(publish: Publish):
    assert all((candidate is None) == (name in TARGET_PROMPTS) for name, (_, candidate) in INSTRUCTIONS.items())
    folder = publish()
    classification, retrieval = (
        mmeb_train(str(folder), folder, [subset], target_prompts=True)[0] for subset in ("ImageNet_1K", "CIRR")
    )
    assert classification["positives"][0] == {"text": "tench", "instruction": "Represent the class label:"}
    assert retrieval["positives"][0]["instruction"] == "Represent the given image."


def test_the_row_limit_applies_to_each_subset_and_is_reproducible(publish: Publish):
    folder = publish()

    def names(seed: int) -> list[str]:
        dataset = mmeb_train(str(folder), folder, ["ImageNet_1K", "CIRR"], max_rows_per_subset=3, seed=seed)
        assert dataset.with_format(None)["task"][:] == ["ImageNet_1K"] * 3 + ["CIRR"]
        return [row["positives"][0]["text"] for row in dataset if row["task"] == "ImageNet_1K"]

    assert names(0) == names(0) and len(set(names(0))) == 3
    assert any(names(seed) != names(0) for seed in range(1, 6))


def test_subset_weights_repeat_or_drop_rows(publish: Publish):
    folder = publish()

    def tasks(**weights: float) -> list[str]:
        sets = ["ImageNet_1K", "CIRR"]
        return mmeb_train(str(folder), folder, sets, max_rows_per_subset=4, subset_weights=weights).with_format(None)[
            "task"
        ][:]

    assert tasks(ImageNet_1K=0.5) == ["ImageNet_1K"] * 2 + ["CIRR"]
    assert tasks(CIRR=2, ImageNet_1K=1.25) == ["ImageNet_1K"] * 5 + ["CIRR"] * 2
    assert tasks(ImageNet_1K=0) == ["CIRR"]
    with pytest.raises(ValueError, match="unknown subset 'ImageNet' of MMEB-train: choose from"):
        tasks(ImageNet=2)


def test_the_error_of_a_missing_image_names_subset_and_row(publish: Publish):
    folder = publish()
    for row in ROWS["ImageNet_1K"][1:]:
        (folder / row["qry_image_path"]).unlink()
    dataset = mmeb_train(str(folder), folder, ["ImageNet_1K"])
    with pytest.raises(ValueError, match=r"^MMEB-train ImageNet_1K, row 1, query: .*1.jpg: it does not exist"):
        dataset[1]


def test_zip_files_unpacked_elsewhere_are_reported_when_the_data_is_opened(publish: Publish):
    folder = publish()
    (folder / "images" / "CIRR" / "Train").rename(folder / "CIRR" / "Train")  # unzip images_zip/CIRR.zip
    mmeb_train(str(folder), folder, ["ImageNet_1K"])
    with pytest.raises(ValueError, match=r"^MMEB-train CIRR: the image .*images/CIRR/Train/0.jpg does not exist"):
        mmeb_train(str(folder), folder, ["ImageNet_1K", "CIRR"])
    with pytest.raises(ValueError, match=r"`unzip images_zip/CIRR.zip -d .*/images/`, or give"):
        mmeb_train(str(folder), folder, ["ImageNet_1K", "CIRR"])


def test_an_unknown_subset_or_missing_column_is_refused(publish: Publish):
    folder = publish({"CIRR": [{"qry": "text", "pos_text": "text"}]})
    with pytest.raises(ValueError, match="unknown subset 'CIFAR-100' of MMEB-train: choose from ImageNet_1K, "):
        mmeb_train(str(folder), folder, ["CIFAR-100"])
    reason = "MMEB-train CIRR: .* lacks the column.s. qry_image_path, pos_image_path; found: qry, "
    with pytest.raises(ValueError, match=reason):
        mmeb_train(str(folder), folder, ["CIRR"])
