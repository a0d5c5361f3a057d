"""Prepared training sets have the rows of the dataset that they were made of, and the model reads the same of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import AutoConfig, ProcessorMixin
from typer.testing import CliRunner, Result

from unime import load_model, micro_batches
from unime.checkpoint import load_processor
from unime.cli.main import app
from unime.data import prepared
from unime.data.mmeb_train import INSTRUCTIONS
from unime.data.rows import ROW_COLUMNS
from unime.data.sampler import BalancedSampler
from unime.data.sources import DataArguments, open_rows
from unime.image_tokens_unime import vision_token_equivalents
from unime.processing_unime import to_item_dict
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


SIZES = {"qwen2-vl": 56, "smolvlm": 32, "llava-next": 24, "phi3-v": 32}
LOSSLESS_FAMILIES = ["qwen2-vl", "smolvlm", "phi3-v"]  # their processors resize an image once


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Return an image with many colours that is smooth enough for JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Write nine rows with every kind of item and image; rows 4 and 7 are bad."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    photo(0, 200, 120).save(folder / "photo.jpg", quality=95)
    photo(1, 90, 160).save(folder / "tall.png")
    photo(2, 16, 24).save(folder / "small.png")
    Image.new("RGB", (128, 96), "red").save(folder / "drawing.png")
    transparent = photo(3, 128, 64)
    transparent.putalpha(Image.linear_gradient("L").resize((128, 64)))
    transparent.save(folder / "transparent.webp", lossless=True)
    (folder / "broken.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:200])
    image = {"type": "image", "image": "tall.png"}
    rows = [
        {"query": {"text": "a photo"}, "positive": {"image": "photo.jpg", "instruction": "Represent the image."}},
        {"query": {"image": "tall.png", "text": "turned"}, "positives": [{"image": "photo.jpg"}, {"text": "b"}],
         "negatives": [{"image": "drawing.png"}, {"text": "no"}], "scores": [0.5, 1, None, -2], "label": "x"},
        {"query": {"content": ["before", image, "after"]}, "positive": {"text": ""}, "task": "ordered"},
        {"query": {"image": ["small.png", "transparent.webp"]}, "positive": {"image": "drawing.png"}},
        {"query": {"text": "missing"}, "positive": {"image": "missing.jpg"}},
        {"query": {"text": "c"}, "positive": {"text": "d", "instruction": "Say:"}, "label": 3},
        {"query": {"image": "transparent.webp"}, "positive": {"image": "small.png"}},
        {"query": {"text": "broken"}, "positive": {"image": "broken.jpg"}, "task": "ordered"},
        {"query": {"text": "last"}, "positive": {"content": [image, image]}},
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.fixture
def recipe(pairs: Path, tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a recipe for a family, with further lines."""

    def write(family: str = "qwen2-vl", *lines: str) -> Path:
        settings = [f"dataset: {pairs}", f"model_name_or_path: {tiny_model(family)}", f"image_size: {SIZES[family]}"]
        path = tmp_path / f"{family}.yaml"
        path.write_text("\n".join([*settings, "learning_rate: 1.0e-3", *lines]) + "\n")
        return path

    return write


def run(recipe: Path, *words: object) -> Result:
    return CliRunner().invoke(app, ["prepare", str(recipe), "--workers", "0", *map(str, words)])


def prepare(recipe: Path, output: Path, *words: object) -> str:
    result = run(recipe, "--output", output, *words)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.stdout


def refusal(recipe: Path, *words: object) -> str:
    error = run(recipe, *words).exception
    assert isinstance(error, (ValueError, OSError)) and "\n" not in str(error), error
    return str(error)


def items_of(row: dict[str, Any]) -> list[Any]:
    return [row["query"], *row["positives"], *row["negatives"]]


def inputs(processor: ProcessorMixin, items: Sequence[Any]) -> list[dict[str, torch.Tensor]]:
    """Return what the model reads of each item."""
    return [dict(tensors) for item in items for _, tensors in micro_batches(processor, [item])]


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "data").iterdir())}


GOOD = [0, 1, 2, 3, 5, 6, 8]


