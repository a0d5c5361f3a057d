"""The model gives one unit vector per item, however the item is batched or padded and the model loaded or saved."""

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from huggingface_hub import save_torch_state_dict
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import LAYER_SIZES
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin, pipeline
from transformers.modeling_layers import GradientCheckpointingLayer

from unime import UniMEConfig, UniMEModel, load_model, micro_batches, modeling_unime, processor_from_backbone
from unime.modeling_unime import ATTENTION_SUPPORT
from unime.processing_unime import to_item_dict, to_messages


WIDTH = LAYER_SIZES["hidden_size"]


def make_image(seed: int, width: int = 40, height: int = 56) -> Image.Image:
    """Return an image of coarse colored noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


ITEMS = [
    "a pizza on a red tile",
    make_image(0),
    {"image": make_image(1, 64, 24), "text": "what is to the left of the cat?"},
    {"text": "a cat", "instruction": "Find me an everyday image that matches the given caption:"},
    {"image": make_image(2, 24, 64), "instruction": "Represent the given image."},
    {"image": [make_image(3), make_image(4, 30, 30)], "text": "the first, but blue"},
    {"image": make_image(5), "text": "Is it red?", "instruction": "Represent the given image with the question:"},
    "日本",
    ["The cat", make_image(6), "sits on", make_image(7, 64, 24)],
    {"content": [make_image(8), "is the cat on", make_image(9), "?"], "instruction": "Find it:"},
]
IMAGE_ITEMS = [ITEMS[i] for i in (1, 2, 5, 6)]  # images of several shapes, for tests that need one batch


@pytest.fixture(scope="module")
def folder(family: str, tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model(family)


@pytest.fixture(scope="module")
def model(folder: Path) -> UniMEModel:
    """Return the model in evaluation mode; tests must not change it."""
    return UniMEModel.from_backbone(folder).eval()


def one_batch(processor: ProcessorMixin, items: list) -> dict[str, Tensor]:
    """Return the tensors of items that form one batch: all of them with images, or none."""
    ((_, tensors),) = micro_batches(processor, items, micro_batch_tokens=10**6)
    return dict(tensors)


def test_the_backbone_keeps_its_weights_and_loses_its_head(model: UniMEModel, folder: Path) -> None:
    native = AutoModelForImageTextToText.from_pretrained(folder)
    actual, expected = model.backbone.state_dict(), native.model.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in actual)
    assert native.get_output_embeddings() is not None and model.get_output_embeddings() is None
    assert model.get_input_embeddings() is model.backbone.get_input_embeddings()


def test_missing_weights_are_initialized_as_in_the_native_class(model: UniMEModel) -> None:
    config = model.config.backbone_config
    torch.manual_seed(0)
    expected = type(model.backbone).from_pretrained(None, config=deepcopy(config), state_dict={}).state_dict()
    torch.manual_seed(0)
    actual = UniMEModel.from_pretrained(None, config=UniMEConfig(backbone_config=deepcopy(config)), state_dict={})
    assert {name for name, weight in actual.backbone.state_dict().items() if not weight.equal(expected[name])} == set()


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def native(request: pytest.FixtureRequest, folder: Path) -> PreTrainedModel:
    """Return the native model with its head, which may share the weights of the token embeddings."""
    if not request.param:
        return AutoModelForImageTextToText.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    torch.manual_seed(1)
    native = AutoModelForImageTextToText.from_config(config)
    assert native.get_output_embeddings().weight is native.get_input_embeddings().weight
    return native


@pytest.mark.parametrize("naming", ["historical", "today's", "today's, in shards"])
@pytest.mark.parametrize("saved", ["with the head", "without the head"])
def test_every_naming_of_the_weights_is_loaded(
    native: PreTrainedModel, saved: str, naming: str, tmp_path: Path
) -> None:
    part = native if saved == "with the head" else native.model
    part.save_pretrained(tmp_path)  # in the historical naming, if the family has one
    if naming != "historical":
        (tmp_path / "model.safetensors").unlink()
        weights = part.state_dict()
        if native.get_output_embeddings().weight is native.get_input_embeddings().weight:
            weights.pop("lm_head.weight", None)  # transformers saves shared weights once
        save_torch_state_dict(weights, tmp_path, max_shard_size="50KB" if naming.endswith("shards") else "50GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is naming.endswith("shards")
    dtype, attention = (torch.bfloat16, "eager") if naming.endswith("shards") else (torch.float32, "sdpa")
    loaded = UniMEModel.from_backbone(tmp_path, dtype=dtype, attn_implementation=attention)
    actual, expected = loaded.backbone.state_dict(), native.model.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key].to(dtype)) for key in expected)
    assert loaded.backbone.config._attn_implementation == attention
    loaded.backbone.save_pretrained(tmp_path / "saved")
    again = UniMEModel.from_backbone(tmp_path / "saved", dtype=dtype).backbone.state_dict()
    assert all(torch.equal(actual[key], again[key]) for key in actual)


@pytest.mark.parametrize("loader", [UniMEModel.from_backbone, load_model])
@pytest.mark.parametrize("missing", ["embed_tokens.weight", "patch_embed", "bias"])
def test_a_backbone_with_a_missing_weight_is_refused(
    folder: Path, loader: Callable, missing: str, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in sorted(weights) if missing in name)
    save_file({key: weights[key] for key in weights if key != name}, tmp_path / "model.safetensors")
    message = rf"{tmp_path} has no weights for \S*{name.split('.')[-2]}\S*: copy or download the checkpoint again"
    with pytest.raises(ValueError, match=message):
        loader(str(tmp_path))


def test_forward_returns_unit_vectors_in_float32_and_no_logits(model: UniMEModel, processor: ProcessorMixin) -> None:
    tensors = one_batch(processor, IMAGE_ITEMS)
    output = model(**tensors)
    assert list(output) == ["embeddings", "last_hidden_state"]
    assert output.embeddings.shape == (4, WIDTH) and output.embeddings.dtype == torch.float32
    assert output.last_hidden_state.shape == (*tensors["input_ids"].shape, WIDTH)
    torch.testing.assert_close(output.embeddings.norm(dim=-1), torch.ones(4))


def test_the_order_of_texts_and_images_changes_the_embedding(model: UniMEModel, processor: ProcessorMixin) -> None:
    first, second = make_image(0), make_image(1)
    items = [
        ["The cat", first, "sits on", second],
        ["The cat", second, "sits on", first],
        ["sits on", first, "The cat", second],
        [first, "The cat", second, "sits on"],
        ["The cat", first, second, "sits on"],
        [first, second, "The cat", "sits on"],
        ["The cat", "sits on", first, second],
    ]
    embeddings = model.encode(items, processor)
    assert (embeddings @ embeddings.T - np.eye(len(items))).max() < 0.9999
    again = model.encode([*items, *items], processor)  # equal items are embedded once
    np.testing.assert_array_equal(again[: len(items)], again[len(items) :])


def test_different_items_get_different_embeddings(model: UniMEModel, processor: ProcessorMixin) -> None:
    embeddings = model.encode(ITEMS, processor)
    assert (embeddings @ embeddings.T - np.eye(len(ITEMS))).max() < 0.999


@pytest.mark.parametrize("micro_batch_tokens", [1, 200, 10**6])
def test_a_batch_of_n_gives_the_embeddings_of_n_batches_of_one(
    model: UniMEModel, processor: ProcessorMixin, micro_batch_tokens: int
) -> None:
    expected = np.stack([model.encode([item], processor)[0] for item in ITEMS])
    embeddings = model.encode(ITEMS, processor, micro_batch_tokens=micro_batch_tokens)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_a_batch_of_texts_and_images_gives_the_embeddings_of_separate_batches(
    model: UniMEModel, processor: ProcessorMixin
) -> None:
    image = make_image(0)
    items = ["a cat", {"image": image, "text": "a cat"}]
    prompts = processor.apply_chat_template([to_messages(to_item_dict(item)) for item in items], tokenize=False)
    mixed = processor(text=prompts, images=[[], [image]], padding=True, return_tensors="pt")
    embeddings = model(**mixed).embeddings.detach().numpy()
    np.testing.assert_allclose(embeddings, model.encode(items, processor), atol=1e-5)


def test_left_and_right_padding_give_the_same_embeddings(model: UniMEModel, folder: Path) -> None:
    for items in (ITEMS[0::7] + [ITEMS[3]], IMAGE_ITEMS):
        embeddings = []
        for side in ("left", "right"):
            processor = processor_from_backbone(folder)
            processor.tokenizer.padding_side = side
            normalized = [to_item_dict(item) for item in items]
            prompts = processor.apply_chat_template([to_messages(item) for item in normalized], tokenize=False)
            images = [item["images"] for item in normalized]
            tensors = processor(
                text=prompts, images=images if any(images) else None, padding=True, return_tensors="pt"
            )
            assert (tensors["attention_mask"][:, 0 if side == "left" else -1] == 0).any()
            embeddings.append(model(**tensors).embeddings)
        torch.testing.assert_close(*embeddings, atol=1e-5, rtol=0)


def test_an_embedding_is_the_normalized_last_hidden_state_of_the_native_model(model: UniMEModel, folder: Path) -> None:
    native = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = processor_from_backbone(folder)
    processor.tokenizer.padding_side = "left"
    tensors = one_batch(processor, IMAGE_ITEMS)
    states = native(**tensors, output_hidden_states=True).hidden_states[-1][:, -1]
    expected = torch.nn.functional.normalize(states, dim=-1)
    torch.testing.assert_close(model(**tensors).embeddings, expected, atol=1e-5, rtol=0)


def test_truncated_embeddings_are_normalized(model: UniMEModel, processor: ProcessorMixin) -> None:
    leading = model.encode(IMAGE_ITEMS, processor)[:, :8]
    expected = leading / np.linalg.norm(leading, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode(IMAGE_ITEMS, processor, truncate_dim=8), expected, atol=1e-6)
    tensors = one_batch(processor, IMAGE_ITEMS)
    truncated = model(**tensors, truncate_dim=8).embeddings
    torch.testing.assert_close(truncated.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(truncated, torch.nn.functional.normalize(model(**tensors).embeddings[:, :8], dim=-1))


@pytest.mark.parametrize("truncate_dim", [0, WIDTH + 1])
def test_an_invalid_number_of_dimensions_is_refused(
    model: UniMEModel, processor: ProcessorMixin, truncate_dim: int
) -> None:
    with pytest.raises(ValueError, match=f"truncate_dim must be between 1 and {WIDTH}, got {truncate_dim}"):
        model.encode("a cat", processor, truncate_dim=truncate_dim)


def gradients(model: UniMEModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of a fixed function of the embeddings."""
    model.zero_grad()
    weights = torch.linspace(-1, 1, WIDTH)
    (model(**tensors).embeddings @ weights).square().sum().backward()
    return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}


