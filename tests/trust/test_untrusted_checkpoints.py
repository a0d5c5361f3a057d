"""Untrusted checkpoints: pickles are refused and code of the checkpoint never runs, wherever a model is loaded."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import ProcessorMixin

from unime import UniMEModel, load_model, processor_from_backbone, save_checkpoint
from unime.cli.info import describe
from unime.cli.options import load_onto
from unime.data.teacher import load_teacher
from unime.eval.encoders.loading import load_encoder
from unime.eval.encoders.mteb_encoder import UniMEEncoder, model_meta
from unime.index.index import Index
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, load_adapter, merge_checkpoint


# Code in a checkpoint, which creates the folder `trace` if it runs.
CODE = """
import os
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

os.mkdir({trace!r})

class Config(PreTrainedConfig):
    model_type = "{model_type}"

class Model(PreTrainedModel):
    config_class = Config

class Processor(ProcessorMixin):
    pass

class Pooling:
    pass
"""
AUTO_MAP = {
    "AutoConfig": "code.Config",
    "AutoModel": "code.Model",
    "AutoProcessor": "code.Processor",
    "AutoTokenizer": ["code.Tokenizer", None],
}


class MaliciousObject:
    """Object that creates a folder when it is unpickled, where an attacker could run any code."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


@pytest.fixture(scope="module")
def base(tiny_model: Callable[[str], Path]) -> tuple[UniMEModel, ProcessorMixin]:
    return load_model(str(tiny_model("llava")), dtype="float32")


