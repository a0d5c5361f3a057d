"""Files that were cut short or changed after they were written: found, named, made again or refused, never loaded."""

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
from unime.corpus.corpus import Entry
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
WAYS = {
    "cut": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "emptied": lambda content: b"",
}
CHANGED = {"changed": lambda content: content[: len(content) // 3] + b"\x55\xaa" + content[len(content) // 3 + 2 :]}


def damage(file: Path, how: Callable[[bytes], bytes]) -> None:
    before = file.read_bytes()
    file.write_bytes(how(before))
    assert file.read_bytes() != before


def refusal(work: Callable[[], object]) -> str:
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


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ["model.safetensors", *CONFIGURATIONS])
def test_a_checkpoint_that_was_cut_short_is_refused(checkpoint: Path, name: str, how: str):
    if (name, how) == ("model.safetensors", "without its end") or name != "model.safetensors":
        end = (checkpoint / name).read_bytes().rstrip()  # a line break at the end says nothing
        (checkpoint / name).write_bytes(end)
    damage(checkpoint / name, WAYS[how])
    for load in (load_model, lambda folder: Index.create(folder + "-index", folder)):
        sentence = refusal(lambda load=load: load(str(checkpoint)))
        assert sentence.startswith(f"{checkpoint / name} is damaged (")
        assert sentence.endswith("): copy or download the checkpoint again")


@pytest.mark.parametrize("how", ["cut", "emptied", "gone"])
def test_a_checkpoint_without_its_whole_prompt_is_refused(checkpoint: Path, how: str):
    template = checkpoint / "chat_template.jinja"
    template.unlink() if how == "gone" else damage(template, WAYS[how])
    sentence = refusal(lambda: load_model(str(checkpoint)))
    assert str(checkpoint) in sentence and "chat_template.jinja" in sentence
    assert sentence.endswith(": copy or download the checkpoint again")


def test_a_checkpoint_without_all_weights_is_refused(checkpoint: Path):
    weights = load_file(checkpoint / "model.safetensors")
    lost = sorted(weights)[3]
    save_file({name: weights[name] for name in weights if name != lost}, checkpoint / "model.safetensors")
    assert refusal(lambda: load_model(str(checkpoint))).startswith(f"{checkpoint} lacks weights, such as ")


def test_a_checkpoint_without_a_file_that_its_index_names_is_refused(checkpoint: Path, tiny: tuple[UniMEModel, Any]):
    (checkpoint / "model.safetensors").unlink()
    tiny[0].save_pretrained(checkpoint, max_shard_size="5MB")
    first, *others = sorted(checkpoint.glob("model-*.safetensors"))
    assert others and type(load_model(str(checkpoint))[0]) is UniMEModel
    first.unlink()
    sentence = refusal(lambda: load_model(str(checkpoint)))
    assert sentence == (
        f"{checkpoint / 'model.safetensors.index.json'} is damaged (it names {first.name}, which is not there): copy "
        "or download the checkpoint again"
    )


def test_an_adapter_that_was_cut_short_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path):
    model = UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    damage(tmp_path / "adapter_model.safetensors", WAYS["cut"])
    model = UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))
    sentence = refusal(lambda: load_adapter(model, tmp_path))
    assert sentence.startswith(f"{tmp_path / 'adapter_model.safetensors'} is damaged (")


