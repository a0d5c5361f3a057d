"""ONNX export: it agrees with the model at every batch size and length, or it is removed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from file_modes import private_files
from PIL import Image
from tiny_models import TINY_MODELS
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, ProcessorMixin
from without_package import BLOCK_UNIME

from unime import UniMEModel, load_model
from unime.export.onnx import embed_items, embed_texts, export_onnx


ITEMS = [
    "a cat",
    "",
    "a text that says <image> and <|im_end|>",
    {"text": "two dogs", "instruction": "Find an image:"},
]
LONG = "two dogs play with a ball; " * 20


@pytest.fixture(scope="module")
def source(tiny_model: Callable[[str], Path]) -> tuple[UniMEModel, ProcessorMixin]:
    """Return a model whose tokenizer adds a token to the beginning of every text; only its texts are exported."""
    return load_model(str(tiny_model("llava-next")), dtype="float32")


@pytest.fixture(scope="module")
def exported(source: tuple[UniMEModel, ProcessorMixin], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of its exported text path."""
    folder = tmp_path_factory.mktemp("export") / "onnx"
    assert export_onnx(*source, folder) <= 1e-5
    return folder


def test_texts_have_the_embeddings_of_the_model_at_every_batch_size_and_length(
    exported: Path, source: tuple[UniMEModel, ProcessorMixin]
) -> None:
    session, tokenizer = (
        onnxruntime.InferenceSession(exported / "model.onnx"),
        AutoTokenizer.from_pretrained(exported),
    )
    model, processor = source
    for items in (ITEMS, [LONG], [*ITEMS, LONG] * 5):
        embeddings = embed_texts(session, tokenizer, items)
        np.testing.assert_allclose(embeddings, model.encode(items, processor), atol=1e-5)
    assert embeddings.shape == (25, 32) and embeddings.dtype == np.float32
    assert np.abs(embeddings[0] - embeddings[1]).max() > 0.01


def test_the_snippet_in_the_card_runs(exported: Path, source: tuple[UniMEModel, ProcessorMixin]) -> None:
    _, code, _ = (exported / "README.md").read_text().split("```")
    names: dict[str, np.ndarray] = {}
    exec(code.removeprefix("python").replace("path/to/this/folder", str(exported)), names)
    model, processor = source
    expected = model.encode(["a slice of pizza", "two dogs"], processor)
    np.testing.assert_allclose(names["embeddings"], expected, atol=1e-5)


def test_the_folder_has_the_files_that_text_embeddings_inference_reads(exported: Path) -> None:
    assert private_files(exported) == []
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["MistralModel"] and config["model_type"] == "mistral"
    assert config["max_position_embeddings"] == 4096 and config["pad_token_id"] == 3
    assert {path.name for path in exported.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_half_precision_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is float32, got a model in torch.bfloat16"):
        export_onnx(*load_model(str(tiny_model("llava")), dtype="bfloat16"), tmp_path / "onnx")


# Runs the snippets of the card where `unime` cannot be imported. Arguments: folder, output file.
SNIPPETS = """
import pathlib
import sys

folder, output = sys.argv[1:]
_, texts, _, images, _ = (pathlib.Path(folder) / "README.md").read_text().split("```")
results = []
for code in (texts, images):
    exec(code.removeprefix("python").replace("path/to/this/folder", folder))
    results.append(embeddings)
import numpy as np

np.savez(output, *results)
assert "unime" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unime-tiny", "llava", "fast_vlm"])
def test_images_have_the_embeddings_of_the_model(
    name: str, tiny_model: Callable[[str], Path], tiny: tuple[UniMEModel, ProcessorMixin], tmp_path: Path
) -> None:
    model, processor = tiny if name == "unime-tiny" else load_model(str(tiny_model(name)), dtype="float32")
    folder = tmp_path / "onnx"
    assert export_onnx(model, processor, folder) <= 1e-5
    graphs = [onnxruntime.InferenceSession(folder / f"{graph}.onnx") for graph in ("vision", "model")]
    images = [
        Image.effect_mandelbrot(size, (-2, -1, 1, 1), 50).convert("RGB") for size in ((20, 90), (64, 48), (96, 96))
    ]
    mixed = [
        "a cat",
        images[0],
        {"image": images[1], "text": "What?", "instruction": "Look:"},
        {"image": images, "text": ""},
    ]
    for items in (mixed, mixed[1:2], mixed * 3, [["The cat", images[0], "sits on", images[1]], LONG]):
        embeddings = embed_items(*graphs, AutoProcessor.from_pretrained(folder), items)
        cosines = (embeddings * model.encode(items, processor)).sum(axis=1)
        assert cosines.min() >= 0.99999

    command = [sys.executable, "-P", "-c", BLOCK_UNIME + SNIPPETS, str(folder), str(tmp_path / "embeddings.npz")]
    run = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    texts, mixed = np.load(tmp_path / "embeddings.npz").values()
    np.testing.assert_allclose(texts, model.encode(["a slice of pizza", "two dogs"], processor), atol=1e-5)
    image = Image.radial_gradient("L").convert("RGB")
    np.testing.assert_allclose(
        mixed, model.encode([{"image": image, "text": "What is it?"}, image], processor), atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unime-tiny", *TINY_MODELS])
def test_the_language_model_of_every_backbone_is_exported(
    name: str, tiny_model: Callable[[str], Path], tiny: tuple[UniMEModel, ProcessorMixin], tmp_path: Path
) -> None:
    model, processor = tiny if name == "unime-tiny" else load_model(str(tiny_model(name)), dtype="float32")
    assert export_onnx(model, processor, tmp_path / "onnx") <= 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    embeddings = embed_texts(session, AutoTokenizer.from_pretrained(tmp_path / "onnx"), [*ITEMS, LONG])
    np.testing.assert_allclose(embeddings, model.encode([*ITEMS, LONG], processor), atol=1e-5)


@pytest.mark.slow
def test_a_graph_that_differs_from_the_model_is_removed(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, processor = load_model(str(tiny_model("llava")), dtype="float32")

    def shift(_module: torch.nn.Module, _inputs: tuple, output: dict) -> dict:
        output["last_hidden_state"] = output["last_hidden_state"].roll(1, dims=-1)
        return output

    model.backbone.register_forward_hook(shift)  # now the model differs from the exported language model
    with pytest.raises(ValueError, match="gives embeddings that differ from the model"):
        export_onnx(model, processor, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
def test_a_language_model_that_cannot_be_exported_is_refused_in_one_sentence(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    _, processor = load_model(str(tiny_model("qwen3-vl")))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = sizes | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    text |= {"num_key_value_heads": 2, "vocab_size": len(processor.tokenizer), "pad_token_id": None}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
    config = AutoConfig.for_model(
        "qwen3_vl_moe", text_config=text, vision_config=vision | {"deepstack_visual_indexes": [0]}
    )
    with pytest.raises(ValueError, match="cannot export the language model of 'qwen3_vl_moe'"):
        export_onnx(UniMEModel.from_backbone(config).eval(), processor, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
