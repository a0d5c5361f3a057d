"""The own Phi-3-Vision computes what the authors' code computes, and reads and writes the published weights."""

import re
from pathlib import Path

import pytest
import torch
from phi3_v_parity import IMAGE_TOKEN, draw, read, text_of, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from unime.modeling_phi3_v import Phi3VForCausalLM, Phi3VModel
from unime.processing_phi3_v import Phi3VProcessor


TOLERANCE = {"atol": 2e-5, "rtol": 0.0}  # of hidden states up to 4.3, and features up to 14
CASES = read("cases.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("phi3_v"))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Phi3VProcessor:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module", params=["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def model(folder: Path, request: pytest.FixtureRequest) -> PreTrainedModel:
    return AutoModel.from_pretrained(folder, attn_implementation=request.param).eval()


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return load_file(Path(__file__).parent / "phi3_v_reference" / "cases.safetensors")


def tokens(reference: dict[str, Tensor], name: str) -> Tensor:
    ids = reference[f"{name}/input_ids"].long()
    return ids.where(ids >= 0, IMAGE_TOKEN)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "text" in case])
@torch.no_grad()
def test_tokens_features_and_hidden_states_are_those_of_the_authors(
    name: str, model: PreTrainedModel, processor: Phi3VProcessor, reference: dict[str, Tensor]
) -> None:
    case = CASES[name]
    images = [draw(image) for image in case["images"]]
    options = {"images": images, "num_crops": case["num_crops"]} if images else {}
    tensors = processor(text=text_of(case), return_tensors="pt", **options)
    assert torch.equal(tensors["input_ids"], tokens(reference, name))
    states = model(**tensors).last_hidden_state[:, -16:]
    torch.testing.assert_close(states, reference[f"{name}/last_hidden_state"], **TOLERANCE)
    if images:
        features = model.get_image_features(tensors["pixel_values"], tensors["image_sizes"]).pooler_output
        torch.testing.assert_close(torch.cat(features)[::19], reference[f"{name}/image_features"], **TOLERANCE)


@pytest.mark.parametrize("name", ["text_1024", "text_1025"])
@torch.no_grad()
def test_one_position_beyond_the_original_length_changes_the_rotary_frequencies(
    name: str, model: PreTrainedModel, reference: dict[str, Tensor]
) -> None:
    states = model(input_ids=tokens(reference, "long_text")[:, : CASES[name]["first_tokens"]]).last_hidden_state
    torch.testing.assert_close(states[:, -16:], reference[f"{name}/last_hidden_state"], **TOLERANCE)


@pytest.mark.parametrize("name", ["batch_left", "batch_right", "batch_left_long"])
@torch.no_grad()
def test_padded_batches_are_those_of_the_authors(
    name: str, model: PreTrainedModel, processor: Phi3VProcessor, reference: dict[str, Tensor]
) -> None:
    ids, images = tokens(reference, name), {}
    if name != "batch_left_long":
        images = processor.image_processor(draw("1000x400"), num_crops=1, return_tensors="pt")
    mask = torch.ones_like(ids)
    length = reference["text/input_ids"].shape[1]  # of the first row, the shorter one
    mask[0, slice(None, -length) if "left" in name else slice(length, None)] = 0
    states = model(input_ids=ids, attention_mask=mask, **images).last_hidden_state
    states = states[:, 25:41] if name == "batch_right" else states[:, -16:]
    torch.testing.assert_close(states, reference[f"{name}/last_hidden_state"], **TOLERANCE)


@pytest.mark.parametrize("name", ["rope_short", "rope_long"])
def test_cosines_and_sines_are_scaled_for_short_inputs_too(
    name: str, model: PreTrainedModel, reference: dict[str, Tensor]
) -> None:
    positions = reference[f"{name}/position_ids"]
    for values, expected in zip(
        model.language_model.rotary_emb(torch.zeros(1), positions), ("cos", "sin"), strict=True
    ):
        torch.testing.assert_close(values, reference[f"{name}/{expected}"], atol=1e-6, rtol=0)
    assert model.language_model.rotary_emb.attention_scaling == pytest.approx(1.140175, abs=1e-6)


def test_the_rotary_frequencies_of_a_batch_do_not_depend_on_others_or_on_half_precision(folder: Path) -> None:
    rotary = AutoModel.from_pretrained(folder).language_model.rotary_emb
    short, long = torch.arange(1024)[None], torch.arange(1025)[None]
    expected = rotary(torch.zeros(1), short)
    buffers = {name: buffer.clone() for name, buffer in rotary.named_buffers()}
    rotary(torch.zeros(1), long)  # as another thread may do
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in rotary.named_buffers())
    for values, before in zip(rotary.half()(torch.zeros(1), short), expected, strict=True):
        assert torch.equal(values, before)


def published_names(names: list[str]) -> set[str]:
    return {re.sub(r"\.layers\.\d+\.", ".layers.N.", name) for name in names}


def test_published_names_are_read_and_written(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    assert published_names(list(weights)) == set(read("published_weights.json")["shapes"])
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert type(model) is Phi3VForCausalLM and not any(report.values())
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)


@pytest.mark.parametrize("alone", [True, False])
def test_token_embeddings_are_read_under_their_second_name(folder: Path, tmp_path: Path, alone: bool) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.save_pretrained(tmp_path)
    weights = load_file(folder / "model.safetensors")
    first, second = "model.embed_tokens.weight", "model.vision_embed_tokens.wte.weight"
    weights[second] = weights.pop(first) if alone else weights[first].clone()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    for auto_class in (AutoModel, AutoModelForImageTextToText):
        model, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and report["unexpected_keys"] <= {"lm_head.weight"}
        assert torch.equal(model.get_input_embeddings().weight, weights[second])
        model.save_pretrained(tmp_path / "saved")
        assert not any("wte" in name for name in load_file(tmp_path / "saved" / "model.safetensors"))


def test_the_published_size_has_the_published_weights() -> None:
    published = read("published_weights.json")
    config = AutoConfig.for_model(**read("published_config.json"))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == published["parameters"]
    assert model.model.language_model.rotary_emb.attention_scaling == pytest.approx(1.1902380714)
    shapes = sorted(list(weight.shape) for weight in model.state_dict().values())
    layers = {"model.layers.N.": 32, "vision_model.encoder.layers.N.": 24}
    expected = [
        shape
        for name, shape in published["shapes"].items()
        for _ in range(next((count for part, count in layers.items() if part in name), 1))
    ]
    assert shapes == sorted(expected)


def test_a_wrong_number_of_image_tokens_is_refused(model: Phi3VModel, processor: Phi3VProcessor) -> None:
    tensors = processor(text="<|image_1|>", images=[draw("30x30")], num_crops=1, return_tensors="pt")
    with pytest.raises(ValueError, match="inputs have 312 tokens of images, but the images 313"):
        model(**tensors | {"input_ids": tensors["input_ids"][:, :-2], "attention_mask": None})


def test_an_embedding_trains_every_weight_but_those_behind_the_features(
    folder: Path, processor: Phi3VProcessor
) -> None:
    model = Phi3VModel.from_pretrained(folder)
    tensors = processor(text="<|image_1|>\na cat", images=[draw("40x30")], num_crops=1, return_tensors="pt")
    model(**tensors).last_hidden_state[:, -1].sum().backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    behind = ("vision_tower.encoder.layers.2.", "vision_tower.post_layernorm.")
    assert without and all(name.startswith(behind) for name in without)