@pytest.mark.parametrize("family", SIZES)
def test_the_model_reads_the_same_of_prepared_rows(
    family: str, recipe: Callable[..., Path], pairs: Path, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    prepare(recipe(family), tmp_path / "out", "--lossless")
    original = open_rows(DataArguments(str(pairs)))
    rows = open_rows(DataArguments(str(tmp_path / "out"), image_size=SIZES[family]))
    stored = rows.with_format(None)
    processor = load_processor(str(tiny_model(family)), SIZES[family])
    config = AutoConfig.from_pretrained(tiny_model(family))
    assert len(rows) == len(original) == 9
    for index in GOOD:
        row, expected = rows[index], original[index]
        for name in set(ROW_COLUMNS) - {"query", "positives", "negatives"}:
            assert row[name] == expected[name]
        assert [len(row[name]) for name in ("positives", "negatives")] == [
            len(expected[name]) for name in ("positives", "negatives")
        ]
        items, expected_items = items_of(row), items_of(expected)
        for item, expected_item in zip(map(to_item_dict, items), map(to_item_dict, expected_items), strict=True):
            assert [item[name] for name in ("text", "content", "instruction")] == [
                expected_item[name] for name in ("text", "content", "instruction")
            ]
        read, expected_read = inputs(processor, items), inputs(processor, expected_items)
        for tensors, expected_tensors in zip(read, expected_read, strict=True):
            assert tensors.keys() == expected_tensors.keys()
            for name in tensors.keys() - {"pixel_values", "image_sizes"}:
                assert torch.equal(tensors[name], expected_tensors[name]), name
            if "pixel_values" in tensors and family in LOSSLESS_FAMILIES:
                assert torch.equal(tensors["pixel_values"], expected_tensors["pixel_values"])
            elif "pixel_values" in tensors:  # a thumbnail, which is now made of the resized image, and tiles
                assert torch.equal(tensors["pixel_values"][:, 1:], expected_tensors["pixel_values"][:, 1:])
                thumbnails = tensors["pixel_values"][:, 0] - expected_tensors["pixel_values"][:, 0]
                assert thumbnails.abs().mean() < 0.2  # of values from -2 to 2.7; these images are tiny
        tokens = sum(tensors["input_ids"].shape[1] for tensors in read)
        sizes = [[image.size for image in to_item_dict(item)["images"]] for item in items]
        worth = sum(vision_token_equivalents(processor, images, config) for images in sizes)
        assert stored[index]["length"] == round(tokens + worth)


def test_images_are_only_shrunk_and_drawings_and_small_files_keep_their_colours(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    assert "9 rows are in" in prepare(recipe(), tmp_path / "out")
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == [*ROW_COLUMNS, "rejected", "length"]
    (photo_image,) = table[0]["positives"][0]["image"]
    (drawing,) = table[1]["negatives"][0]["image"]
    small, transparent = table[3]["query"]["image"]
    assert (photo_image.size, photo_image.format) == ((64, 32), "JPEG")
    assert (drawing.format, drawing.getcolors()) == ("PNG", [(drawing.width * drawing.height, (255, 0, 0))])
    assert small.size == (16, 24) and transparent.size == (64, 32)
    assert transparent.mode == "RGB" and np.asarray(transparent)[0].min() > 200  # its top is transparent: white
    parts = table[2]["query"]["content"]
    assert [part["type"] for part in parts] == ["text", "image", "text"] and parts[1]["image"].size == (32, 64)
    original = photo(0, 200, 120).resize(photo_image.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(photo_image, dtype=float) - np.asarray(original)).mean() < 4


def test_bad_rows_are_listed_and_stop_a_training_unless_it_leaves_them_out(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert "2 of them bad" in prepare(recipe(), output)
    rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [line["row"] for line in rejected] == [4, 7]
    assert "rows.jsonl, row 4, positive: cannot read the image" in rejected[0]["reason"]
    settings = DataArguments(str(output), image_size=56)
    with pytest.raises(ValueError, match="row 7, positive: cannot read the image .*broken.jpg: it is not a"):
        open_rows(settings)[7]
    settings.rejected_file = str(output / "rejected.jsonl")
    assert [row["where"] for row in open_rows(settings)] == [f"rows.jsonl, row {index}" for index in GOOD]
    (tmp_path / "mined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [[5, [1, 1]], *[[]] * 8]))
    settings.mined_file = str(tmp_path / "mined.jsonl")  # numbers of the rows of the dataset, as before
    assert [item["text"] for item in open_rows(settings)[0]["negatives"]] == ["d", "b"]


@pytest.mark.parametrize("strategy", ["batch_rebalance", "group_by_length"])
def test_training_divides_prepared_rows_by_their_stored_length(
    strategy: str, recipe: Callable[..., Path], tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    output = tmp_path / "out"
    prepare(recipe(), output)
    stored = prepared._stored_rows(output)["length"][:]
    assert [length > 0 for length in stored] == [index in GOOD for index in range(9)]
    rows = open_rows(DataArguments(str(output), image_size=56, rejected_file=str(output / "rejected.jsonl")))
    transform, read = rows.format["format_kwargs"]["transform"], []

    def counted(columns: dict[str, list]) -> dict[str, list]:
        read.extend(columns["where"])
        return transform(columns)

    rows = rows.with_transform(counted)
    model, processor = load_model(str(tiny_model("qwen2-vl")), 56, dtype="float32")
    args = ContrastiveConfig(
        str(tmp_path / "run"), per_device_train_batch_size=6, max_steps=1, report_to="none", use_cpu=True,
        save_strategy="no", train_sampling_strategy=strategy, length_column_name="length",
    )  # fmt: skip
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="FEATURE_EXTRACTION")
    trainer = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor, peft_config=adapter)
    read.clear()
    sampler = trainer._get_train_sampler()
    assert read == [] and sampler.lengths == [stored[index] for index in GOOD]
    if strategy == "batch_rebalance":
        parts = [list(BalancedSampler(sampler.lengths, 6, 2, 1, rank=rank))[0] for rank in (0, 1)]
        longest = max(sampler.lengths)
        lengths = [sum(sampler.lengths[row] for row in part) for part in parts]
        assert len(set(parts[0] + parts[1])) == 6 and abs(lengths[0] - lengths[1]) <= longest
    trainer.train()
    assert trainer.state.global_step == 1 and len(read) >= 6


def test_a_repeated_command_writes_only_what_is_missing_or_damaged(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "FILE_ROWS", 2)
    output = tmp_path / "out"
    for share, written in ((1, 2), (0, 5)):
        said = prepare(recipe(), output, "--shard-index", share, "--num-shards", 2)
        assert len(files(output)) == written
        assert ("2 of 5 files are written: run the other shards too" in said) == (share == 1)
        if share == 1:
            with pytest.raises(ValueError, match="is incomplete, with 2 of 5 files: run the same `unime prepare`"):
                open_rows(DataArguments(str(output), image_size=56))
    before, content = (
        files(output),
        [row["where"] for row in Dataset.from_list(prepared._stored_rows(output).to_list())],
    )
    first, second, *_ = before
    (output / "data" / first).unlink()
    damaged = bytearray((output / "data" / second).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (output / "data" / second).write_bytes(damaged)
    (output / "data" / f".{first.split('.')[0]}.arrow.1.part").touch()  # left by a process that was killed
    prepare(recipe(), output)
    after = files(output)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name] == after[name]] == list(before)[2:]
    assert prepared._stored_rows(output)["where"][:] == content


def test_another_setting_is_refused_in_one_sentence(recipe: Callable[..., Path], tmp_path: Path, pairs: Path) -> None:
    output = tmp_path / "out"
    prepare(recipe(), output)
    for change in (("--lossless",), ("--image_size", 24), ("--max_length", 100)):
        assert refusal(recipe(), "--output", output, *change) == (
            f"{output} holds rows that were prepared with other settings: choose another folder"
        )
    with pytest.raises(ValueError, match="was prepared with image_size 56, not 336: set image_size to 56, or prepare"):
        open_rows(DataArguments(str(output), image_size=336))
    with pytest.raises(ValueError, match="was prepared with image_size 56, not null: set image_size to 56"):
        open_rows(DataArguments(str(output)))
    with pytest.raises(ValueError, match="was prepared with target_prompts false, not true"):
        open_rows(DataArguments(str(output), image_size=56, target_prompts=True))
    assert "is prepared already" in refusal(recipe(), "--dataset", output, "--output", tmp_path / "again")
    assert "there is nothing to prepare" in refusal(recipe(), "--dataset", "openmoji", "--output", tmp_path / "x")
    share = refusal(recipe(), "--output", tmp_path / "x", "--shard-index", 2, "--num-shards", 2)
    assert share == "shard_index must be between 0 and num_shards - 1 = 1, got 2"
    long = run(recipe(), "--output", tmp_path / "short", "--max_length", 3)
    assert "9 rows are in" in long.stdout and "9 of them bad" in long.stdout


def test_mmeb_train_is_prepared_with_the_settings_of_a_recipe(recipe: Callable[..., Path], tmp_path: Path) -> None:
    root, subset = tmp_path / "mmeb", "CIRR"
    (root / "images").mkdir(parents=True)
    (root / subset).mkdir()
    published = []
    for number in range(5):
        photo(number, 160, 120).save(root / "images" / f"{number}.jpg")
        text = f"<|image_1|>\n{INSTRUCTIONS[subset][0]} change {number}\n"
        published.append({"qry": text, "qry_image_path": f"images/{number}.jpg", "pos_text": "<|image_1|>\n",
                          "pos_image_path": f"images/{(number + 1) % 5}.jpg"})  # fmt: skip
    Dataset.from_list(published).to_parquet(root / subset / "original.parquet")
    layout = ["---", "configs:", f"- config_name: {subset}", "  data_files:", "  - split: original",
              f"    path: {subset}/*.parquet", "---", ""]  # fmt: skip
    (root / "README.md").write_text("\n".join(layout))
    data = {"mmeb_source": str(root), "subsets": [subset], "max_rows_per_subset": 3}
    options = ["--dataset", "mmeb-train", "--image_root", root, "--mmeb_source", root, "--subsets", subset]
    output = tmp_path / "out"
    prepare(recipe(), output, *options, "--max_rows_per_subset", 3, "--lossless")
    rows = open_rows(DataArguments(str(output), image_size=56, **data))
    expected = open_rows(DataArguments("mmeb-train", image_root=str(root), **data))
    assert len(rows) == 3 and list(rows.with_format(None)["task"]) == [subset] * 3
    for row, original in zip(rows, expected, strict=True):
        assert row["query"]["text"] == original["query"]["text"] and row["where"] == original["where"]
        assert row["query"]["image"][0].size == (64, 48)
    with pytest.raises(ValueError, match="was prepared with max_rows_per_subset 3, not 2"):
        open_rows(DataArguments(str(output), image_size=56, **data | {"max_rows_per_subset": 2}))


@pytest.mark.slow
def test_a_killed_run_continues_with_each_row_once(
    recipe: Callable[..., Path], pairs: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    photo(4, 640, 480).save(pairs.parent / "large.jpg")
    rows = [{"query": {"text": f"number {n}"}, "positive": {"image": "large.jpg"}} for n in range(1100)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    command = [sys.executable, "-m", "unime.cli", "prepare", recipe(), "--output", output, "--workers", "2"]
    for done in (1, 3):
        process = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(list(output.glob("data/train-*.*.arrow"))) < done:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(6)  # the workers notice within five seconds
    record_property("kills", 2)
    before = files(output)
    subprocess.run([*map(str, command)], check=True, stderr=subprocess.DEVNULL)
    after = files(output)
    assert len(after) == 5 and all(after[name] == before[name] for name in before if name.startswith("train"))
    prepared_rows = open_rows(DataArguments(str(output), image_size=56)).with_format(None)
    assert list(prepared_rows["where"]) == [f"rows.jsonl, row {n}" for n in range(1100)]


@pytest.mark.slow
def test_training_on_prepared_rows_is_training_on_the_rows_themselves(
    recipe: Callable[..., Path], pairs: Path, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    prepare(recipe(), tmp_path / "out", "--lossless")
    rejected_file = str(tmp_path / "out" / "rejected.jsonl")
    trained = []
    for dataset in (pairs, tmp_path / "out"):
        torch.manual_seed(0)  # of the adapters
        model, processor = load_model(str(tiny_model("qwen2-vl")), 56, dtype="float32")
        args = ContrastiveConfig(
            str(tmp_path / "run"), per_device_train_batch_size=4, max_steps=4, learning_rate=1e-2, report_to="none",
            use_cpu=True, seed=1, save_strategy="no",
        )  # fmt: skip
        rows = open_rows(DataArguments(str(dataset), image_size=56, rejected_file=rejected_file))
        adapter = LoraConfig(r=4, target_modules="all-linear", task_type="FEATURE_EXTRACTION")
        trainer = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor, peft_config=adapter)
        before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        trainer.train()
        trained.append({name: weight.detach() for name, weight in trainer.model.named_parameters()})
        assert any(not torch.equal(trained[-1][name], before[name]) for name in before)
    # The pixels are equal, but the hashes of the items are not, in whose order the loss adds up its terms.
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, rtol=0, atol=1e-5)
