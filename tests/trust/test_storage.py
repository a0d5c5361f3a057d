"""A disk that fills up during writing: the error says so, and the existing files stay intact and usable."""

import json
import os
import resource
import runpy
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoConfig, TrainerCallback

from unime import UniMEModel, load_model, processor_from_backbone, save_checkpoint
from unime.corpus.entry import Entry
from unime.data.sources import DataArguments
from unime.data.teacher import precompute_teacher
from unime.eval.embedding_cache import EmbeddingCache
from unime.eval.lazy_items import LazyItems
from unime.index import parquet_shards
from unime.index.index import Index
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, last_complete_checkpoint


ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "checkpoints" / "unime-tiny")


class Disk:
    """A folder on its own 8 MB disk; without the rights to mount one, the length of files is limited instead."""

    def __init__(self, folder: Path):
        self.folder, self.filler = folder, folder / ".filler"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder]
        self.mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, left: int = 20_000) -> None:
        """Fill the disk until only the given number of bytes is left."""
        if self.mounted:
            free = os.statvfs(self.folder)
            self.filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (left, self.limits[1]))

    def free(self) -> None:
        self.filler.unlink(missing_ok=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)

    def close(self) -> None:
        self.free()
        if self.mounted:
            subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.close()


@pytest.fixture(scope="module")
def tiny() -> tuple[UniMEModel, Any]:
    return load_model(TINY, dtype="float32")


@pytest.fixture
def tiny_random(tiny_model: Callable[[str], Path]) -> tuple[UniMEModel, Any]:
    torch.manual_seed(0)
    return UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava"))), processor_from_backbone(
        tiny_model("llava")
    )


def corpus(size: int) -> list[Entry]:
    return [Entry(f"{number}", f"number {number}") for number in range(size)]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of all files except for locks and the filler."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    data_files = [path for path in files if path.name != ".filler" and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in data_files}


def check_disk_full_error(write_files: Callable[[], object], name: str) -> None:
    """Call a function that must fail because the disk is full, and check the error message."""
    with pytest.raises(OSError) as raised:
        write_files()
    message = str(raised.value)
    assert "\n" not in message and name in message, message
    assert "cannot write " in message or " cannot be read or written (" in message, message
    assert "free disk space and " in message or "fix this and try again" in message, message


def test_a_full_disk_leaves_a_checkpoint_unchanged(disk: Disk, tiny_random: tuple[UniMEModel, Any]):
    model, processor = tiny_random
    folder = save_checkpoint(model, processor, disk.folder / "checkpoint")
    before = contents(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    disk.fill()
    check_disk_full_error(lambda: save_checkpoint(model, processor, folder), str(folder))
    assert contents(folder) == before  # and no partial files
    disk.free()
    save_checkpoint(model, processor, folder)
    after = contents(folder)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == ["model.safetensors"]


def test_a_checkpoint_with_fewer_files_removes_the_stale_ones(tiny_random: tuple[UniMEModel, Any], tmp_path: Path):
    for stale in ("-00001-of-00002.safetensors", "-00002-of-00002.safetensors", ".safetensors.index.json"):
        (tmp_path / f"model{stale}").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_text("not a part of the model")
    save_checkpoint(*tiny_random, tmp_path)
    left = {path.name for path in tmp_path.glob("*.safetensors*")}
    assert left == {"model.safetensors", "adapter_model.safetensors"}


class FillAfterTheFirst(TrainerCallback):
    def __init__(self, disk: Disk):
        self.disk = disk

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.disk.fill()


def test_training_resumes_after_a_full_disk(
    disk: Disk, tiny_random: tuple[UniMEModel, Any], tiny_model: Callable[[str], Path], tmp_path
):
    rows = [{"query": f"query {number}", "positive": f"{number}"} for number in range(4)]
    other_columns = {"negatives": [], "task": "a", "label": None}
    rows = [{side: {"text": text} for side, text in row.items()} | other_columns for row in rows]

    def trainer(folder: Path, *callbacks: TrainerCallback) -> ContrastiveTrainer:
        torch.manual_seed(0)
        model = UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))
        settings = {"per_device_train_batch_size": 4, "max_steps": 3, "save_steps": 1, "report_to": "none"}
        args = ContrastiveConfig(output_dir=str(folder), use_cpu=True, **settings)
        return ContrastiveTrainer(
            model, args, Dataset.from_list(rows), processing_class=tiny_random[1], callbacks=[*callbacks]
        )

    run = disk.folder / "run"
    check_disk_full_error(trainer(run, FillAfterTheFirst(disk)).train, str(run / "checkpoint-2"))
    assert not (run / "checkpoint-2").exists()  # a partial checkpoint would only take up space
    assert last_complete_checkpoint(run) == str(run / "checkpoint-1")
    disk.free()
    trainer(run).train(resume_from_checkpoint=last_complete_checkpoint(run))
    trainer(tmp_path / "undisturbed").train()
    resumed, expected = (
        load_file(folder / "checkpoint-3/model.safetensors") for folder in (run, tmp_path / "undisturbed")
    )
    assert resumed.keys() == expected.keys() and all(torch.equal(resumed[name], expected[name]) for name in resumed)


