"""Files that were truncated or changed after they were written are never loaded: they are refused or made again."""

import json
import logging
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from unime import UniMEModel, load_model, processor_from_backbone
from unime.corpus.entry import Entry
from unime.data.mining import with_mined_negatives
from unime.data.sources import DataArguments, open_rows
from unime.data.teacher import precompute_teacher
from unime.eval.embedding_cache import EmbeddingCache
from unime.eval.lazy_items import LazyItems
from unime.index import parquet_shards
from unime.index.index import Index
from unime.openmoji import catalogue, dataset
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, last_complete_checkpoint, load_adapter


ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "unime-tiny"
TRUNCATIONS = {
    "cut": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "emptied": lambda content: b"",
}
CHANGED = {"changed": lambda content: content[: len(content) // 3] + b"\x55\xaa" + content[len(content) // 3 + 2 :]}


def damage(file: Path, change: Callable[[bytes], bytes]) -> None:
    before = file.read_bytes()
    file.write_bytes(change(before))
    assert file.read_bytes() != before


def value_error(work: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as raised:
        work()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture(scope="module")
def tiny() -> tuple[UniMEModel, Any]:
    return load_model(str(TINY), dtype="float32")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "checkpoint"))


CONFIGURATIONS = ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"]


@pytest.mark.parametrize("change", TRUNCATIONS)
@pytest.mark.parametrize("name", ["model.safetensors", *CONFIGURATIONS])
def test_a_truncated_checkpoint_is_refused(checkpoint: Path, name: str, change: str):
    if (name, change) == ("model.safetensors", "without its end") or name != "model.safetensors":
        end = (checkpoint / name).read_bytes().rstrip()  # without a final line break, which carries no information
        (checkpoint / name).write_bytes(end)
    damage(checkpoint / name, TRUNCATIONS[change])
    for load in (load_model, lambda folder: Index.create(folder + "-index", folder)):
        message = value_error(lambda load=load: load(str(checkpoint)))
        assert message.startswith(f"{checkpoint / name} is damaged (")
        assert message.endswith("): copy or download the checkpoint again")


@pytest.mark.parametrize("change", ["cut", "emptied", "gone"])
def test_a_checkpoint_with_a_damaged_chat_template_is_refused(checkpoint: Path, change: str):
    template = checkpoint / "chat_template.jinja"
    template.unlink() if change == "gone" else damage(template, TRUNCATIONS[change])
    message = value_error(lambda: load_model(str(checkpoint)))
    assert str(checkpoint) in message and "chat_template.jinja" in message
    assert message.endswith(": copy or download the checkpoint again")


def test_a_checkpoint_with_a_missing_weight_is_refused(checkpoint: Path):
    weights = load_file(checkpoint / "model.safetensors")
    missing = sorted(weights)[3]
    save_file({name: weights[name] for name in weights if name != missing}, checkpoint / "model.safetensors")
    assert value_error(lambda: load_model(str(checkpoint))).startswith(f"{checkpoint} has no weights for ")


def test_a_checkpoint_with_a_missing_shard_is_refused(checkpoint: Path, tiny: tuple[UniMEModel, Any]):
    (checkpoint / "model.safetensors").unlink()
    tiny[0].save_pretrained(checkpoint, max_shard_size="5MB")
    first, *others = sorted(checkpoint.glob("model-*.safetensors"))
    assert others and type(load_model(str(checkpoint))[0]) is UniMEModel
    first.unlink()
    message = value_error(lambda: load_model(str(checkpoint)))
    assert message == (
        f"{checkpoint / 'model.safetensors.index.json'} is damaged (it lists {first.name}, which is missing): copy "
        "or download the checkpoint again"
    )


def test_a_truncated_adapter_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path):
    model = UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    damage(tmp_path / "adapter_model.safetensors", TRUNCATIONS["cut"])
    model = UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))
    message = value_error(lambda: load_adapter(model, tmp_path))
    assert message.startswith(f"{tmp_path / 'adapter_model.safetensors'} is damaged (")


