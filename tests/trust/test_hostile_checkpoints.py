"""Strangers' checkpoints: pickles are refused and code of their own never runs, wherever a model is loaded."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jinja2
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import ProcessorMixin

from unime import UniMEModel, load_model, save_checkpoint
from unime.cli.info import describe
from unime.cli.options import load_onto
from unime.data.teacher import load_teacher
from unime.eval.encoders.loading import load_encoder
from unime.eval.encoders.mteb_encoder import UniMEEncoder, model_meta
from unime.index.index import Index
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, load_adapter, merge_checkpoint


# Code that a checkpoint brings; it leaves a trace where it runs.
CODE = """
import os
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

os.mkdir({trace!r})

class Config(PreTrainedConfig):
    model_type = "{kind}"

class Model(PreTrainedModel):
    config_class = Config

class Processor(ProcessorMixin):
    pass

class Pooling:
    pass
"""
AUTO = {
    "AutoConfig": "code.Config",
    "AutoModel": "code.Model",
    "AutoProcessor": "code.Processor",
    "AutoTokenizer": ["code.Tokenizer", None],
}


class Intruder:
    """Unpickled, it makes a folder: what an attacker's would do is up to him."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


@pytest.fixture(scope="module")
def base(tiny_model: Callable[[str], Path]) -> tuple[UniMEModel, ProcessorMixin]:
    return load_model(str(tiny_model("llava")), dtype="float32")


@pytest.fixture(scope="module")
def good(base: tuple[UniMEModel, ProcessorMixin], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a UniME checkpoint without its own code, to be read only."""
    folder = save_checkpoint(*base, tmp_path_factory.mktemp("good") / "checkpoint")
    for file in folder.glob("*.py"):
        file.unlink()
    return folder


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """Give the folder that an attack would make; there may be none at the end of a test."""
    yield tmp_path / "the attack ran"
    assert not (tmp_path / "the attack ran").exists()


def of_kind(folder: Path, kind: str) -> Path:
    """Make of a checkpoint one that another loader takes, as far as its configuration says."""
    if kind != "unime":
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


def adapter(base: tuple[UniMEModel, ProcessorMixin], folder: Path) -> Path:
    model = get_peft_model(load_model(base[0].backbone.name_or_path)[0], LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(folder)
    return folder


def index(folder: Path, store: Path) -> None:
    """Do as `unime index` does when there is no index yet."""
    Index.create(store, str(folder))
    load_onto(str(folder), "float32", "cpu")


LOADERS = {
    "load_model": lambda folder, _: load_model(str(folder)),
    "serve": lambda folder, _: load_onto(str(folder), "float32", "cpu"),
    "index": lambda folder, scratch: index(folder, scratch / "index"),
    "eval": lambda folder, _: load_encoder(str(folder)),
    "eval as SentenceTransformer": lambda folder, _: load_encoder(str(without_config(folder))),
    "teacher": lambda folder, _: load_teacher(str(folder)),
    "mteb": lambda folder, _: UniMEEncoder("a/b", path=str(folder), device="cpu"),
}


def without_config(folder: Path) -> Path:
    """Put a checkpoint's transformer into a folder of its own, so that only sentence-transformers knows what it is."""
    own = folder / "0_Transformer"
    own.mkdir()
    for file in [path for path in folder.iterdir() if path.is_file() and path.name != "modules.json"]:
        file.rename(own / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = own.name
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def one_sentence(caught: pytest.ExceptionInfo[Exception], *words: str) -> None:
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    assert all(word in message for word in words), message


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("weights", ["harmless", "hostile"])
def test_weights_in_a_pickle_are_refused(good: Path, loader: str, weights: str, tmp_path: Path, trace: Path):
    folder = shutil.copytree(good, tmp_path / "checkpoint")
    file = folder / "model.safetensors"
    with (folder / "pytorch_model.bin").open("wb") as out:
        pickle.dump(Intruder(trace), out) if weights == "hostile" else torch.save(load_file(file), out)
    file.unlink()
    with pytest.raises((ValueError, OSError)) as caught:
        LOADERS[loader](folder, tmp_path)
    if loader != "mteb":  # which is transformers' alone, to run where this package is not installed
        one_sentence(caught, str(folder), "as a pickle (pytorch_model.bin)", "run code", "safetensors")


@pytest.mark.parametrize("kind", ["clip", "siglip", "llava"])
def test_weights_of_a_peer_or_backbone_in_a_pickle_are_refused(good: Path, kind: str, tmp_path: Path, trace: Path):
    folder = of_kind(shutil.copytree(good, tmp_path / "checkpoint"), kind)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(pickle.dumps(Intruder(trace)))
    with pytest.raises(ValueError) as caught:
        load_encoder(str(folder))
    one_sentence(caught, str(folder), "as a pickle (pytorch_model-00001-of-00002.bin)")


def test_a_pickle_beside_safetensors_is_not_read(good: Path, tmp_path: Path, trace: Path):
    folder = shutil.copytree(good, tmp_path / "checkpoint")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Intruder(trace)))
    assert load_model(str(folder))[0].config.model_type == "unime"


