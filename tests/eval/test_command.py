"""The command: several models and benchmarks at once, and no embedding is computed twice."""

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

from unime.eval.benchmarks.sugarcrepe import KINDS
from unime.eval.encoders.loading import load_encoder
from unime.eval.miniatures.caption_miniature import write_urban1k


ROOT = Path(__file__).resolve().parents[2]
command = importlib.import_module("unime.eval.__main__")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    def start(*arguments: object) -> Path:
        command.main([str(word) for word in (*arguments, "--output", tmp_path / "out")])
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


def test_a_second_run_embeds_nothing_and_has_the_same_results(
    run: Callable[..., Path], siglip: Path, capsys: pytest.CaptureFixture
):
    arguments = [
        "--models",
        f"UniME={ROOT / 'checkpoints' / 'unime-tiny'}",
        siglip,
        "--size",
        20,
        "--highlight",
        "UniME",
    ]
    output = run(*arguments)
    first = json.loads((output / "results.json").read_text())
    printed = capsys.readouterr().out
    assert (output / "table.md").read_text().strip() in printed and " items/s\n" in printed
    assert "<img" in (output / "report.html").read_text()
    second = json.loads((run(*arguments) / "results.json").read_text())
    assert "all embeddings were cached" in capsys.readouterr().out
    assert list(first) == ["UniME", "siglip"]
    for title, results in first.items():
        again = second[title]
        assert results["embedded"]["items"] > 300 and again["embedded"]["items"] == 0
        assert all(results[part] == again[part] for part in ("tasks", "compositional", "overall"))
        metadata = results["run"]
        assert metadata["revision"] == again["run"]["revision"]
        assert metadata["dtype"] == "float32" and metadata["seed"] == 0
        assert torch.__version__.startswith(metadata["libraries"]["torch"]) and "T" in metadata["date"]
    metadata = first["UniME"]["run"]
    assert "in one word:" in metadata["prompts"] and metadata["pixels"]["size"] == {"height": 96, "width": 96}


def test_several_benchmarks_have_one_folder_each(run: Callable[..., Path], tmp_path: Path):
    write_urban1k(tmp_path, {number: f"number {number}\n" for number in range(3)})
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
    assert counts == [6, 2]  # SugarCrepe's image was already embedded for Urban1K
    assert "urban1k_t2i" in (output / "urban1k" / "table.md").read_text()
    assert "replace_rel" in (output / "sugarcrepe" / "table.md").read_text()
    assert "Mean of tasks" not in (output / "sugarcrepe" / "table.md").read_text()
    assert "Compositional understanding" in (output / "sugarcrepe" / "report.html").read_text()


def test_embeddings_at_another_image_size_are_computed_again(
    run: Callable[..., Path], tiny_model: Callable[[str], Path], tmp_path: Path
):
    for part in ("image", "caption"):
        (tmp_path / part).mkdir()
    Image.radial_gradient("L").resize((90, 60)).save(tmp_path / "image" / "0.jpg")
    (tmp_path / "caption" / "0.txt").write_text("a gradient\n")
    embedded = []
    for size in ((), ("--image_size", 24), ("--image-size", 24), ("--image-size", '{"max_pixels": 576}')):
        output = run("--models", f"tiny={tiny_model('qwen2-vl')}", "--benchmarks", "urban1k", "--urban1k_folder",
                     tmp_path, *size)  # fmt: skip
        results = json.loads((output / "results.json").read_text())["tiny"]
        embedded.append((results["embedded"]["items"], results["run"]["image_size"]))
    assert embedded == [(2, None), (2, 24), (0, 24), (2, {"max_pixels": 576})]


def test_miniature_files_are_written_once_and_evaluated(run: Callable[..., Path], tmp_path: Path):
    names = ("urban1k", "nli", "rows")
    arguments = ["--models", ROOT / "checkpoints" / "unime-tiny", "--benchmarks", *names, "--miniature"]
    output = run(*arguments)
    counts = []
    for name in names:
        results = json.loads((output / name / "results.json").read_text())["unime-tiny"]
        counts += [task["queries"] for task in results["tasks"].values()]
    assert counts == [8, 8, 8, 8]
    written = {path: path.stat().st_mtime_ns for path in (output / "miniature").rglob("*") if path.is_file()}
    run(*arguments)
    assert {path: path.stat().st_mtime_ns for path in (output / "miniature").rglob("*") if path.is_file()} == written
    with pytest.raises(ValueError, match="the benchmark 'agreement' reads no files and has no miniature; leave out"):
        run("--models", "anything", "--benchmarks", "agreement", "--miniature")


