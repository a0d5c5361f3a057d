"""Plain export: native classes load it without this package, and it embeds as the checkpoint does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCardData
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors import safe_open
from tiny_models import TINY_MODELS
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from without_package import BLOCK_UNIME

from unime import UniMEModel, load_model
from unime.checkpoint import PROMPTS
from unime.export.plain import export_plain


SHORT = ["unime-tiny", "llava-next"]  # the tokenizer of llava-next adds a token to the beginning of every text
INSTRUCTION = "Represent the given image with the following question:"
FILES = {
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "model.safetensors",
    "modules.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
PHI3_V_FILES = {f"{name}_phi3_v.py" for name in ("configuration", "image_processing", "modeling", "processing")}

# A script that runs without `unime`; its arguments are the folder of images and exports, and the names of the exports.
WITHOUT_UNIME = """
from pathlib import Path

import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

folder, *names = sys.argv[1:]
folder = Path(folder)
red, blue = (Image.open(folder / name) for name in ("red.png", "blue.png"))
items = ["a cat", red, {"image": blue, "text": "Is it blue?"}, {"text": "see <image> and <|im_end|>"}, blue]
for name in names:
    own = name == "phi3-v"  # transformers lacks it, and the folder has its code
    model = SentenceTransformer(
        str(folder / name), model_kwargs={"dtype": "float32"}, device="cpu", trust_remote_code=own
    )
    package = "transformers_modules." if own else "transformers.models."
    assert type(model[0].model).__module__.startswith(package), type(model[0].model)
    np.savez(
        folder / f"{name}.npz",
        bare=model.encode(items),
        instructed=model.encode(items, prompt=INSTRUCTION),
        named=model.encode(items, prompt_name="text_to_image"),
        query=model.encode_query(items),
        width=model.get_embedding_dimension(),
    )