@pytest.fixture(scope="module")
def trained(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two steps and save after each; return the output folder."""
    rows = [{"query": {"text": f"query {number}"}, "positive": {"text": f"{number}"}} for number in range(4)]
    model = UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))
    settings = {"per_device_train_batch_size": 4, "max_steps": 2, "save_steps": 1, "report_to": "none"}
    args = ContrastiveConfig(output_dir=str(tmp_path_factory.mktemp("trained")), use_cpu=True, **settings)
    dataset = Dataset.from_list([row | {"negatives": [], "task": "a", "label": None} for row in rows])
    ContrastiveTrainer(model, args, dataset, processing_class=processor_from_backbone(tiny_model("llava"))).train()
    return Path(args.output_dir)


@pytest.mark.parametrize("change", TRUNCATIONS)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_training_resumes_from_the_last_intact_checkpoint(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, change: str
):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2") and not caplog.messages
    damage(run / "checkpoint-2" / name, TRUNCATIONS[change])
    assert last_complete_checkpoint(run) == str(run / "checkpoint-1")
    (warning,) = caplog.messages
    assert warning.startswith(f"skipping {run / 'checkpoint-2'}: {name} is damaged (")


def letter_counts(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), text.count("a")] for text in texts], np.float32)


@pytest.mark.parametrize("change", [*TRUNCATIONS, *CHANGED])
def test_damaged_embeddings_of_an_evaluation_are_computed_again(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    calls = []

    def encode(items: list[dict[str, str]]) -> np.ndarray:
        calls.append([item["text"] for item in items])
        return letter_counts(calls[-1])

    items = LazyItems([{"text": text} for text in ("a", "bb", "aaa", "cccc")], read=open)
    EmbeddingCache(encode, tmp_path, window=2)(items)
    intact, damaged = sorted(tmp_path.glob("*.npy"), key=lambda file: b"cccc" in file.read_bytes())
    of_damaged = np.load(damaged)["vector"][:, 0].tolist()
    damage(damaged, (TRUNCATIONS | CHANGED)[change])
    vectors = EmbeddingCache(encode, tmp_path, window=2)(items)
    assert vectors.tolist() == [[1, 1], [2, 0], [3, 3], [4, 0]]
    assert [[len(text) for text in call] for call in calls[2:]] == [of_damaged]
    assert caplog.messages == [f"{damaged} is damaged (its checksum does not match): it is removed and made again"]
    assert EmbeddingCache(encode, tmp_path)(items).tolist() == vectors.tolist() and len(calls) == 3 and intact.exists()


@pytest.mark.parametrize("change", [*TRUNCATIONS, *CHANGED])
def test_damaged_teacher_embeddings_are_computed_again(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    calls = []
    texts = Dataset.from_dict({"text": ["a", "bb", "aaa"]})
    for expected in (1, 1, 2, 2):
        if expected == 2 and len(calls) == 1:
            (file,) = (tmp_path / "unime").glob("*.arrow")
            damage(file, (TRUNCATIONS | CHANGED)[change])
        taught = precompute_teacher(texts, lambda batch: calls.append(batch) or letter_counts(batch), "letters")
        assert taught["teacher"][:] == [[1, 1], [2, 0], [3, 3]] and len(calls) == expected
    assert caplog.messages == [f"{file} is damaged (its checksum does not match): it is removed and made again"]


@pytest.mark.parametrize("change", [*TRUNCATIONS, *CHANGED])
def test_damaged_openmoji_rows_are_computed_again(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    catalogue.drawings()  # loaded before the cache folder changes
    monkeypatch.setenv("UNIME_CACHE", str(tmp_path))
    expected = dataset.openmoji_texts("train", 20)["text"][:]
    (file,) = tmp_path.glob("*.arrow")
    damage(file, (TRUNCATIONS | CHANGED)[change])
    assert dataset.openmoji_texts("train", 20)["text"][:] == expected
    assert caplog.messages == [f"{file} is damaged (its checksum does not match): it is removed and made again"]


@pytest.mark.slow
def test_damaged_openmoji_drawings_are_rendered_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    drawn = catalogue.drawings()
    monkeypatch.setenv("UNIME_CACHE", str(tmp_path))
    file = Path(shutil.copy(drawn.filename, tmp_path))
    damage(file, CHANGED["changed"])
    catalogue.drawings.cache_clear()
    try:
        assert np.array_equal(catalogue.drawings(), drawn)
    finally:
        catalogue.drawings.cache_clear()
    assert caplog.messages == [f"{file} is damaged (its checksum does not match): it is removed and made again"]


@pytest.mark.parametrize("change", [*TRUNCATIONS, *CHANGED])
def test_damaged_embeddings_of_mining_are_computed_again(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    mine = runpy.run_path(str(ROOT / "recipes" / "mine.py"))
    rows = [{"query": {"text": f"number {number}"}, "positive": {"text": f"{number}"}} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "mined"
    script = mine["ScriptArguments"](model=str(TINY), output_dir=str(output), relative_margin=None)
    for time in (1, 2):
        mine["main"](DataArguments(dataset=str(tmp_path / "rows.jsonl")), script)
        (file,) = (output / "embeddings").iterdir()
        if time == 1:
            before, negatives = file.read_bytes(), (output / "negatives.jsonl").read_text()
            damage(file, (TRUNCATIONS | CHANGED)[change])
    assert file.read_bytes() == before and (output / "negatives.jsonl").read_text() == negatives
    assert caplog.messages == [f"{file} is damaged (its checksum does not match): it is removed and made again"]


@pytest.mark.parametrize("change", TRUNCATIONS)
def test_truncated_mined_negatives_are_refused(change: str, tmp_path: Path):
    rows = [{"query": {"text": f"number {number}"}, "positive": {"text": f"{number}"}} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mined = tmp_path / "negatives.jsonl"
    mined.write_text("[1, 2]\n[2, 3]\n[]\n[10")
    damage(mined, TRUNCATIONS[change])
    dataset = open_rows(DataArguments(dataset=str(tmp_path / "rows.jsonl")))
    assert str(mined) in value_error(lambda: with_mined_negatives(dataset, mined))


def corpus(size: int) -> list[Entry]:
    return [Entry(f"{number}", f"number {number}") for number in range(size)]


@pytest.mark.parametrize("change", [*TRUNCATIONS, *CHANGED])
def test_damaged_embeddings_of_a_corpus_are_computed_again(
    change: str,
    tiny: tuple[UniMEModel, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(parquet_shards, "WINDOW_ENTRIES", 8)
    caplog.set_level(logging.WARNING)

    def write() -> int:
        settings = {"instruction": None, "dimensions": 192, "draft_jpegs": False}
        return parquet_shards.write_shards(corpus(16), tmp_path, *tiny, settings, lambda entries, rejected: None)

    assert write() == 0
    _, file = sorted(tmp_path.iterdir())
    before = pq.read_table(file)
    damage(file, (TRUNCATIONS | CHANGED)[change])
    assert write() == 8
    assert pq.read_table(file).equals(before)
    assert caplog.messages == [f"{file} is damaged and will be written again"]
    assert write() == 16 and len(caplog.messages) == 1


@pytest.fixture(scope="module")
def index(tiny: tuple[UniMEModel, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    new_index = Index.create(tmp_path_factory.mktemp("indexes") / "index", str(TINY))
    new_index.sync(corpus(16), *tiny)
    return new_index.folder


@pytest.mark.parametrize("change", [*TRUNCATIONS, "gone"])
@pytest.mark.parametrize("pattern", ["data/*.lance", "_versions/*.manifest"])
def test_a_damaged_index_is_refused(
    pattern: str, change: str, index: Path, tiny: tuple[UniMEModel, Any], tmp_path: Path
):
    folder = Path(shutil.copytree(index, tmp_path / "index"))
    for file in folder.glob(f"entries.lance/{pattern}"):
        file.unlink() if change == "gone" else damage(file, TRUNCATIONS[change])
    before = sorted(folder.rglob("*"))
    for work in (
        lambda: Index.open(folder).search(np.ones(192, np.float32)),
        lambda: Index.open(folder).sync(corpus(20), *tiny),
    ):
        message = value_error(work)
        assert message.startswith(f"{folder} is damaged (")
        assert message.endswith("delete the folder and create the index again")
        assert sorted(folder.rglob("*")) == before