def test_activation_checkpointing_does_not_change_the_gradients(folder: Path, processor: ProcessorMixin) -> None:
    model = UniMEModel.from_backbone(folder).train()
    tensors = one_batch(processor, IMAGE_ITEMS)
    plain = gradients(model, tensors)
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    checkpointed = gradients(model, tensors)
    assert any(key.startswith("backbone.vision") or ".visual" in key for key in plain)
    torch.testing.assert_close(checkpointed, plain)


def test_the_class_claims_what_its_backbone_supports(model: UniMEModel, family: str, tmp_path: Path) -> None:
    loaded = UniMEModel(model.config)  # as `from_pretrained` builds it
    for name in ATTENTION_SUPPORT:
        assert getattr(loaded, name) == getattr(model, name) == getattr(type(model.backbone), name)
    if not model._supports_flex_attn:
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="does not support an attention implementation through .*flex_attention"):
            UniMEModel.from_pretrained(tmp_path, attn_implementation="flex_attention")
    assert model._supports_flex_attn == (not family.startswith("qwen"))


def test_every_layer_is_whole_for_fsdp(model: UniMEModel, family: str) -> None:
    layers = {type(layer).__name__ for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)}
    assert layers and layers <= set(model._no_split_modules)
    if family in ("smolvlm", "idefics3"):
        assert not any(name.endswith("Attention") for name in model._no_split_modules)


