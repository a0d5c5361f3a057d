"""Which weights a loss of embeddings can train: experts too, and no module that no embedding depends on."""

import re
from collections.abc import Iterator
from copy import copy

from peft import LoraConfig, PeftConfig
from torch.nn import ModuleList

from ..modeling_unime import UniMEModel


# Their projector reads `hidden_states[config.vision_feature_layer]` of the vision tower and not its output.
HIDDEN_STATE_FAMILIES = {"llava", "llava_next", "llava_onevision", "phi3_v"}
EXPERT_PARTS = {"gate_up_proj": ("gate_proj", "up_proj")}  # names of the layers that a fused tensor replaces


def modules_without_gradient(model: UniMEModel) -> list[str]:
    """Return the full names of the modules that no embedding depends on, whatever the batch.

    LLaVA's projector reads a hidden state of the vision tower, by default that before the last layer. The layers
    behind it, the final norm and the pooling head compute what nothing reads.

    Args:
        model ([`UniMEModel`]): The model.
    """
    config = model.config.backbone_config
    if config.model_type not in HIDDEN_STATE_FAMILIES:
        return []
    layers = config.vision_feature_layer
    total = config.vision_config.num_hidden_layers
    # Hidden state 0 is the input of the first layer, hidden state n the output of the n-th.
    used = max(layer % (total + 1) for layer in ([layers] if isinstance(layers, int) else layers))
    prefix = "backbone.vision_tower"
    names = []
    for name, module in model.get_submodule(prefix).named_modules(prefix=prefix):
        if isinstance(module, ModuleList) and len(module) == total:
            names += [f"{name}.{index}" for index in range(used, total)]
        elif name in (f"{prefix}.post_layernorm", f"{prefix}.head"):
            names.append(name)
    return names


def exclude(peft_config: PeftConfig, pattern: str) -> PeftConfig:
    """Return a copy of an adapter configuration that also excludes the modules whose full name matches a pattern.

    Args:
        peft_config ([`~peft.PeftConfig`]): The configuration.
        pattern (`str`): Regular expression that a full name must match.
    """
    excluded = peft_config.exclude_modules or []
    # PEFT reads a string as a regular expression of full names, a list as names or their endings.
    patterns = [excluded] if isinstance(excluded, str) else [rf"(?:.*\.)?{re.escape(name)}" for name in excluded]
    copied = copy(peft_config)
    copied.exclude_modules = "|".join([pattern, *patterns])
    return copied


def restrict_to(peft_config: PeftConfig, prefix: str) -> PeftConfig:
    """Return a copy of an adapter configuration that excludes every module outside `prefix`.

    Args:
        peft_config ([`~peft.PeftConfig`]): The configuration, for instance with `target_modules="all-linear"`.
        prefix (`str`): Full name of the module that may have adapters inside, such as `"backbone.language_model"`.
    """
    return exclude(peft_config, rf"(?!{re.escape(prefix)}\.).*")


def fit_to_model(peft_config: PeftConfig, model: UniMEModel) -> PeftConfig:
    """Return an adapter configuration with an adapter wherever it can be trained, and nowhere else.

    Modules without gradient get none. In a mixture of experts, transformers stores the weights of all experts in one
    tensor, which is no linear layer: `target_modules="all-linear"` would silently leave them out.

    Args:
        peft_config ([`~peft.PeftConfig`]): The requested configuration.
        model ([`UniMEModel`]): The model.

    Raises:
        ValueError: The configuration names layers of experts that exist as fused tensors only, or would train these
            with dropout or otherwise than by LoRA, which PEFT cannot do.
    """
    for name in modules_without_gradient(model):
        peft_config = exclude(peft_config, rf"{re.escape(name)}(\..*)?")
    experts = list(_fused_experts(model))
    if not experts:
        return peft_config
    if not isinstance(peft_config, LoraConfig):
        raise ValueError("the experts of this model are fused tensors, which only LoRA can train: use a LoraConfig")
    if peft_config.target_parameters:
        return peft_config
    targets = peft_config.target_modules
    endings = sorted({".".join(name.split(".")[-2:]) for name in experts})
    if targets == "all-linear":
        if peft_config.lora_dropout:
            raise ValueError(
                f"adapters of experts ({', '.join(endings)}) cannot have dropout: set lora_dropout to 0, or list the "
                "lora_target_modules without them"
            )
        peft_config = copy(peft_config)
        peft_config.target_parameters = endings
        return peft_config
    for name in experts:
        parent, _, part = name.rpartition(".")
        for candidate in (name, *(f"{parent}.{layer}" for layer in EXPERT_PARTS.get(part, ()))):
            if _is_target(candidate, targets):
                raise ValueError(
                    f"lora_target_modules names {candidate.rpartition('.')[2]}, but the experts of this model are "
                    f"fused tensors and no layers: set lora_target_parameters to {endings} to train them, or remove "
                    "it from the list"
                )
    return peft_config


def _fused_experts(model: UniMEModel) -> Iterator[str]:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and name.split(".")[-2] == "experts":
            yield name


def _is_target(name: str, targets: str | list[str] | set[str] | None) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets or ())
