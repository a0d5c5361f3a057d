"""One folder holds everything, and AutoModel and SentenceTransformer load it where this package is not installed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoProcessor
from without_package import NOT_INSTALLED

import unime.checkpoint
from unime import UniMEModel, load_model, processor_from_backbone, push_checkpoint, save_checkpoint
from unime.checkpoint import PROMPTS


LOADED_ELSEWHERE = ["llava", "llava-onevision", "qwen2-vl"]
FILES = {
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "README.md",
    "batching_unime.py",
    "chat_template.jinja",
    "config.json",
    "config_sentence_transformers.json",
    "configuration_unime.py",
    "cpu_prepacking_unime.py",
    "model.safetensors",
    "modeling_unime.py",
    "modules.json",
    "encoding_unime.py",
    "pooling_unime.py",
    "processing_unime.py",
    "processor_config.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
INSTRUCTION = "Represent the given image with the following question:"

# Runs where `unime` cannot be imported; arguments: the folder of images and checkpoints, the checkpoints' names.
ELSEWHERE = """
from pathlib import Path

import numpy as np
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
    np.savez(
        folder / f"{name}.npz",
        auto=model.encode(items),
        auto_instruction=model.encode(instructed),
        sentences=sentences.encode(items),
        sentences_instruction=sentences.encode(items, prompt=instruction),
        sentences_query=sentences.encode_query(items),
        sentences_named=sentences.encode(items, prompt_name="text_to_image"),
        width=sentences.get_embedding_dimension(),
    )
