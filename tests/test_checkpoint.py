"""A checkpoint is one folder that AutoModel, SentenceTransformer and engines load without this package."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoProcessor
from without_package import BLOCK_UNIME

import unime.checkpoint
from unime import UniMEModel, load_model, processor_from_backbone, push_checkpoint, save_checkpoint
from unime.checkpoint import PROMPTS
from unime.checkpoint_safety import read_config


BACKBONES = ["llava", "llava-onevision", "qwen2-vl", "phi3-v"]
CHECKPOINT_FILES = {
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "README.md",
    "batching_unime.py",
    "chat_template.jinja",
    "config.json",
    "config_sentence_transformers.json",
    "configuration_unime.py",
    "cpu_prepacking_unime.py",
    "image_colors_unime.py",
    "image_input_unime.py",
    "image_tokens_unime.py",
    "model.safetensors",
    "modeling_unime.py",
    "modules.json",
    "encoding_unime.py",
    "generation_config.json",
    "pooling_unime.py",
    "processing_unime.py",
    "processor_config.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "windows_unime.py",
}
PHI3_V_FILES = {  # transformers lacks this backbone
    "configuration_phi3_v.py",
    "image_processing_phi3_v.py",
    "modeling_phi3_v.py",
    "processing_phi3_v.py",
    "unime_phi3_v.py",
}
INSTRUCTION = "Represent the given image with the following question:"

# Runs where `unime` cannot be imported. Arguments: the folder of images and checkpoints, the names of the checkpoints.
WITHOUT_UNIME = """
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