@pytest.fixture(scope="module")
def trained(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two steps, and save after each."""
    rows = [{"query": {"text": f"query {number}"}, "positive": {"text": f"{number}"}} for number in range(4)]
    model = UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))
    settings = {"per_device_train_batch_size": 4, "max_steps": 2, "save_steps": 1, "report_to": "none"}
    args = ContrastiveConfig(output_dir=str(tmp_path_factory.mktemp("trained")), use_cpu=True, **settings)
    dataset = Dataset.from_list([row | {"negatives": [], "task": "a", "label": None} for row in rows])
    ContrastiveTrainer(model, args, dataset, processing_class=processor_from_backbone(tiny_model("llava"))).train()
    return Path(args.output_dir)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_training_goes_on_from_the_last_checkpoint_that_is_whole(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, how: str
):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert last_complete_checkpoint(run) == str(run / "checkpoint-2") and not caplog.messages
    damage(run / "checkpoint-2" / name, WAYS[how])
    assert last_complete_checkpoint(run) == str(run / "checkpoint-1")
    (message,) = caplog.messages
    assert message.startswith(f"skipping {run / 'checkpoint-2'}: {name} is damaged (")


def embedded(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), text.count("a")] for text in texts], np.float32)


@pytest.mark.parametrize("how", [*WAYS, *CHANGED])
def test_embeddings_of_an_evaluation_are_made_again(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    calls = []

    def encode(items: list[dict[str, str]]) -> np.ndarray:
        calls.append([item["text"] for item in items])
        return embedded(calls[-1])

    items = LazyItems([{"text": text} for text in ("a", "bb", "aaa", "cccc")], read=open)
    EmbeddingCache(encode, tmp_path, window=2)(items)
    kept, damaged = sorted(tmp_path.glob("*.npy"), key=lambda file: b"cccc" in file.read_bytes())
    of_damaged = np.load(damaged)["vector"][:, 0].tolist()
    damage(damaged, (WAYS | CHANGED)[how])
    vectors = EmbeddingCache(encode, tmp_path, window=2)(items)
    assert vectors.tolist() == [[1, 1], [2, 0], [3, 3], [4, 0]]
    assert [[len(text) for text in call] for call in calls[2:]] == [of_damaged]
    assert caplog.messages == [f"{damaged} is damaged (its checksum does not match): it is removed and made again"]
    assert EmbeddingCache(encode, tmp_path)(items).tolist() == vectors.tolist() and len(calls) == 3 and kept.exists()


@pytest.mark.parametrize("how", [*WAYS, *CHANGED])
def test_embeddings_of_the_teacher_are_made_again(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    calls = []
    texts = Dataset.from_dict({"text": ["a", "bb", "aaa"]})
    for expected in (1, 1, 2, 2):
        if expected == 2 and len(calls) == 1:
            (file,) = (tmp_path / "unime").glob("*.arrow")
            damage(file, (WAYS | CHANGED)[how])
        taught = precompute_teacher(texts, lambda some: calls.append(some) or embedded(some), "letters")
        assert taught["teacher"][:] == [[1, 1], [2, 0], [3, 3]] and len(calls) == expected
    assert caplog.messages == [f"{file} is damaged (its checksum does not match): it is removed and made again"]


@pytest.mark.parametrize("how", [*WAYS, *CHANGED])
def test_rows_of_the_world_are_made_again(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    catalogue.drawings()  # they stay where they are
    monkeypatch.setenv("UNIME_CACHE", str(tmp_path))
    made = dataset.openmoji_texts("train", 20)["text"][:]
    (file,) = tmp_path.glob("*.arrow")
    damage(file, (WAYS | CHANGED)[how])
    assert dataset.openmoji_texts("train", 20)["text"][:] == made
    assert caplog.messages == [f"{file} is damaged (its checksum does not match): it is removed and made again"]


@pytest.mark.slow
def test_images_of_the_world_are_drawn_again(
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


@pytest.mark.parametrize("how", [*WAYS, *CHANGED])
def test_mined_embeddings_are_made_again(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    mine = runpy.run_path(str(ROOT / "recipes" / "mine.py"))
    rows = [{"query": {"text": f"number {number}"}, "positive": {"text": f"{number}"}} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "mined"
    script = mine["ScriptArguments"](model=str(TINY), output_dir=str(output), relative_margin=None)
    for time in (1, 2):
        mine["main"](DataArguments(dataset=str(tmp_path / "rows.jsonl")), script)
        (file,) = (output / "embeddings").iterdir()
        if time == 1:
            before, found = file.read_bytes(), (output / "negatives.jsonl").read_text()
            damage(file, (WAYS | CHANGED)[how])
    assert file.read_bytes() == before and (output / "negatives.jsonl").read_text() == found
    assert caplog.messages == [f"{file} is damaged (its checksum does not match): it is removed and made again"]


@pytest.mark.parametrize("how", WAYS)
def test_mined_negatives_that_were_cut_short_are_refused(how: str, tmp_path: Path):
    rows = [{"query": {"text": f"number {number}"}, "positive": {"text": f"{number}"}} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mined = tmp_path / "negatives.jsonl"
    mined.write_text("[1, 2]\n[2, 3]\n[]\n[10")
    damage(mined, WAYS[how])
    dataset = open_rows(DataArguments(dataset=str(tmp_path / "rows.jsonl")))
    assert str(mined) in refusal(lambda: with_mined_negatives(dataset, mined))


def corpus(size: int) -> list[Entry]:
    return [Entry(f"{number}", f"number {number}") for number in range(size)]


@pytest.mark.parametrize("how", [*WAYS, *CHANGED])
def test_embeddings_of_a_corpus_are_made_again(
    how: str,
    tiny: tuple[UniMEModel, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(parquet_shards, "WINDOW_ENTRIES", 8)
    caplog.set_level(logging.WARNING)

    def write() -> int:
        settings = {"instruction": None, "dimensions": 192}
        return parquet_shards.write_shards(corpus(16), tmp_path, *tiny, settings, lambda entries, rejected: None)

    assert write() == 0
    _, file = sorted(tmp_path.iterdir())
    before = pq.read_table(file)
    damage(file, (WAYS | CHANGED)[how])
    assert write() == 8
    assert pq.read_table(file).equals(before)
    assert caplog.messages == [f"{file} is damaged and will be written again"]
    assert write() == 16 and len(caplog.messages) == 1


@pytest.fixture(scope="module")
def index(tiny: tuple[UniMEModel, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Index.create(tmp_path_factory.mktemp("indexes") / "index", str(TINY))
    store.sync(corpus(16), *tiny)
    return store.folder


@pytest.mark.parametrize("how", [*WAYS, "gone"])
@pytest.mark.parametrize("pattern", ["data/*.lance", "_versions/*.manifest"])
def test_an_index_is_refused(pattern: str, how: str, index: Path, tiny: tuple[UniMEModel, Any], tmp_path: Path):
    folder = Path(shutil.copytree(index, tmp_path / "index"))
    for file in folder.glob(f"entries.lance/{pattern}"):
        file.unlink() if how == "gone" else damage(file, WAYS[how])
    before = sorted(folder.rglob("*"))
    for work in (
        lambda: Index.open(folder).search(np.ones(192, np.float32)),
        lambda: Index.open(folder).sync(corpus(20), *tiny),
    ):
        sentence = refusal(work)
        assert sentence.startswith(f"{folder} is damaged (")
        assert sentence.endswith("delete the folder and create the index again")
        assert sorted(folder.rglob("*")) == before