def test_unknown_benchmarks_highlights_and_options_are_refused(run: Callable[..., Path]):
    with pytest.raises(ValueError, match="unknown benchmark 'imagenet': choose from openmoji, rows, mmeb, mmeb-v2"):
        run("--models", "anything", "--benchmarks", "imagenet")
    with pytest.raises(ValueError, match="highlight 'Stage 3' is not the title of a model; choose from anything"):
        run("--models", "anything", "--highlight", "Stage 3")
    with pytest.raises(ValueError, match="unrecognized arguments: --modle x; `python -m unime.eval --help` lists"):
        run("--models", "anything", "--modle", "x")


def test_the_help_names_the_program_that_the_user_ran(capsys: pytest.CaptureFixture):
    for prog in ("unime eval", "python -m unime.eval"):
        with pytest.raises(SystemExit):
            command.main(["--help"], *([prog] if prog == "unime eval" else []))
        assert capsys.readouterr().out.startswith(f"usage: {prog} ")


@pytest.mark.parametrize("option", ["--output", "--output-dir", "--output_dir"])
def test_options_have_hyphens_or_underscores(option: str, monkeypatch: pytest.MonkeyPatch):
    parsed = {}
    monkeypatch.setattr(command, "evaluate_models", lambda models, highlight, args, *rest: parsed.update(vars(args)))
    command.main(["--model", "a", "--benchmark", "sts", option, "here", "--embedding-cache", "there"])
    assert (parsed["models"], parsed["benchmarks"]) == (["a"], ["sts"])
    assert (parsed["output"], parsed["embedding_cache"]) == ("here", "there")


def test_siglip_embeds_as_published(siglip: Path, monkeypatch: pytest.MonkeyPatch):
    encode = load_encoder(str(siglip)).encode
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    items = ["a cat", image, {"image": image, "text": "a cat"}, {"image": image, "instruction": "Find:"}]
    text_only, image_only, both, instructed = encode(items)
    model, processor = SiglipModel.from_pretrained(siglip), SiglipProcessor.from_pretrained(siglip)
    inputs = processor(text=["a cat"], images=[image], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    np.testing.assert_allclose(text_only, output.text_embeds[0], atol=1e-5)
    np.testing.assert_allclose(image_only, output.image_embeds[0], atol=1e-5)
    np.testing.assert_allclose(both, (text_only + image_only) / np.linalg.norm(text_only + image_only), atol=1e-5)
    np.testing.assert_allclose(instructed, image_only, atol=1e-5)
    monkeypatch.setattr("unime.eval.encoders.siglip.MAX_WINDOW_PIXELS", 1)
    np.testing.assert_allclose(encode(items), [text_only, image_only, both, instructed], atol=1e-6)
    with pytest.raises(ValueError, match="item 4 has 2 images, but SigLIP takes one"):
        encode([*items, {"image": [image, image]}])


def test_the_fusion_of_two_towers_is_an_option(siglip: Path):
    image = Image.new("RGB", (30, 40), "red")
    items = [{"image": image, "text": "a red tile"}, {"image": image}]
    ours, published = (load_encoder(str(siglip), fusion=fusion).encode(items) for fusion in ("normalized", "mmeb-sum"))
    np.testing.assert_allclose(np.linalg.norm(published, axis=1), 1, atol=1e-6)
    assert np.abs(ours[0] - published[0]).max() > 1e-4
    np.testing.assert_allclose(ours[1], published[1], atol=1e-6)
    with pytest.raises(ValueError, match="unknown fusion 'sum': choose from normalized, mmeb-sum, mmeb-sides"):
        load_encoder(str(siglip), fusion="sum")