folder, *names = sys.argv[1:]
folder = Path(folder)
instruction = (folder / "instruction.txt").read_text()
red, blue = (Image.open(folder / name) for name in ("red.png", "blue.png"))
items = ["a cat", red, {"image": blue, "text": "Is it blue?"}, {"text": "see <image> and <|im_end|>"}, blue]
dicts = [item if isinstance(item, dict) else {"text" if isinstance(item, str) else "image": item} for item in items]
instructed = [item | {"instruction": instruction} for item in dicts]
for name in names:
    model = AutoModel.from_pretrained(folder / name, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    sentences = SentenceTransformer(str(folder / name), trust_remote_code=True)
    native = SentenceTransformer(str(folder / name)) if name != "phi3-v" else sentences
    module = type(native[0].model).__module__
    assert module.startswith("transformers_modules." if name == "phi3-v" else "transformers.models."), module
    np.savez(
        folder / f"{name}.npz",
        auto=model.encode(items),
        auto_instruction=model.encode(instructed),
        sentences=sentences.encode(items),
        sentences_instruction=sentences.encode(items, prompt=instruction),
        sentences_query=sentences.encode_query(items),
        sentences_named=sentences.encode(items, prompt_name="text_to_image"),
        native=native.encode(items),
        native_instruction=native.encode(items, prompt=instruction),
        width=sentences.get_embedding_dimension(),
    )
assert "unime" not in sys.modules
"""


@pytest.fixture(scope="module")
def checkpoints(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint of each backbone in `BACKBONES`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in BACKBONES:
        save_checkpoint(*load_model(tiny_model(name)), folder / name)
    return folder


@pytest.fixture(scope="module")
def embedded_without_unime(checkpoints: Path) -> Path:
    """Return the same folder after an interpreter without `unime` has embedded items with every checkpoint."""
    (checkpoints / "instruction.txt").write_text(INSTRUCTION)
    for color, size in (("red", (40, 56)), ("blue", (64, 24))):
        Image.new("RGB", size, color).save(checkpoints / f"{color}.png")
    environment = os.environ | {"HF_MODULES_CACHE": str(checkpoints / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", BLOCK_UNIME + WITHOUT_UNIME, str(checkpoints), *BACKBONES]
    run = subprocess.run(command, cwd=checkpoints, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "custom code" not in run.stdout + run.stderr  # trusted once, and not asked about again
    return checkpoints


@pytest.mark.parametrize("name", BACKBONES)
def test_a_checkpoint_gives_the_same_embeddings_without_the_package(name: str, embedded_without_unime: Path) -> None:
    red, blue = (Image.open(embedded_without_unime / image) for image in ("red.png", "blue.png"))
    items = [{"text": "a cat"}, {"image": red}, {"image": blue, "text": "Is it blue?"}]
    items += [{"text": "see <image> and <|im_end|>"}, {"image": blue}]
    model = UniMEModel.from_pretrained(embedded_without_unime / name)
    plain = model.encode(items)
    instructed = model.encode([item | {"instruction": INSTRUCTION} for item in items])
    named = model.encode([item | {"instruction": PROMPTS["text_to_image"]} for item in items])
    assert np.abs(plain - instructed).max() > 0.01 and np.abs(named - instructed).max() > 0.01
    without_unime = np.load(embedded_without_unime / f"{name}.npz")
    assert int(without_unime["width"]) == plain.shape[1]
    for key in ("auto", "sentences", "sentences_query", "native"):
        np.testing.assert_allclose(without_unime[key], plain, atol=1e-5, err_msg=key)
    for key in ("auto_instruction", "sentences_instruction", "native_instruction"):
        np.testing.assert_allclose(without_unime[key], instructed, atol=1e-5, err_msg=key)
    np.testing.assert_allclose(without_unime["sentences_named"], named, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_checkpoint_consists_of_exactly_these_files(
    name: str, checkpoints: Path, tiny_model: Callable[[str], Path]
) -> None:
    folder = checkpoints / name
    files = CHECKPOINT_FILES - {"generation_config.json"} | PHI3_V_FILES if name == "phi3-v" else CHECKPOINT_FILES
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == files
    config = json.loads((folder / "config.json").read_text())
    configuration, modeling = ["unime_phi3_v"] * 2 if name == "phi3-v" else ["configuration_unime", "modeling_unime"]
    assert config["auto_map"] == {
        "AutoConfig": f"{configuration}.UniMEConfig",
        "AutoModel": f"{modeling}.UniMEModel",
    }
    native = {} if name == "phi3-v" else json.loads((tiny_model(name) / "config.json").read_text())
    for key, wrapped in {"architectures": ["UniMEModel"], "model_type": "unime"}.items():
        assert config[key] == native.get(key, wrapped)
    assert config.get("unime") == (None if name == "phi3-v" else {"pooling": "last", "prompts": None})
    for code in folder.glob("*.py"):
        assert code.read_text() == (Path(unime.checkpoint.__file__).parent / code.name).read_text()


def test_other_users_may_read_a_checkpoint_as_far_as_the_umask_says(checkpoints: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in (checkpoints / "llava").iterdir() if path.is_file()}
    assert set(modes.values()) == {modes["config.json"]} and modes["config.json"] != 0o600, modes


def test_sentence_transformers_needs_only_its_own_classes(checkpoints: Path) -> None:
    folder = checkpoints / "llava"
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["type"].split(".")[-1] for module in modules] == ["Transformer", "Pooling", "Normalize"]
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == PROMPTS and {"query", "document", "text_to_image"} <= PROMPTS.keys()
    assert {"sentence-transformers", "transformers"} <= settings["requirements"].keys()
    assert json.loads((folder / "1_Pooling/config.json").read_text())["pooling_mode"] == "lasttoken"


def front_matter(card: str) -> dict:
    """Return the YAML between the first two lines of dashes."""
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_model_card_has_metadata_and_describes_the_model(checkpoints: Path) -> None:
    card = (checkpoints / "llava" / "README.md").read_text()
    assert front_matter(card)["library_name"] == "sentence-transformers"
    assert "unime" in front_matter(card)["tags"]
    assert "`llava` backbone" in " ".join(card.split()) and "32 dimensions" in card
    assert all(f"`{name}`" in card for name in PROMPTS)


def test_a_given_model_card_is_written_unchanged(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    save_checkpoint(*load_model(tiny_model("llava")), tmp_path, card="---\ntags: []\n---\nMine.\n")
    assert (tmp_path / "README.md").read_text() == "---\ntags: []\n---\nMine.\n"


def test_unmerged_adapters_are_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, processor = load_model(tiny_model("llava"))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    for unmerged in (adapted, model):
        with pytest.raises(ValueError, match="LoRA adapters: merge them"):
            save_checkpoint(unmerged, processor, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    save_checkpoint(adapted.merge_and_unload(), processor, tmp_path / "checkpoint")
    assert type(load_model(tmp_path / "checkpoint")[0]) is UniMEModel


def test_a_processor_without_a_chat_template_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, processor = load_model(tiny_model("llava"))
    processor.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        save_checkpoint(model, processor, tmp_path / "checkpoint")


def test_load_model_loads_backbones_and_checkpoints(tiny_model: Callable[[str], Path], checkpoints: Path) -> None:
    wrapped, backbone_processor = load_model(tiny_model("llava"), dtype=torch.float32)
    saved, processor = load_model(checkpoints / "llava", dtype=torch.float32, attn_implementation="eager")
    assert type(wrapped) is type(saved) is UniMEModel
    assert saved.backbone.config._attn_implementation == "eager"
    assert processor.chat_template == "{{- '<s>' -}}\n" + backbone_processor.chat_template  # engines do not add it
    expected, actual = wrapped.state_dict(), saved.state_dict()
    assert actual.keys() == expected.keys() and all(torch.equal(actual[key], expected[key]) for key in expected)


def test_a_text_only_backbone_is_refused(tiny_model: Callable[[str], Path]) -> None:
    for load in (load_model, UniMEModel.from_backbone):
        with pytest.raises(ValueError, match="is of type 'qwen3', which transformers does not list as an image-text"):
            load(tiny_model("text-only"))


def test_a_loaded_checkpoint_is_saved_unchanged(checkpoints: Path, tmp_path: Path) -> None:
    save_checkpoint(*load_model(checkpoints / "qwen2-vl"), tmp_path)
    for name in CHECKPOINT_FILES - {"config.json"}:
        assert (tmp_path / name).read_bytes() == (checkpoints / "qwen2-vl" / name).read_bytes(), name
    assert AutoProcessor.from_pretrained(tmp_path).chat_template is not None


class RecordedHub:
    """Replacement of `HfApi` that records calls instead of sending them to the Hub."""

    repositories: dict[str, bool] = {}
    uploaded: dict[str, set[str]] = {}

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        self.repositories[repo_id] = private

    def upload_folder(self, repo_id: str, folder_path: str) -> str:
        folder = Path(folder_path)
        self.uploaded[repo_id] = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return f"https://huggingface.co/{repo_id}/commit/1"


def test_all_files_of_a_checkpoint_are_pushed(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unime.checkpoint, "HfApi", RecordedHub)
    url = push_checkpoint(*load_model(tiny_model("llava")), "someone/unime-tiny", private=True)
    assert url == "https://huggingface.co/someone/unime-tiny/commit/1"
    assert RecordedHub.repositories == {"someone/unime-tiny": True}
    assert RecordedHub.uploaded == {"someone/unime-tiny": CHECKPOINT_FILES}


def test_the_committed_checkpoint_contains_the_current_code() -> None:
    root = Path(__file__).resolve().parents[1]
    for name in sorted(name for name in CHECKPOINT_FILES if name.endswith("_unime.py")):
        copy = root / "checkpoints" / "unime-tiny" / name
        assert copy.read_text() == (root / name).read_text(), f"copy {name} into the checkpoint again"
    template = processor_from_backbone(str(root / "checkpoints" / "tiny-backbone")).chat_template
    assert (root / "checkpoints" / "unime-tiny" / "chat_template.jinja").read_text() == template, "write it again"


@pytest.mark.parametrize("load", [load_model, read_config])
@pytest.mark.parametrize("path", ["./nope", "a/b/c", "checkpoints/typo"])
def test_a_path_that_does_not_exist_is_refused_without_asking_the_hub(
    path: str, load: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("transformers would ask the Hub for this path")

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    for auto_class in ("AutoConfig", "AutoProcessor", "AutoModel"):
        monkeypatch.setattr(f"transformers.{auto_class}.from_pretrained", fail)
    with pytest.raises(FileNotFoundError, match=f"^there is no folder {path}: check the path of the checkpoint"):
        load(path)


def test_the_committed_checkpoint_states_the_transformers_bound_of_the_package() -> None:
    folder = Path(__file__).resolve().parents[1] / "checkpoints" / "unime-tiny"
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    bounds = [requirement for requirement in map(Requirement, requires("unime") or ()) if requirement.marker is None]
    (transformers,) = [requirement for requirement in bounds if requirement.name == "transformers"]
    assert settings["requirements"]["transformers"]["specifier"] == str(transformers.specifier)