assert "unime" not in sys.modules
""".replace("INSTRUCTION", repr(INSTRUCTION))


@pytest.fixture(scope="module")
def source(
    tiny_model: Callable[[str], Path], tiny: tuple[UniMEModel, ProcessorMixin]
) -> Callable[[str], tuple[UniMEModel, ProcessorMixin]]:
    """Return a function from a name to a model and its processor: a tiny model, or the committed checkpoint."""
    return lambda name: tiny if name == "unime-tiny" else load_model(str(tiny_model(name)), dtype="float32")


def items_of(folder: Path) -> list[dict]:
    """Return the items of `WITHOUT_UNIME` as dicts."""
    red, blue = (Image.open(folder / image) for image in ("red.png", "blue.png"))
    items = [{"text": "a cat"}, {"image": red}, {"image": blue, "text": "Is it blue?"}]
    return [*items, {"text": "see <image> and <|im_end|>"}, {"image": blue}]


def check(names: list[str], source: Callable[[str], tuple[UniMEModel, ProcessorMixin]], folder: Path) -> None:
    """Export models, embed with the exports in an interpreter without `unime`, and compare with the models."""
    for colour, size in (("red", (40, 56)), ("blue", (64, 24))):
        Image.new("RGB", size, colour).save(folder / f"{colour}.png")
    for name in names:
        export_plain(*source(name), folder / name)
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", BLOCK_UNIME + WITHOUT_UNIME, str(folder), *names]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "MISSING" not in run.stderr and "UNEXPECTED" not in run.stderr, run.stderr
    for name in names:
        model, processor = source(name)
        items, exported = items_of(folder), np.load(folder / f"{name}.npz")
        bare = model.encode(items, processor)
        instructed = model.encode([item | {"instruction": INSTRUCTION} for item in items], processor)
        named = model.encode([item | {"instruction": PROMPTS["text_to_image"]} for item in items], processor)
        assert np.abs(bare - instructed).max() > 0.01 and np.abs(named - instructed).max() > 0.01
        assert int(exported["width"]) == bare.shape[1]
        for key, expected in (("bare", bare), ("query", bare), ("instructed", instructed), ("named", named)):
            np.testing.assert_allclose(exported[key], expected, atol=1e-5, err_msg=f"{name} {key}")


def test_an_export_embeds_the_same_without_this_package(
    source: Callable[[str], tuple[UniMEModel, ProcessorMixin]], tmp_path: Path
) -> None:
    check(SHORT, source, tmp_path)


@pytest.mark.slow
def test_every_backbone_embeds_the_same_without_this_package(
    source: Callable[[str], tuple[UniMEModel, ProcessorMixin]], tmp_path: Path
) -> None:
    check([name for name in TINY_MODELS if name not in SHORT], source, tmp_path)


# A weight of each part, as the published checkpoints of the family name it; serving engines know no other names.
PUBLISHED_NAMES = {
    "llava": ["vision_tower.vision_model.embeddings.class_embedding", "language_model.model.embed_tokens.weight"],
    "llava-next": ["vision_tower.vision_model.pre_layrnorm.weight", "language_model.model.norm.weight"],
    "llava-onevision": ["vision_tower.vision_model.embeddings.patch_embedding.weight", "image_newline"],
    "qwen2-vl": ["visual.patch_embed.proj.weight", "model.embed_tokens.weight"],
    "qwen2.5-vl": ["visual.patch_embed.proj.weight", "model.embed_tokens.weight"],
    "qwen3-vl": ["model.visual.patch_embed.proj.weight", "model.language_model.embed_tokens.weight"],
    "smolvlm": ["model.vision_model.embeddings.patch_embedding.weight", "model.text_model.embed_tokens.weight"],
    "phi3-v": [
        "model.vision_embed_tokens.img_processor.vision_model.pre_layrnorm.weight",
        "model.vision_embed_tokens.glb_GN",
        "model.layers.0.self_attn.qkv_proj.weight",
    ],
    "idefics3": ["model.vision_model.embeddings.patch_embedding.weight", "model.text_model.embed_tokens.weight"],
}


@pytest.mark.parametrize("name", TINY_MODELS)
def test_weights_have_the_published_names_of_the_backbone_without_its_head(
    name: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = export_plain(*load_model(str(tiny_model(name))), tmp_path / "plain")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == (
        FILES - {"generation_config.json"} | PHI3_V_FILES if name == "phi3-v" else FILES
    )
    assert len({(folder / name).stat().st_mode for name in ("config.json", "model.safetensors")}) == 1
    names = []
    for directory in (folder, tiny_model(name)):
        with safe_open(directory / "model.safetensors", "pt") as weights:
            names.append(set(weights.keys()))
    plain, published = names
    assert plain < published and all("lm_head" in key for key in published - plain)
    assert plain.issuperset(PUBLISHED_NAMES[name])
    config, original = (json.loads((path / "config.json").read_text()) for path in (folder, tiny_model(name)))
    assert config["architectures"] == original["architectures"] and config["model_type"] == original["model_type"]
    assert ("auto_map" in config) == (name == "phi3-v")
    assert config.get("text_config", {}).get("rope_parameters", {}).get("mrope_interleaved", False) == (
        name == "qwen3-vl"
    )
    _, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    _, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not report["unexpected_keys"] and report["missing_keys"] <= {"lm_head.weight"}


def test_a_rendered_prompt_needs_no_token_from_the_tokenizer(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    conversation = [{"role": "user", "content": [{"type": "text", "text": "a cat"}]}]
    for name, adds_bos in (("llava-next", True), ("qwen2-vl", False)):
        model, processor = load_model(str(tiny_model(name)))
        before = processor.chat_template
        plain = AutoProcessor.from_pretrained(export_plain(model, processor, tmp_path / name))
        assert processor.chat_template == before
        prompt = plain.apply_chat_template(conversation, tokenize=False)
        # The tokens that a serving engine makes of the conversation, and those that the model reads.
        rendered = plain.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        read = processor.apply_chat_template([conversation], tokenize=True, return_dict=True)["input_ids"][0]
        assert rendered == list(read) and prompt.startswith("<s>") == adds_bos


def test_half_precision_and_the_settings_of_the_embedding_are_kept(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    model, processor = load_model(str(tiny_model("llava")), dtype="bfloat16")
    settings = {"matryoshka_dimensions": [8, 32], "pooling": "mean", "prompts": {"query": "Find it:"}}
    for name, value in settings.items():
        setattr(model.config, name, value)
    folder = export_plain(model, processor, tmp_path / "plain")
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.bfloat16}
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["matryoshka_dimensions"] == [8, 32]  # vLLM reads it
    again = load_model(str(folder))[0].config
    assert {name: getattr(again, name) for name in settings} == settings


def test_the_card_describes_the_export_and_keeps_metadata(
    tiny: tuple[UniMEModel, ProcessorMixin], tmp_path: Path
) -> None:
    metadata = ModelCardData(license="cc-by-4.0", library_name="something else")
    card = (export_plain(*tiny, tmp_path / "plain", metadata) / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert "license: cc-by-4.0" in head and "library_name: sentence-transformers" in head
    assert "`FastVlmForConditionalGeneration`" in body and "192 dimensions" in body and "--runner pooling" in body
    assert "The folder contains no code" in body and "trust_remote_code=True" not in body
    assert all(f"`{name}`" in body for name in PROMPTS)


def test_a_folder_that_is_not_empty_is_refused(tiny: tuple[UniMEModel, ProcessorMixin], tmp_path: Path) -> None:
    (tmp_path / "modeling.py").write_text("")
    with pytest.raises(ValueError, match="is not empty: choose a new folder"):
        export_plain(*tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["modeling.py"]


def test_unmerged_adapters_are_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, processor = load_model(str(tiny_model("llava")))
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="LoRA adapters: merge them"):
        export_plain(model, processor, tmp_path)


def test_a_backbone_that_its_generative_class_does_not_contain_is_refused(
    tiny: tuple[UniMEModel, ProcessorMixin], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = sizes | {"vocab_size": 64, "projection_dim": 32, "encoder_hidden_size": 32}
    config = AutoConfig.for_model("blip", text_config=text, vision_config=sizes | {"image_size": 32, "patch_size": 8})
    with pytest.raises(ValueError, match="BlipForConditionalGeneration does not contain a BlipModel"):
        export_plain(UniMEModel.from_backbone(config), tiny[1], tmp_path)