@pytest.fixture(scope="module")
def clean_checkpoint(base: tuple[UniMEModel, ProcessorMixin], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a UniME checkpoint without code; tests must not change it."""
    folder = save_checkpoint(*base, tmp_path_factory.mktemp("clean") / "checkpoint")
    for file in folder.glob("*.py"):
        file.unlink()
    return folder


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """Return the folder that an attack would create, and check after the test that it does not exist."""
    folder = tmp_path / "attack succeeded"
    yield folder
    assert not folder.exists()


def save_adapter(base: tuple[UniMEModel, ProcessorMixin], folder: Path) -> Path:
    model = get_peft_model(load_model(base[0].backbone.name_or_path)[0], LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(folder)
    return folder


def create_index(folder: Path, index: Path) -> None:
    """Load a model as `unime index` does for a new index."""
    Index.create(index, str(folder))
    load_onto(str(folder), "float32", "cpu", None)


LOADERS = {
    "load_model": lambda folder, _: load_model(str(folder)),
    "serve": lambda folder, _: load_onto(str(folder), "float32", "cpu", None),
    "index": lambda folder, scratch: create_index(folder, scratch / "index"),
    "eval": lambda folder, _: load_encoder(str(folder)),
    "eval as SentenceTransformer": lambda folder, _: load_encoder(str(without_config(folder))),
    "teacher": lambda folder, _: load_teacher(str(folder)),
    "mteb": lambda folder, _: UniMEEncoder("a/b", path=str(folder), device="cpu"),
}


def without_config(folder: Path) -> Path:
    """Move the transformer into a subfolder, so that only sentence-transformers recognizes the checkpoint."""
    subfolder = folder / "0_Transformer"
    subfolder.mkdir()
    for file in [path for path in folder.iterdir() if path.is_file() and path.name != "modules.json"]:
        file.rename(subfolder / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = subfolder.name
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def assert_one_sentence(caught: pytest.ExceptionInfo[Exception], *phrases: str) -> None:
    """Check that an error message is one short line that contains all phrases."""
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    assert all(phrase in message for phrase in phrases), message


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("weights", ["harmless", "malicious"])
def test_pickled_weights_are_refused(clean_checkpoint: Path, loader: str, weights: str, tmp_path: Path, trace: Path):
    folder = shutil.copytree(clean_checkpoint, tmp_path / "checkpoint")
    file = folder / "model.safetensors"
    with (folder / "pytorch_model.bin").open("wb") as out:
        pickle.dump(MaliciousObject(trace), out) if weights == "malicious" else torch.save(load_file(file), out)
    file.unlink()
    with pytest.raises((ValueError, OSError)) as caught:
        LOADERS[loader](folder, tmp_path)
    if loader != "mteb":  # its message is from transformers, because it also runs without this package
        assert_one_sentence(caught, str(folder), "as a pickle (pytorch_model.bin)", "run code", "safetensors")


@pytest.mark.parametrize("model_type", ["clip", "siglip", "llava"])
def test_pickled_weights_of_other_models_are_refused(
    clean_checkpoint: Path, model_type: str, tmp_path: Path, trace: Path
):
    folder = shutil.copytree(clean_checkpoint, tmp_path / "checkpoint")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(pickle.dumps(MaliciousObject(trace)))
    with pytest.raises(ValueError) as caught:
        load_encoder(str(folder))
    assert_one_sentence(caught, str(folder), "as a pickle (pytorch_model-00001-of-00002.bin)")


@pytest.mark.parametrize("load", [UniMEModel.from_backbone, processor_from_backbone])
def test_no_load_of_a_backbone_asks_whether_its_code_may_run(
    load: Callable[[str], object],
    clean_checkpoint: Path,
    tmp_path: Path,
    trace: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    folder = shutil.copytree(clean_checkpoint, tmp_path / "checkpoint")
    (folder / "code.py").write_text(CODE.format(trace=str(trace), model_type="other"))
    for name in ("config.json", "processor_config.json"):
        content = json.loads((folder / name).read_text()) | {"auto_map": AUTO_MAP, "model_type": "other"}
        (folder / name).write_text(json.dumps(content | {"processor_class": "OtherProcessor"}))
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": questions.append(question) or "y")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load(str(folder))
    assert not questions


def test_a_pickle_beside_safetensors_is_ignored(clean_checkpoint: Path, tmp_path: Path, trace: Path):
    folder = shutil.copytree(clean_checkpoint, tmp_path / "checkpoint")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(MaliciousObject(trace)))
    assert load_model(str(folder))[0].config.model_type == "unime"


@pytest.mark.parametrize("loader", ["load_adapter", "merge_checkpoint"])
def test_a_pickled_adapter_is_refused(
    base: tuple[UniMEModel, ProcessorMixin], clean_checkpoint: Path, loader: str, tmp_path: Path, trace: Path
):
    folder = save_adapter(base, tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(MaliciousObject(trace)))
    with pytest.raises(ValueError) as caught:
        if loader == "load_adapter":
            load_adapter(load_model(str(clean_checkpoint))[0], folder)
        else:
            merge_checkpoint(str(clean_checkpoint), folder, tmp_path / "merged")
    assert_one_sentence(caught, str(folder), "as a pickle (adapter_model.bin)")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("file", ["pytorch_model.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_malicious_trainer_state_runs_no_code(clean_checkpoint: Path, file: str, tmp_path: Path, trace: Path):
    metadata = {"task": "t", "label": None}
    settings = {"max_steps": 1, "save_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    model, processor = load_model(str(clean_checkpoint))

    def trainer(**changes: object) -> ContrastiveTrainer:
        args = ContrastiveConfig(str(tmp_path / "run"), report_to="none", **(settings | changes))
        rows = [
            {"query": {"text": name}, "positive": {"text": name * 2}, "negatives": []} | metadata for name in "abcd"
        ]
        return ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor)

    trainer().train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    torch.save(MaliciousObject(trace), checkpoint / file)  # a pickle in torch's file format
    if file == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    with pytest.raises((ValueError, pickle.UnpicklingError), match="as a pickle|Weights only load failed"):
        trainer(max_steps=2).train(resume_from_checkpoint=str(checkpoint))


def add_code(folder: Path, trace: Path, model_type: str, **files: dict) -> Path:
    """Add code to a checkpoint, and change its JSON files so that they refer to it."""
    (folder / "code.py").write_text(CODE.format(trace=str(trace), model_type=model_type))
    for name, changes in files.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


CHANGES = {
    "a model": {"config": {"model_type": "custom", "auto_map": AUTO_MAP}},
    "a processor": {"processor_config": {"processor_class": "Processor", "auto_map": AUTO_MAP}},
}
CODE_OF_A_TOKENIZER = {"tokenizer_config": {"tokenizer_class": "Tokenizer", "auto_map": AUTO_MAP}}


@pytest.mark.parametrize("loader", [name for name in LOADERS if name != "eval as SentenceTransformer"])
@pytest.mark.parametrize("code", CHANGES)
def test_code_of_a_checkpoint_is_refused_without_asking(
    clean_checkpoint: Path, loader: str, code: str, tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal whether to run the code"))
    folder = add_code(shutil.copytree(clean_checkpoint, tmp_path / "checkpoint"), trace, "custom", **CHANGES[code])
    with pytest.raises(ValueError) as caught:
        LOADERS[loader](folder, tmp_path)
    if loader == "mteb":
        assert "trust_remote_code=True" in str(caught.value)
    else:
        assert_one_sentence(caught, str(folder), "requires code of its own", "use a model of a type that")


@pytest.mark.parametrize(
    "describe_checkpoint", [describe, lambda folder: model_meta(folder, "a/b")], ids=["info", "mteb"]
)
@pytest.mark.parametrize("code", CHANGES)
def test_describing_a_checkpoint_runs_no_code(
    clean_checkpoint: Path, describe_checkpoint: Callable, code: str, tmp_path: Path, trace: Path
):
    folder = add_code(shutil.copytree(clean_checkpoint, tmp_path / "checkpoint"), trace, "custom", **CHANGES[code])
    with pytest.raises(ValueError) as caught:
        describe_checkpoint(str(folder))
    assert_one_sentence(caught, str(folder), "requires code of its own")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "changes", [{"config": {"auto_map": AUTO_MAP}}, CODE_OF_A_TOKENIZER], ids=["all", "tokenizer"]
)
def test_a_unime_checkpoint_is_loaded_with_our_code_even_if_it_contains_its_own(
    clean_checkpoint: Path, changes: dict, loader: str, tmp_path: Path, trace: Path
):
    folder = add_code(shutil.copytree(clean_checkpoint, tmp_path / "checkpoint"), trace, "unime", **changes)
    LOADERS[loader](folder, tmp_path)


@pytest.mark.parametrize("loader", ["eval as SentenceTransformer", "teacher"])
def test_a_custom_module_of_a_sentence_transformer_runs_no_code(
    clean_checkpoint: Path, loader: str, tmp_path: Path, trace: Path
):
    folder = add_code(shutil.copytree(clean_checkpoint, tmp_path / "checkpoint"), trace, "custom")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "code.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError) as caught:
        LOADERS[loader](folder, tmp_path)
    assert_one_sentence(caught, str(folder), "requires code of its own")


def test_a_chat_template_cannot_reach_python(clean_checkpoint: Path, tmp_path: Path, trace: Path):
    folder = shutil.copytree(clean_checkpoint, tmp_path / "checkpoint")
    template = "{{ cycler.__init__.__globals__.os.mkdir(" + repr(str(trace)) + ") }}"
    (folder / "chat_template.jinja").write_text(template)
    model, processor = load_model(str(folder))
    with pytest.raises(ValueError, match="item 0: access to attribute '__init__'"):
        model.encode("a text", processor)
