import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from unime.data.rows import ROW_COLUMNS, content_hash
from unime.data.sources import DataArguments, open_rows, open_texts, open_with_eval_sets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make an image folder: three images and a `metadata.jsonl` about them."""
    lines = []
    for number in range(3):
        Image.new("RGB", (5, 4 + number), (80 * number, 9, 9)).save(tmp_path / f"{number}.png")
        metadata = {"file_name": f"{number}.png", "caption": f"caption {number}", "kind": f"kind {number % 2}"}
        lines.append(json.dumps(metadata | {"wrong": [f"wrong {number}", "never"]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Callable[..., DataArguments]:
    columns = {"query.text": "caption", "positive.image": "image"}
    return lambda **more: DataArguments(**{"dataset": str(folder), "columns": columns} | more)


def test_a_column_map_turns_an_image_folder_into_rows(folder: Path, settings: Callable[..., DataArguments]):
    instructions = {"query": "Find me an everyday image that matches the given caption:"}
    row = open_rows(settings(instructions=instructions))[1]
    assert tuple(row) == ROW_COLUMNS
    assert row["query"] == {"instruction": instructions["query"], "text": "caption 1"}
    assert row["positives"][0]["image"][0].size == (5, 5) and row["positives"][0].keys() == {"image"}
    assert (row["negatives"], row["task"], row["label"]) == ([], folder.name, None)


def test_negatives_tasks_and_labels_can_be_mapped(settings: Callable[..., DataArguments]):
    columns = {"query.image": "image", "positive.text": "caption", "negative.text": "wrong"}
    columns |= {"task": "kind", "label": "caption"}
    dataset = open_rows(settings(columns=columns, instructions={"query": "What is it?"}))
    row = dataset[2]
    assert row["negatives"] == [{"text": "wrong 2"}, {"text": "never"}]
    assert (row["task"], row["label"]) == ("kind 0", "caption 2")
    assert dataset.with_format(None)["task"][:] == ["kind 0", "kind 1", "kind 0"]


def test_a_column_map_gives_texts_for_stage_1(settings: Callable[..., DataArguments]):
    dataset = open_texts(settings(columns={"text": "caption"}))
    assert dataset.column_names == ["text"] and dataset["text"][:2] == ["caption 0", "caption 1"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"columns": {"query.text": "titel", "positive.image": "image"}}, "missing: titel; found: .*caption"),
        ({"columns": {"query.text": "caption"}}, "has no column for the positive: give positive.text"),
        ({"columns": {"question": "caption"}}, "unknown key question in `columns`; valid keys are query.text"),
        ({"instructions": {"target": "Find:"}}, "unknown key 'target' in `instructions`; valid keys are"),
    ],
)
def test_an_invalid_column_map_is_refused(
    settings: Callable[..., DataArguments], more: dict[str, dict[str, str]], sentence: str
):
    with pytest.raises(ValueError, match=sentence):
        open_rows(settings(**more))


def test_the_error_of_a_bad_image_in_a_mapped_dataset_names_it(folder: Path, settings: Callable[..., DataArguments]):
    (folder / "1.png").write_bytes(b"no image")
    dataset = open_rows(settings())
    assert dataset[0]["positives"][0]["image"]
    with pytest.raises(ValueError, match=rf"^{folder.name}, row 1, positive: .*1.png: it is not a readable image"):
        dataset[1]


@pytest.fixture
def nli(tmp_path: Path) -> Path:
    """Make a dataset in the layout of sentence-transformers/all-nli: a folder of Parquet files per configuration."""
    folder = tmp_path / "all-nli"
    (folder / "triplet").mkdir(parents=True)
    triplets = {
        "anchor": ["A man eats.", "A man eats.", "A dog runs."],
        "positive": ["Someone eats.", "A man has food.", "An animal runs."],
        "negative": ["Nobody eats.", "A dog runs.", ""],
    }
    Dataset.from_dict(triplets).to_parquet(folder / "triplet" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: triplet\n  data_files:\n  - split: train\n    path: triplet/train-*\n---\n"
    )
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_nli_triplets_become_distinct_texts(nli: Path, streaming: bool):
    columns = {"text": ["anchor", "positive", "negative"]}
    data = DataArguments(dataset=str(nli), columns=columns, config_name="triplet", streaming=streaming)
    texts = [row["text"] for row in open_texts(data)]
    expected = ["A man eats.", "Someone eats.", "Nobody eats.", "A man has food.", "A dog runs.", "An animal runs."]
    assert texts == expected


def test_lists_of_positives_and_scores_are_mapped(tmp_path: Path):
    table = {
        "question": ["pets?", "red?"],
        "captions": [["a cat", "a dog"], ["rouge"]],
        "wrong": [["a car"], ["vert", "bleu"]],
        "judged": [[1.0, 0.5, 0.25], [1.0, 0.0, None]],
    }
    Dataset.from_dict(table).to_parquet(tmp_path / "train.parquet")
    columns = {"query.text": "question", "positives.text": "captions", "negative.text": "wrong", "scores": "judged"}
    data = DataArguments(str(tmp_path), columns=columns, instructions={"positives": "Show it:"})
    first, second = open_rows(data)
    assert first["positives"] == [{"instruction": "Show it:", "text": text} for text in ("a cat", "a dog")]
    assert [len(row["negatives"]) for row in (first, second)] == [1, 2]
    assert (first["scores"], second["scores"]) == ([1.0, 0.5, 0.25], [1.0, 0.0, None])
    with pytest.raises(ValueError, match="has both positive and positives: map one of them"):
        open_rows(DataArguments(str(tmp_path), columns=columns | {"positive.text": "question"}))


def test_a_stream_has_the_rows_of_the_dataset_in_another_order(settings: Callable[..., DataArguments]):
    def contents(streaming: bool) -> list[tuple]:
        rows = open_rows(settings(instructions={"query": "Find:"}, streaming=streaming))
        return [tuple(map(content_hash, (row["query"], *row["positives"]))) for row in rows]

    once, stream = contents(False), open_rows(settings(streaming=True))
    assert tuple(next(iter(stream))) == ROW_COLUMNS
    assert sorted(contents(True)) == sorted(once)
    stream.set_epoch(1)
    first = [row["query"]["text"] for row in stream]
    orders = set()
    for epoch in range(8):
        stream.set_epoch(epoch)
        orders.add(tuple(row["query"]["text"] for row in stream))
    assert len(orders) > 1 and sorted(first) == ["caption 0", "caption 1", "caption 2"]


def test_a_jsonl_file_can_be_streamed(folder: Path):
    lines = [{"query": {"text": f"{number}"}, "positive": {"image": f"{number}.png"}} for number in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stream = open_rows(DataArguments(dataset=str(folder / "rows.jsonl"), streaming=True))
    rows = {row["query"]["text"]: row for row in stream}
    assert rows.keys() == {"0", "1", "2"}
    assert rows["2"]["positives"][0]["image"][0].size == (5, 6) and rows["2"]["task"] == "rows.jsonl"
    (folder / "1.png").unlink()
    with pytest.raises(ValueError, match="^rows.jsonl, row 1, positive: cannot read the image .*: it does not exist"):
        list(stream)


@pytest.mark.parametrize("more", [{"dataset": "openmoji"}, {"dataset": "rows.jsonl", "mined_file": "mined.jsonl"}])
def test_streaming_an_unsupported_source_is_refused(more: dict[str, str]):
    with pytest.raises(ValueError, match="cannot be streamed: set streaming to false, or give a JSONL file"):
        open_rows(DataArguments(streaming=True, **more))


def test_target_prompts_give_openmoji_candidates_an_instruction():
    def prompts(**settings: object) -> set[str | None]:
        rows = open_rows(DataArguments(num_rows=40, **settings)).with_format(None)
        return {row["positive"]["instruction"] for row in rows}

    assert None in prompts() and None not in prompts(target_prompts=True)


def test_openmoji_rows_have_the_requested_number_of_negatives():
    def counts(**more: int) -> set[int]:
        rows = open_rows(DataArguments(num_rows=60, **more)).with_format(None)
        return {len(row["negatives"]) for row in rows if row["task"] in ("scene_t2i", "scene_i2t")}

    assert (counts(), counts(negatives_per_row=0), counts(negatives_per_row=3)) == ({1}, {0}, {3})


def test_openmoji_rows_have_the_chosen_tasks_and_one_named_twice_more_often():
    data = DataArguments(num_rows=200, tasks=["crop", "question", "crop", "crop"])
    tasks = list(open_rows(data).with_format(None)["task"])
    assert set(tasks) == {"crop", "question"} and 0.65 < tasks.count("crop") / 200 < 0.85  # 18 to 7


def write_texts(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_rows_are_held_out_of_the_training_and_evaluated(tmp_path: Path):
    texts = [f"text {number}" for number in range(8)]
    data = DataArguments(dataset=write_texts(tmp_path / "texts.jsonl", *texts), num_eval_rows=3)
    train, held_out = open_with_eval_sets(data, open_texts)
    assert isinstance(held_out, Dataset) and len(held_out) == 3
    assert sorted([*train["text"], *held_out["text"]]) == texts
    assert open_with_eval_sets(data, open_texts)[1]["text"][:] == held_out["text"][:]
    assert open_with_eval_sets(replace(data, dataset_seed=1), open_texts)[1]["text"][:] != held_out["text"][:]


def test_evaluation_sets_are_opened_like_the_training_data(tmp_path: Path):
    train, pets, tools = (write_texts(tmp_path / f"{name}.jsonl", name) for name in ("train", "pets", "tools"))
    data = DataArguments(dataset=train, rejected_file="never read for an evaluation set")
    opened, none = open_with_eval_sets(data, open_texts)
    assert opened["text"][:] == ["train"] and none is None
    _, one = open_with_eval_sets(replace(data, eval_dataset=[pets]), open_texts)
    assert one["text"][:] == ["pets"]
    _, several = open_with_eval_sets(replace(data, eval_dataset=[f"pets={pets}", f"my_tools={tools}"]), open_texts)
    assert {name: rows["text"][:] for name, rows in several.items()} == {"pets": ["pets"], "my_tools": ["tools"]}


def test_another_split_is_an_evaluation_set(tmp_path: Path):
    for split, number in (("train", 4), ("validation", 2)):
        Dataset.from_dict({"caption": [f"{split} {i}" for i in range(number)]}).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    data = DataArguments(dataset=str(tmp_path), columns={"text": "caption"}, eval_split="validation", streaming=True)
    train, validation = open_with_eval_sets(data, open_texts)
    assert [row["text"] for row in train] == [f"train {i}" for i in range(4)]
    assert validation["text"][:] == ["validation 0", "validation 1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_eval_rows": 2}, "num_eval_rows must be between 1 and 1, as the dataset has 2 rows; got 2"),
        ({"num_eval_rows": 1, "eval_split": "test"}, "give it, or eval_dataset and eval_split, not both"),
        ({"num_eval_rows": 1, "streaming": True}, "num_eval_rows cannot hold rows out of a stream"),
        ({"eval_dataset": ["a.jsonl", "b=b.jsonl"]}, "eval_dataset has 2 datasets: name each, such as pets="),
    ],
)
def test_contradictory_evaluation_settings_are_refused(settings: dict, message: str, tmp_path: Path):
    data = DataArguments(dataset=write_texts(tmp_path / "texts.jsonl", "one", "two"), **settings)
    with pytest.raises(ValueError, match=message):
        open_with_eval_sets(data, open_texts)
