"""What can never get a gradient is named from the configuration, and compared with the gradients of a real batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoConfig, ProcessorMixin, Qwen3VLMoeConfig

from unime import UniMEModel, load_model, processor_from_backbone, save_checkpoint
from unime.batching_unime import micro_batches
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, load_adapter, merge_checkpoint
from unime.trainers.trained_weights import fit_to_model, modules_without_gradient


NOISE = Image.effect_noise((48, 24), 50).convert("RGB")
ITEMS = [{"text": "a text"}, {"image": NOISE}, {"text": "both", "image": NOISE.rotate(90, expand=True)}]


def backpropagate(model: torch.nn.Module, processor: ProcessorMixin) -> None:
    """Add the gradient of a function of every dimension of every embedding of texts and images."""
    for _, tensors in micro_batches(processor, ITEMS, 200):
        embeddings = model(**tensors).embeddings
        embeddings.mul(torch.linspace(-1, 1, embeddings.shape[1])).sum().backward()


def check_gradients(model: UniMEModel, processor: ProcessorMixin) -> list[str]:
    backpropagate(model.train(), processor)
    names = modules_without_gradient(model)
    predicted = {name for name, _ in model.named_parameters() if any(name.startswith(f"{n}.") for n in names)}
    assert predicted == {name for name, parameter in model.named_parameters() if parameter.grad is None}
    return names


def test_modules_without_gradient_are_those_that_a_batch_gives_none(family: str, tiny_model: Callable[[str], Path]):
    names = check_gradients(*load_model(str(tiny_model(family))))
    assert bool(names) == family.startswith(("llava", "phi3"))


@pytest.mark.parametrize("layers", [-1, 1, [0, 1], [-3, -2]])
@pytest.mark.parametrize("name", ["llava", "llava-onevision"])
def test_modules_without_gradient_follow_the_vision_feature_layer(
    name: str, layers: int | list[int], tiny_model: Callable[[str], Path]
):
    config = AutoConfig.from_pretrained(tiny_model(name))
    config.vision_feature_layer = layers
    config.vision_config.vision_use_head = name == "llava-onevision"  # SigLIP's pooling head
    processor = processor_from_backbone(tiny_model(name))
    check_gradients(UniMEModel.from_backbone(config), processor)


def test_they_get_no_adapter_and_are_frozen_in_full_training(
    tiny_model: Callable[[str], Path], llava: ProcessorMixin, tmp_path: Path
):
    rows = [{"query": "a", "positive": "b", "negatives": [], "task": "", "label": None}] * 4
    args = ContrastiveConfig(str(tmp_path), per_device_train_batch_size=2, use_cpu=True)
    for peft_config in (None, LoraConfig(target_modules="all-linear", init_lora_weights=False)):
        model = UniMEModel.from_backbone(str(tiny_model("llava")))
        trainer = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=llava, peft_config=peft_config)
        backpropagate(trainer.model, llava)
        trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        assert trained and all(parameter.grad is not None for parameter in trained)


@pytest.fixture
def mixture(tiny_model: Callable[[str], Path], tmp_path: Path) -> tuple[str, ProcessorMixin]:
    """Return a checkpoint with a mixture of experts."""
    config = AutoConfig.from_pretrained(tiny_model("qwen3-vl")).to_dict()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text_config = config["text_config"] | experts | {"model_type": "qwen3_vl_moe_text"}
    vision_config = config["vision_config"] | {"model_type": "qwen3_vl_moe_vision"}
    mixture = Qwen3VLMoeConfig(
        text_config=text_config, vision_config=vision_config, **{name: config[name] for name in names}
    )
    torch.manual_seed(0)
    processor = processor_from_backbone(tiny_model("qwen3-vl"))
    model = UniMEModel.from_backbone(mixture).eval()
    return str(save_checkpoint(model, processor, tmp_path / "mixture")), processor


def test_experts_are_trained_saved_and_merged(mixture: tuple[str, ProcessorMixin], tmp_path: Path):
    folder, processor = mixture
    rows = [
        {"query": f"query {i}", "positive": f"answer {i}", "negatives": [], "task": "", "label": None}
        for i in range(8)
    ]
    args = ContrastiveConfig(
        str(tmp_path), per_device_train_batch_size=8, max_steps=2, learning_rate=1e-2, use_cpu=True, report_to="none"
    )
    lora = LoraConfig(r=2, target_modules="all-linear")
    model = load_model(folder)[0]
    trainer = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor, peft_config=lora)
    trainer.train()
    trained = {name for name, parameter in trainer.model.named_parameters() if "lora_B" in name and parameter.any()}
    assert len([name for name in trained if ".experts." in name]) == 4  # two tensors in two layers

    trainer.save_model(str(tmp_path / "adapter"))
    expected = trainer.model.get_base_model().encode(ITEMS, processor)
    adapted = load_adapter(load_model(folder)[0], tmp_path / "adapter").get_base_model()
    np.testing.assert_allclose(adapted.encode(ITEMS, processor), expected, atol=1e-5)
    merge_checkpoint(folder, tmp_path / "adapter", tmp_path / "merged")
    merged, _ = load_model(str(tmp_path / "merged"))
    np.testing.assert_allclose(merged.encode(ITEMS, processor), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": "all-linear", "lora_dropout": 0.1}, "cannot have dropout: set lora_dropout to 0"),
        ({"target_modules": ["q_proj", "up_proj"]}, r"names up_proj, but .* set lora_target_parameters to \['experts"),
        ({"target_modules": r".*\.(q|down)_proj"}, "names down_proj, but the experts of this model are fused"),
    ],
)
def test_a_configuration_that_would_skip_the_experts_is_refused(
    options: dict, message: str, mixture: tuple[str, ProcessorMixin]
):
    with pytest.raises(ValueError, match=message):
        fit_to_model(LoraConfig(**options), load_model(mixture[0])[0])


def test_experts_may_be_left_out_or_named(mixture: tuple[str, ProcessorMixin]):
    for options, names_experts in (
        ({"target_modules": ["q_proj"]}, False),
        ({"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}, True),
    ):
        model = load_model(mixture[0])[0]
        adapted = get_peft_model(model, fit_to_model(LoraConfig(**options), model))
        assert any(".experts." in name and "lora_" in name for name, _ in adapted.named_parameters()) == names_experts