def test_every_part_uses_the_requested_attention_implementation(
    model: UniMEModel, folder: Path, processor: ProcessorMixin, tmp_path: Path
) -> None:
    eager = UniMEModel.from_backbone(folder, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    saved = UniMEModel.from_pretrained(tmp_path, attn_implementation="eager")
    for expected, loaded in (("sdpa", model), ("eager", eager), ("eager", saved)):
        parts = [part for part in loaded.modules() if isinstance(part, PreTrainedModel)]
        assert len(parts) >= 4  # UniME, the backbone, its vision tower and its language model
        assert {part.config._attn_implementation for part in parts} == {expected}
    np.testing.assert_allclose(eager.encode(ITEMS, processor), model.encode(ITEMS, processor), atol=1e-5)


def test_weights_keep_half_precision_and_embeddings_are_float32(
    model: UniMEModel, folder: Path, processor: ProcessorMixin, tmp_path: Path
) -> None:
    half = UniMEModel.from_backbone(folder, dtype=torch.bfloat16).eval()
    half.save_pretrained(tmp_path)
    for loaded in (half, UniMEModel.from_pretrained(tmp_path)):
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
        output = loaded(**one_batch(processor, IMAGE_ITEMS))
        assert output.embeddings.dtype == torch.float32
        torch.testing.assert_close(output.embeddings.norm(dim=-1), torch.ones(4))


def test_a_device_map_is_passed_through(model: UniMEModel, folder: Path, processor: ProcessorMixin) -> None:
    mapped = UniMEModel.from_backbone(folder, device_map="cpu").eval()
    assert mapped.device.type == "cpu"
    assert np.array_equal(mapped.encode(ITEMS, processor), model.encode(ITEMS, processor))


@pytest.mark.parametrize("offload", ["vision to disk", "language to disk", "all to memory"])
def test_offloaded_weights_give_the_same_embeddings(
    model: UniMEModel, folder: Path, processor: ProcessorMixin, offload: str, tmp_path: Path
) -> None:
    if model.config.backbone_config.model_type == "idefics3" and offload != "language to disk":
        pytest.skip("the Idefics3 of transformers moves its inputs to the device of its first weight")
    if offload == "all to memory":
        offloaded = cpu_offload(deepcopy(model), execution_device=torch.device("cpu"))
    else:
        decoder = model.backbone.get_decoder()
        language = {name for name, module in model.backbone.named_children() if module is decoder}
        parts = {name for name, _ in model.backbone.named_children()}
        on_disk = language if offload == "language to disk" else parts - language
        device_map = {part: "disk" if part in on_disk else "cpu" for part in parts}
        # accelerate cannot offload weights of the outermost module.
        device_map |= {name: "cpu" for name, _ in model.backbone.named_parameters() if "." not in name}
        offloaded = UniMEModel.from_backbone(folder, device_map=device_map, offload_folder=tmp_path / "disk").eval()
    assert any(weight.device.type == "meta" for weight in offloaded.parameters())
    assert offloaded.device == torch.device("cpu")
    assert offloaded.default_micro_batch_tokens == 1024
    texts = [{"text": f"text {i}", "instruction": "Find a sentence: " + "word " * 100} for i in range(9)]
    for items in (ITEMS, texts):  # the latter share a prefix
        np.testing.assert_allclose(offloaded.encode(items, processor), model.encode(items, processor), atol=1e-6)


def test_lora_adapters_train_and_merge(folder: Path, processor: ProcessorMixin) -> None:
    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(UniMEModel.from_backbone(folder), adapters)
    tensors = one_batch(processor, IMAGE_ITEMS)
    adapter_gradients = gradients(adapted, tensors)
    assert adapter_gradients and all("lora_" in key for key in adapter_gradients)
    assert all(gradient.abs().sum() > 0 for key, gradient in adapter_gradients.items() if "vision" not in key)
    expected = adapted.eval()(**tensors).embeddings
    merged = adapted.merge_and_unload()
    assert type(merged) is UniMEModel
    torch.testing.assert_close(merged(**tensors).embeddings, expected, atol=1e-5, rtol=0)


def test_a_saved_model_is_loaded_bit_for_bit(
    model: UniMEModel, folder: Path, processor: ProcessorMixin, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = UniMEModel.from_pretrained(tmp_path)
    expected, actual = model.state_dict(), loaded.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    # Copies, because the alignment of memory-mapped weights affects the rounding of one-row products on some CPUs.
    loaded, model = deepcopy(loaded), deepcopy(model)
    assert np.array_equal(loaded.encode(ITEMS, processor), model.encode(ITEMS, processor))


def test_a_configuration_gives_random_weights_in_the_requested_dtype(folder: Path, processor: ProcessorMixin) -> None:
    config = AutoConfig.from_pretrained(folder)
    random = UniMEModel.from_backbone(config, dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in random.parameters()} == {torch.bfloat16}
    assert random.backbone.get_decoder().config._attn_implementation == "eager"
    assert random.encode(ITEMS, processor).shape == (len(ITEMS), WIDTH)


def test_encode_returns_embeddings_in_the_order_of_the_items(model: UniMEModel, processor: ProcessorMixin) -> None:
    forwards = model.encode(ITEMS, processor, micro_batch_tokens=100)
    backwards = model.encode(ITEMS[::-1], processor, micro_batch_tokens=100)
    assert forwards.shape == (len(ITEMS), WIDTH) and forwards.dtype == np.float32
    np.testing.assert_allclose(backwards[::-1], forwards, atol=1e-5)


def test_encode_returns_one_vector_for_a_single_item(model: UniMEModel, processor: ProcessorMixin) -> None:
    for item in ITEMS[:3]:
        assert model.encode(item, processor).shape == (WIDTH,)
        np.testing.assert_allclose(model.encode([item], processor)[0], model.encode(item, processor), atol=1e-6)


def test_encode_returns_no_rows_for_no_items(model: UniMEModel, processor: ProcessorMixin) -> None:
    assert model.encode([], processor).shape == (0, WIDTH)


def test_encode_refuses_a_generator(model: UniMEModel, processor: ProcessorMixin) -> None:
    with pytest.raises(ValueError, match="item 0: expected a str, a PIL image, a list .* got generator"):
        model.encode((item for item in ITEMS), processor)


def test_encode_names_the_item_whose_embedding_is_not_finite(folder: Path, processor: ProcessorMixin) -> None:
    model = UniMEModel.from_backbone(folder, dtype=torch.float32)
    (*_, word) = processor.tokenizer("7", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[word] = torch.inf
    for items, item in [(["a", "7", "b"], 1), ("7", 0)]:
        with pytest.raises(ValueError, match=f"^item {item}: its embedding is not finite in float32: load the model"):
            model.encode(items, processor)


def test_encode_restores_the_training_mode_of_each_part(folder: Path, processor: ProcessorMixin) -> None:
    model = UniMEModel.from_backbone(folder).train()
    model.get_input_embeddings().eval()
    before = [part.training for part in model.modules()]
    model.encode(ITEMS, processor)
    with pytest.raises(ValueError, match="item 1"):
        model.encode(["a cat", None], processor)
    assert [part.training for part in model.modules()] == before and any(before) and not all(before)


def test_encode_processes_long_lists_in_windows(
    model: UniMEModel, processor: ProcessorMixin, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.encode(ITEMS, processor)
    monkeypatch.setattr(modeling_unime, "ENCODE_WINDOW_ITEMS", 3)
    np.testing.assert_allclose(model.encode(ITEMS, processor), expected, atol=1e-5)
    with pytest.raises(ValueError, match="item 7: 'text' must be a str"):
        model.encode([*ITEMS[:7], {"text": 3}], processor)


def test_equal_items_are_embedded_once(
    model: UniMEModel, processor: ProcessorMixin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_unime, "ENCODE_WINDOW_ITEMS", 5)  # equal items in several windows
    copies = [item.copy() if isinstance(item, Image.Image) else item for item in ITEMS]
    as_dict = {"text": ITEMS[0]}
    batch_sizes = []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: batch_sizes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    embeddings = model.encode([*ITEMS, *copies, as_dict], processor)
    hook.remove()
    assert sum(batch_sizes) == len(ITEMS)
    assert np.array_equal(embeddings[: len(ITEMS)], embeddings[len(ITEMS) : -1])
    assert np.array_equal(embeddings[0], embeddings[-1])
    np.testing.assert_allclose(embeddings[: len(ITEMS)], model.encode(ITEMS, processor), atol=1e-5)


def test_encode_uses_the_processor_saved_with_the_checkpoint(
    model: UniMEModel, processor: ProcessorMixin, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = UniMEModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(loaded.encode(ITEMS), model.encode(ITEMS, processor), atol=1e-6)
    with pytest.raises(ValueError, match=r"call encode\(items, processor\)"):
        UniMEModel(model.config).encode(ITEMS)


def test_forward_returns_the_requested_outputs(folder: Path, processor: ProcessorMixin) -> None:
    # Other attention implementations return no attention weights.
    model = UniMEModel.from_backbone(folder, attn_implementation="eager").eval()
    batch = one_batch(processor, ["a cat", "a longer text about a dog"])
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_attentions=True)
        plain = model(**batch)
        as_tuple = model(**batch, return_dict=False)
    layers = model.config.get_text_config().num_hidden_layers
    assert len(output.hidden_states) == layers + 1 and len(output.attentions) == layers
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert plain.hidden_states is None and plain.attentions is None
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 2
    assert torch.equal(as_tuple[0], plain.embeddings) and torch.equal(as_tuple[1], plain.last_hidden_state)
    model.config.output_hidden_states = model.config.output_attentions = True
    with torch.no_grad():
        by_default, as_tuple = model(**batch), model(**batch, return_dict=False)
    assert len(by_default.hidden_states) == layers + 1 and len(by_default.attentions) == layers
    assert len(as_tuple) == 4 and torch.equal(as_tuple[2][0], output.hidden_states[0])


def test_embeddings_of_tokens_take_the_place_of_their_ids(model: UniMEModel, processor: ProcessorMixin) -> None:
    batch = one_batch(processor, ["a cat", "a longer text about a dog"])
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    with torch.no_grad():
        both = model(inputs_embeds=embeds, **batch).embeddings
        one = model(inputs_embeds=embeds[1:]).embeddings  # the longer one has no padding
    expected = model.encode(["a cat", "a longer text about a dog"], processor)
    np.testing.assert_allclose(both, expected, atol=1e-5)
    np.testing.assert_allclose(one, expected[1:], atol=1e-5)


def test_embeddings_of_tokens_go_with_images(model: UniMEModel, processor: ProcessorMixin) -> None:
    batch = one_batch(processor, IMAGE_ITEMS[:2])
    with torch.no_grad():
        expected = model(**batch).embeddings
        embeds = model.get_input_embeddings()(batch.pop("input_ids"))
        actual = model(inputs_embeds=embeds, **batch).embeddings
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_forward_without_tokens_is_refused_in_one_sentence(model: UniMEModel) -> None:
    ids = torch.tensor([[5, 6]])
    embeds = model.get_input_embeddings()(ids)
    for inputs in (
        {},
        {"pixel_values": torch.zeros(1, 3, 8, 8)},
        {"input_ids": ids, "inputs_embeds": embeds},
        {"inputs_embeds": embeds, "item_ends": torch.tensor([1])},
    ):
        with pytest.raises(ValueError, match="^forward needs the tokens of rendered prompts, .* or call `encode`"):
            model(**inputs)


def test_the_decoder_and_the_encoder_are_those_of_the_backbone(model: UniMEModel) -> None:
    assert model.get_decoder() is model.backbone.get_decoder()
    assert model.get_encoder("image") is model.backbone.get_encoder("image") is not model.backbone
    assert model.get_encoder() is model  # as for any model without an encoder of texts


def test_a_pipeline_of_features_gives_the_embedding_of_a_rendered_prompt(
    model: UniMEModel, processor: ProcessorMixin
) -> None:
    features = pipeline("feature-extraction", model=model, tokenizer=processor.tokenizer)
    (prompt,) = processor.apply_chat_template([to_messages(to_item_dict("a cat"))], tokenize=False)
    np.testing.assert_allclose(features(prompt)[0], model.encode("a cat", processor), atol=1e-5)