def test_embedding_a_corpus_resumes_after_a_full_disk(
    disk: Disk, tiny: tuple[UniMEModel, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parquet_shards, "WINDOW_ENTRIES", 32)
    settings = {"instruction": None, "dimensions": 192, "draft_jpegs": False}
    folder = disk.folder / "vectors"

    def write(size: int) -> int:
        return parquet_shards.write_shards(corpus(size), folder, *tiny, settings, lambda entries, rejected: None)

    assert write(32) == 0
    before = contents(folder)
    disk.fill()
    check_disk_full_error(lambda: write(64), str(folder / "000001-"))
    assert contents(folder) == before
    disk.free()
    assert write(64) == 32
    assert len(contents(folder)) == 2 and contents(folder).items() > before.items()


def test_an_index_stays_intact_on_a_full_disk(disk: Disk, tiny: tuple[UniMEModel, Any]):
    index = Index.create(disk.folder / "index", TINY)
    index.sync(corpus(4), *tiny)
    disk.fill()
    check_disk_full_error(lambda: index.sync(corpus(64), *tiny), str(disk.folder / "index"))
    hits = Index.open(disk.folder / "index").search(tiny[0].encode("number 2", tiny[1]), k=100)
    assert len(hits) == 4 and hits[0].id == "2" and hits[0].score > 0.999
    disk.free()
    assert index.sync(corpus(64), *tiny).embedded == 60 and len(index) == 64


def test_a_new_index_is_refused_on_a_full_disk(disk: Disk):
    disk.fill(0)
    check_disk_full_error(lambda: Index.create(disk.folder / "index", TINY), str(disk.folder / "index" / "index.json"))
    disk.free()
    assert len(Index.create(disk.folder / "index", TINY)) == 0


def test_an_evaluation_resumes_after_a_full_disk(disk: Disk):
    calls = []

    def encode(items: list[dict[str, str]]) -> np.ndarray:
        calls.append(len(items))
        return np.array([[float(item["text"])] * 384 for item in items], np.float32)

    def embed(size: int) -> np.ndarray:
        items = LazyItems([{"text": str(number)} for number in range(size)], read=open)
        return EmbeddingCache(encode, disk.folder / "embeddings", window=32)(items)

    embed(4)
    before = contents(disk.folder)
    disk.fill()
    check_disk_full_error(lambda: embed(36), str(disk.folder / "embeddings"))
    assert contents(disk.folder) == before
    disk.free()
    assert embed(36)[:, 0].tolist() == list(range(36)) and calls == [4, 32, 32]


def test_mining_resumes_after_a_full_disk(disk: Disk):
    mine = runpy.run_path(str(ROOT / "recipes" / "mine.py"))
    rows = [{"query": {"text": f"number {number}"}, "positive": {"text": f"{number}"}} for number in range(64)]
    (disk.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataArguments(dataset=str(disk.folder / "rows.jsonl"))
    script = mine["ScriptArguments"](model=TINY, output_dir=str(disk.folder / "mined"), relative_margin=None)
    disk.fill()
    check_disk_full_error(lambda: mine["main"](data, script), str(disk.folder / "mined" / "embeddings" / "000000000"))
    assert contents(disk.folder / "mined").keys() == {"settings.json"}
    disk.free()
    mine["main"](data, script)
    negatives = [json.loads(line) for line in (disk.folder / "mined" / "negatives.jsonl").read_text().splitlines()]
    assert len(negatives) == 64 and all(len(numbers) == 5 for numbers in negatives)


def test_precomputing_the_teacher_resumes_after_a_full_disk(disk: Disk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", disk.folder)
    texts = Dataset.from_dict({"text": [str(number) for number in range(64)]})

    def teach() -> Dataset:
        return precompute_teacher(
            texts, lambda batch: np.full((len(batch), 384), 0.5, np.float32), "half", batch_size=16
        )

    disk.fill()
    check_disk_full_error(teach, str(disk.folder / "unime" / "teacher-"))
    assert contents(disk.folder) == {}
    disk.free()
    assert teach()["teacher"][63] == [0.5] * 384
