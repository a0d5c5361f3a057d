"""`python -m unime.eval`: one command, any models, any benchmarks, and nothing computed twice."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_tokenizers import tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from unime.eval.encoders.loading import load_encoder
from unime.openmoji.perturbations import KINDS


ROOT = Path(__file__).resolve().parents[2]
command = importlib.import_module("unime.eval.__main__")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    def start(*words: object) -> Path:
        command.main([str(word) for word in (*words, "--output_dir", tmp_path / "out")])
        return tmp_path / "out"

    return start


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    """Write a tiny random SigLIP with its processor."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    words: PreTrainedTokenizerFast = tokenizer(["<pad>", "</s>"], pad="<pad>", eos="</s>")
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config=sizes
        | {"vocab_size": len(words), "max_position_embeddings": 16, "projection_size": 32, "initializer_range": 0.2},
        vision_config=sizes | {"image_size": 24, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    SiglipProcessor(SiglipImageProcessor(size={"height": 24, "width": 24}), words).save_pretrained(tmp_path / "siglip")
    return tmp_path / "siglip"


def test_a_second_run_embeds_nothing_and_finds_the_same(
    run: Callable[..., Path], siglip: Path, capsys: pytest.CaptureFixture
):
    words = ["--models", f"UniME={ROOT / 'checkpoints' / 'unime-tiny'}", siglip, "--size", 20, "--highlight", "UniME"]
    output = run(*words)
    first = json.loads((output / "results.json").read_text())
    printed = capsys.readouterr().out
    assert (output / "table.md").read_text().strip() in printed and " a second\n" in printed
    assert "<img" in (output / "report.html").read_text()
    second = json.loads((run(*words) / "results.json").read_text())
    assert "0 items, all of them known from before" in capsys.readouterr().out
    assert list(first) == ["UniME", "siglip"]
    for title, found in first.items():
        again = second[title]
        assert found["embedded"]["items"] > 300 and again["embedded"]["items"] == 0
        assert all(found[part] == again[part] for part in ("tasks", "compositional", "overall"))
        told = found["run"]
        assert told["revision"] == again["run"]["revision"] and told["dtype"] == "float32" and told["seed"] == 0
        assert torch.__version__.startswith(told["libraries"]["torch"]) and "T" in told["date"]
    told = first["UniME"]["run"]
    assert "in one word:" in told["prompts"] and told["pixels"]["size"] == {"height": 96, "width": 96}


def test_several_benchmarks_have_a_folder_each(run: Callable[..., Path], tmp_path: Path):
    for part in ("image", "caption"):
        (tmp_path / part).mkdir()
    for number in range(3):
        Image.new("RGB", (30, 30), (90 * number, 0, 0)).save(tmp_path / "image" / f"{number}.jpg")
        (tmp_path / "caption" / f"{number}.txt").write_text(f"number {number}\n")
    (tmp_path / "crepe").mkdir()
    row = {"filename": "0.jpg", "caption": "a red square", "negative_caption": "a blue square"}
    for kind in KINDS:
        (tmp_path / "crepe" / f"{kind}.json").write_text(json.dumps({"0": row}))
    output = run(
        "--models", ROOT / "checkpoints" / "unime-tiny", "--benchmarks", "urban1k", "sugarcrepe",
        "--urban1k_folder", tmp_path, "--sugarcrepe_folder", tmp_path / "crepe",
        "--sugarcrepe_images", tmp_path / "image",
    )  # fmt: skip
    counts = [
        json.loads((output / name / "results.json").read_text())["unime-tiny"]["embedded"]["items"]
        for name in ("urban1k", "sugarcrepe")
    ]
    assert counts == [6, 2]  # the image of the probes is one of Urban1K's: known by then
    assert "urban1k_t2i" in (output / "urban1k" / "table.md").read_text()
    assert "replace_rel" in (output / "sugarcrepe" / "table.md").read_text()
    assert "Mean of tasks" not in (output / "sugarcrepe" / "table.md").read_text()
    assert "One word apart" in (output / "sugarcrepe" / "report.html").read_text()


def test_a_benchmark_that_is_not_there_is_refused(run: Callable[..., Path]):
    with pytest.raises(ValueError, match="there is no benchmark 'imagenet': choose from openmoji, mmeb, mmeb-v2"):
        run("--models", "anything", "--benchmarks", "imagenet")
    with pytest.raises(ValueError, match="the highlight 'Stage 3' is none of the models: anything"):
        run("--models", "anything", "--highlight", "Stage 3")


def test_siglip_embeds_as_it_is_published(siglip: Path):
    encode = load_encoder(str(siglip)).encode
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    items = ["a cat", picture, {"image": picture, "text": "a cat"}, {"image": picture, "instruction": "Find:"}]
    text, image, both, instructed = encode(items)
    model, processor = SiglipModel.from_pretrained(siglip), SiglipProcessor.from_pretrained(siglip)
    inputs = processor(text=["a cat"], images=[picture], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    np.testing.assert_allclose(text, output.text_embeds[0], atol=1e-5)
    np.testing.assert_allclose(image, output.image_embeds[0], atol=1e-5)
    np.testing.assert_allclose(both, (text + image) / np.linalg.norm(text + image), atol=1e-5)
    np.testing.assert_allclose(instructed, image, atol=1e-5)
    with pytest.raises(ValueError, match="item 0 has 2 images, but SigLIP takes one"):
        encode([{"image": [picture, picture]}])