assert "unime" not in sys.modules
"""


@pytest.fixture(scope="module")
def checkpoints(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a checkpoint of each backbone in `LOADED_ELSEWHERE`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in LOADED_ELSEWHERE:
        save_checkpoint(*load_model(tiny_model(name)), folder / name)
    return folder


@pytest.fixture(scope="module")
def elsewhere(checkpoints: Path) -> Path:
    """Give the same folder after a fresh interpreter without `unime` has embedded items with every checkpoint."""
    (checkpoints / "instruction.txt").write_text(INSTRUCTION)
    for colour, size in (("red", (40, 56)), ("blue", (64, 24))):
        Image.new("RGB", size, colour).save(checkpoints / f"{colour}.png")
    environment = os.environ | {"HF_MODULES_CACHE": str(checkpoints / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", NOT_INSTALLED + ELSEWHERE, str(checkpoints), *LOADED_ELSEWHERE]
    run = subprocess.run(command, cwd=checkpoints, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "custom code" not in run.stdout + run.stderr  # trusted once, nobody is asked again
    return checkpoints


@pytest.mark.parametrize("name", LOADED_ELSEWHERE)
def test_a_checkpoint_embeds_the_same_where_the_package_is_not_installed(name: str, elsewhere: Path) -> None:
    red, blue = (Image.open(elsewhere / image) for image in ("red.png", "blue.png"))
    items = [{"text": "a cat"}, {"image": red}, {"image": blue, "text": "Is it blue?"}]
    items += [{"text": "see <image> and <|im_end|>"}, {"image": blue}]
    model = UniMEModel.from_pretrained(elsewhere / name)
    plain = model.encode(items)
    instructed = model.encode([item | {"instruction": INSTRUCTION} for item in items])
    named = model.encode([item | {"instruction": PROMPTS["text_to_image"]} for item in items])
    assert np.abs(plain - instructed).max() > 0.01 and np.abs(named - instructed).max() > 0.01
    there = np.load(elsewhere / f"{name}.npz")
    assert int(there["width"]) == plain.shape[1]
    for key in ("auto", "sentences", "sentences_query"):
        np.testing.assert_allclose(there[key], plain, atol=1e-5, err_msg=key)
    for key in ("auto_instruction", "sentences_instruction"):
        np.testing.assert_allclose(there[key], instructed, atol=1e-5, err_msg=key)
    np.testing.assert_allclose(there["sentences_named"], named, atol=1e-5)


@pytest.mark.parametrize("name", LOADED_ELSEWHERE)
def test_a_checkpoint_is_exactly_these_files(name: str, checkpoints: Path) -> None:
    folder = checkpoints / name
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_unime.UniMEConfig",
        "AutoModel": "modeling_unime.UniMEModel",
    }
    assert config["architectures"] == ["UniMEModel"] and config["model_type"] == "unime"
    for code in folder.glob("*.py"):
        assert code.read_text() == (Path(unime.checkpoint.__file__).parent / code.name).read_text()


def test_sentence_transformers_is_told_of_its_own_classes_only(checkpoints: Path) -> None:
    folder = checkpoints / "llava"
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["type"].split(".")[-1] for module in modules] == ["Transformer", "Pooling", "Normalize"]
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == PROMPTS and {"query", "document", "text_to_image"} <= PROMPTS.keys()
    assert {"sentence-transformers", "transformers"} <= settings["requirements"].keys()
    assert json.loads((folder / "1_Pooling/config.json").read_text())["pooling_mode"] == "lasttoken"


def front_matter(card: str) -> dict:
    """Parse the YAML between the first two lines of dashes."""
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_card_has_front_matter_and_says_what_the_model_is(checkpoints: Path) -> None:
    card = (checkpoints / "llava" / "README.md").read_text()
    assert front_matter(card)["library_name"] == "sentence-transformers"
    assert "unime" in front_matter(card)["tags"]
    assert "`llava` backbone" in card and "32 dimensions" in card
    assert all(f"`{name}`" in card for name in PROMPTS)


def test_a_card_of_ones_own_is_kept(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    save_checkpoint(*load_model(tiny_model("llava")), tmp_path, card="---\ntags: []\n---\nMine.\n")
    assert (tmp_path / "README.md").read_text() == "---\ntags: []\n---\nMine.\n"


def test_unmerged_adapters_are_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, processor = load_model(tiny_model("llava"))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    for carrier in (adapted, model):
        with pytest.raises(ValueError, match="LoRA adapters: merge them"):
            save_checkpoint(carrier, processor, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    save_checkpoint(adapted.merge_and_unload(), processor, tmp_path / "checkpoint")
    assert type(load_model(tmp_path / "checkpoint")[0]) is UniMEModel


def test_a_processor_without_a_template_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, processor = load_model(tiny_model("llava"))
    processor.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        save_checkpoint(model, processor, tmp_path / "checkpoint")


def test_a_backbone_and_a_checkpoint_are_loaded_by_one_function(
    tiny_model: Callable[[str], Path], checkpoints: Path
) -> None:
    wrapped, its_processor = load_model(tiny_model("llava"), dtype=torch.float32)
    saved, processor = load_model(checkpoints / "llava", dtype=torch.float32, attn_implementation="eager")
    assert type(wrapped) is type(saved) is UniMEModel
    assert saved.backbone.config._attn_implementation == "eager"
    assert processor.chat_template == its_processor.chat_template
    ours, theirs = wrapped.state_dict(), saved.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_text_only_backbone_is_refused_in_one_sentence(tiny_model: Callable[[str], Path]) -> None:
    for load in (load_model, UniMEModel.from_backbone):
        with pytest.raises(ValueError, match="is of type 'qwen3', which transformers does not list as an image-text"):
            load(tiny_model("text-only"))


def test_a_checkpoint_saved_again_is_the_same(checkpoints: Path, tmp_path: Path) -> None:
    save_checkpoint(*load_model(checkpoints / "qwen2-vl"), tmp_path)
    for name in FILES - {"config.json"}:
        assert (tmp_path / name).read_bytes() == (checkpoints / "qwen2-vl" / name).read_bytes(), name
    assert AutoProcessor.from_pretrained(tmp_path).chat_template is not None


class RecordedHub:
    """Takes the calls that would go to the Hub, and keeps what they carry."""

    repositories: dict[str, bool] = {}
    uploaded: dict[str, set[str]] = {}

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        self.repositories[repo_id] = private

    def upload_folder(self, repo_id: str, folder_path: str) -> str:
        folder = Path(folder_path)
        self.uploaded[repo_id] = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return f"https://huggingface.co/{repo_id}/commit/1"


def test_what_is_pushed_is_what_is_saved(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unime.checkpoint, "HfApi", RecordedHub)
    address = push_checkpoint(*load_model(tiny_model("llava")), "someone/unime-tiny", private=True)
    assert address == "https://huggingface.co/someone/unime-tiny/commit/1"
    assert RecordedHub.repositories == {"someone/unime-tiny": True}
    assert RecordedHub.uploaded == {"someone/unime-tiny": FILES}


def test_the_committed_checkpoint_carries_the_present_code() -> None:
    root = Path(__file__).resolve().parents[1]
    for name in sorted(name for name in FILES if name.endswith("_unime.py")):
        copied = root / "checkpoints" / "unime-tiny" / name
        assert copied.read_text() == (root / name).read_text(), f"copy {name} anew"
    template = processor_from_backbone(str(root / "checkpoints" / "tiny-backbone")).chat_template
    assert (root / "checkpoints" / "unime-tiny" / "chat_template.jinja").read_text() == template, "write it anew"
