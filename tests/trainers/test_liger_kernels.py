"""`use_liger_kernel` makes norms and MLPs call Liger's kernels, and changes neither embeddings nor gradients.

Liger's kernels need a GPU: functions in PyTorch that follow them stand in.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import TINY_MODELS
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import ProcessorMixin

from unime import UniMEModel, micro_batches, processor_from_backbone
from unime.extras import MissingExtraError
from unime.trainers import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.activation_checkpointing import calling, checkpointed_layers, checkpointing_function
from unime.trainers.liger_kernels import bind_kernels, use_liger_kernels
from unime.trainers.pass_planning import Checkpointing


GPU = torch.device("cuda")


class SwiGLU(torch.autograd.Function):
    """Like Liger's, its backward pass writes the gradients over what was saved, unseen by autograd."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            inputs = gate.detach().clone().requires_grad_(), up.detach().clone().requires_grad_()
            product = silu(inputs[0]) * inputs[1]
        for saved, value in zip((gate, up), torch.autograd.grad(product, inputs, gradient), strict=True):
            saved.data.copy_(value)
        return gate, up


def liger_swiglu(a: Tensor, b: Tensor) -> Tensor:
    return SwiGLU.apply(a, b)


def liger_rms_norm(
    X: Tensor, W: Tensor, eps: float, offset: float = 0.0, casting_mode: str = "llama", in_place: bool = True
) -> Tensor:
    assert (offset, casting_mode, in_place) == (0.0, "llama", False)
    normalized = X.float() * torch.rsqrt(X.float().pow(2).mean(-1, keepdim=True) + eps)
    return W * normalized.to(X.dtype)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.functional"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    module.liger_swiglu, module.liger_rms_norm = liger_swiglu, liger_rms_norm


def bound(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if "forward" in vars(module)}


def named(decoder: nn.Module, *names: str) -> set[str]:
    """Return the modules of a decoder that have one of the names, as in `layers.0.mlp`."""
    return {name for name, _ in decoder.named_modules() if name.rpartition(".")[2] in names}


def gradients(model: PeftModel, tensors: dict[str, Tensor], way: Checkpointing | None = None) -> dict[str, Tensor]:
    layers = checkpointed_layers(model.get_base_model().backbone) if way is not None else []
    torch.manual_seed(3)
    model.zero_grad()
    with calling({layer: checkpointing_function(layer, way) for layer in layers}):
        embeddings = model(**tensors).embeddings
    (embeddings @ embeddings.T).exp().sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None} | {
        "embeddings": embeddings.detach()
    }


@pytest.mark.parametrize("name", TINY_MODELS)
def test_norms_and_mlps_of_the_language_model_call_the_kernels_in_every_family(
    name: str, liger: None, tiny_model: Callable[[str], Path], make_image: Callable
):
    folder = str(tiny_model(name))
    items = [{"image": make_image(0), "text": "a text beside"}, {"image": make_image(1), "text": "and one more"}]
    ((_, tensors),) = micro_batches(processor_from_backbone(folder), items, 10**6)

    def adapted(with_liger: bool) -> PeftModel:
        embedder = UniMEModel.from_backbone(folder)
        for weight_name, weight in embedder.named_parameters():
            if "norm" in weight_name:
                weight.data += torch.linspace(-0.3, 0.3, weight.numel()).view_as(weight)
        names = list(embedder.state_dict())
        if with_liger:
            use_liger_kernels(embedder.backbone, None, GPU)
            decoder = embedder.backbone.get_decoder()
            norms = named(decoder, "norm", "input_layernorm", "post_attention_layernorm", "q_norm", "k_norm")
            assert len(norms) == (9 if name == "qwen3-vl" else 5)
            assert bound(decoder) == norms | named(decoder, "mlp")
            assert len(bound(embedder)) == len(norms) + 2  # none of the vision tower
        assert list(embedder.state_dict()) == names
        torch.manual_seed(0)
        model = get_peft_model(embedder, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        model.get_base_model().activation_checkpointing_enable()
        return model.train()

    plain, fused = (gradients(adapted(with_liger), tensors) for with_liger in (False, True))
    gate = "gate_up_proj" if name == "phi3-v" else "gate_proj"
    assert sum(f"mlp.{gate}.lora_A" in weight for weight in plain) >= 2
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"]])
def test_the_backward_pass_may_overwrite_gate_and_up_whatever_the_layers_keep(
    targets: list[str], make_model: Callable, processor: ProcessorMixin, make_image: Callable
):
    items = [{"image": make_image(0), "text": "a text beside"}, {"image": make_image(1), "text": "and one more"}]
    ((_, tensors),) = micro_batches(processor, items, 10**6)
    torch.manual_seed(0)
    adapter = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, lora_dropout=0.1)
    model = get_peft_model(make_model(), adapter).train()
    embedder = model.get_base_model()
    plain = gradients(model, tensors)
    bind_kernels(embedder.backbone, None, liger_swiglu)  # a model that has its adapters
    embedder.activation_checkpointing_enable()
    for way in Checkpointing:
        torch.testing.assert_close(gradients(model, tensors, way), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kernel", "names"), [("swiglu", ["mlp"]), ("rms_norm", ["norm", "input_layernorm"])])
def test_the_config_switches_a_kernel_off(kernel: str, names: list[str], liger: None, make_model: Callable):
    decoder = (model := make_model()).backbone.get_decoder()
    use_liger_kernels(model.backbone, {kernel: False}, GPU)
    assert bound(decoder) and not bound(decoder) & named(decoder, *names)


def test_a_cpu_is_refused(make_model: Callable, processor: ProcessorMixin, rows: list, tmp_path: Path):
    args = ContrastiveConfig(str(tmp_path), use_cpu=True, use_liger_kernel=True)
    with pytest.raises(ValueError, match="^use_liger_kernel needs a GPU .* cannot run on 'cpu': set it to false$"):
        ContrastiveTrainer(make_model(), args, rows, processing_class=processor)


def test_a_missing_library_is_named(make_model: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(MissingExtraError, match="^this needs the extra `liger` "):
        use_liger_kernels(make_model().backbone, None, GPU)


@pytest.mark.parametrize("change", [{"model_type": "gemma"}, {"hidden_act": "gelu"}])
def test_other_language_models_are_refused(change: dict[str, str], make_model: Callable):
    backbone = make_model().backbone
    for name, value in change.items():
        setattr(backbone.get_decoder().config, name, value)
    with pytest.raises(ValueError, match="^use_liger_kernel supports .* and not this one of type .*: set it to false"):
        bind_kernels(backbone, liger_rms_norm, liger_swiglu)
    assert not bound(backbone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_liger_kernel": True, "liger_kernel_config": {"rope": True}}, "cannot hold rope: remove"),
        ({"liger_kernel_config": {"swiglu": False}}, "has no effect without use_liger_kernel: set"),
    ],
)
def test_a_config_without_effect_is_refused(options: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"^liger_kernel_config .*{message}"):
        ContrastiveConfig(str(tmp_path), use_cpu=True, **options)