@pytest.mark.parametrize("door", ["load_adapter", "merge_checkpoint"])
def test_an_adapter_in_a_pickle_is_refused(
    base: tuple[UniMEModel, ProcessorMixin], good: Path, door: str, tmp_path: Path, trace: Path
):
    folder = adapter(base, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Intruder(trace)))
    with pytest.raises(ValueError) as caught:
        if door == "load_adapter":
            load_adapter(load_model(str(good))[0], folder)
        else:
            merge_checkpoint(str(good), folder, tmp_path / "merged")
    one_sentence(caught, str(folder), "as a pickle (adapter_model.bin)")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("file", ["pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_trainer_s_state_runs_no_code(good: Path, file: str, tmp_path: Path, trace: Path):
    rest = {"task": "t", "label": None}
    settings = {"max_steps": 1, "save_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    model, processor = load_model(str(good))

    def trainer(**changes: object) -> ContrastiveTrainer:
        args = ContrastiveConfig(str(tmp_path / "run"), report_to="none", **(settings | changes))
        rows = [{"query": {"text": name}, "positive": {"text": name * 2}, "negatives": []} | rest for name in "abcd"]
        return ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor)

    trainer().train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    torch.save(Intruder(trace), checkpoint / file)  # in torch's container
    if file == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    with pytest.raises((ValueError, pickle.UnpicklingError), match="as a pickle|Weights only load failed"):
        trainer(max_steps=2).train(resume_from_checkpoint=str(checkpoint))


def with_code(folder: Path, trace: Path, kind: str, **files: dict) -> Path:
    """Have a checkpoint bring code, and its files point to it."""
    (folder / "code.py").write_text(CODE.format(trace=str(trace), kind=kind))
    for name, changes in files.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


BRINGS = {
    "a model": {"config": {"model_type": "hostile", "auto_map": AUTO}},
    "a processor": {"processor_config": {"processor_class": "Processor", "auto_map": AUTO}},
    "a tokenizer": {"tokenizer_config": {"tokenizer_class": "Tokenizer", "auto_map": AUTO}},
}


@pytest.mark.parametrize("loader", [name for name in LOADERS if name != "eval as SentenceTransformer"])
@pytest.mark.parametrize("brought", BRINGS)
def test_code_of_a_checkpoint_is_not_run_and_not_asked_for(
    good: Path, loader: str, brought: str, tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked on the terminal whether to run the code"))
    folder = with_code(shutil.copytree(good, tmp_path / "checkpoint"), trace, "hostile", **BRINGS[brought])
    with pytest.raises(ValueError) as caught:
        LOADERS[loader](folder, tmp_path)
    if loader == "mteb":
        assert "trust_remote_code=True" in str(caught.value)
    else:
        one_sentence(caught, str(folder), "wants to run code of its own", "take a model of a type that")


@pytest.mark.parametrize("describing", [describe, lambda folder: model_meta(folder, "a/b")], ids=["info", "mteb"])
@pytest.mark.parametrize("brought", BRINGS)
def test_a_description_runs_no_code(good: Path, describing: Callable, brought: str, tmp_path: Path, trace: Path):
    folder = with_code(shutil.copytree(good, tmp_path / "checkpoint"), trace, "hostile", **BRINGS[brought])
    with pytest.raises(ValueError) as caught:
        describing(str(folder))
    one_sentence(caught, str(folder), "wants to run code of its own")


@pytest.mark.parametrize("loader", LOADERS)
def test_of_a_known_type_our_own_code_runs_whatever_the_checkpoint_brings(
    good: Path, loader: str, tmp_path: Path, trace: Path
):
    folder = with_code(shutil.copytree(good, tmp_path / "checkpoint"), trace, "unime", config={"auto_map": AUTO})
    LOADERS[loader](folder, tmp_path)


@pytest.mark.parametrize("loader", ["eval as SentenceTransformer", "teacher"])
def test_a_module_of_a_sentence_transformer_runs_no_code(good: Path, loader: str, tmp_path: Path, trace: Path):
    folder = with_code(shutil.copytree(good, tmp_path / "checkpoint"), trace, "hostile")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "code.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError) as caught:
        LOADERS[loader](folder, tmp_path)
    one_sentence(caught, str(folder), "wants to run code of its own")


def test_a_chat_template_cannot_reach_python(good: Path, tmp_path: Path, trace: Path):
    folder = shutil.copytree(good, tmp_path / "checkpoint")
    reach = "{{ cycler.__init__.__globals__.os.mkdir(" + repr(str(trace)) + ") }}"
    (folder / "chat_template.jinja").write_text(reach)
    model, processor = load_model(str(folder))
    with pytest.raises(jinja2.exceptions.SecurityError, match="access to attribute '__init__'"):
        model.encode("a text", processor)
