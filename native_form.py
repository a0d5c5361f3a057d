"""Native form of a checkpoint: the published names of the backbone's class, which serving engines know."""

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import set_zero3_state
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from .configuration_unime import SETTINGS_KEY
from .image_tokens_unime import square_of
from .processing_unime import to_item_dict, to_messages


INTERLEAVED_MROPE_FAMILIES = {"qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"}


class NoNativeFormError(ValueError):
    """A model that its backbone's class cannot reproduce."""


def save_native(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    directory: str | Path,
    state_dict: dict[str, Tensor] | None = None,
) -> type[PreTrainedModel]:
    """Write weights, configuration, processor and chat template for the native class of the backbone.

    Engines map the parameter names of the generative class: the backbone and a head. The head is left out, because
    embedding does not use it and engines skip it when they pool.

    Args:
        model ([`UniMEModel`]): The model, with LoRA adapters merged.
        processor (`ProcessorMixin`): Its processor, with its chat template.
        directory (`str` or `Path`): Folder to write to.
        state_dict (`dict`, *optional*, defaults to the model's own): Weights to save, for a sharded model.

    Returns:
        `type[PreTrainedModel]`: The native class.

    Raises:
        NoNativeFormError: The native class does not give the embeddings of the model; nothing is written.
    """
    template = complete_template(processor)
    native, name = _native_model(model, processor)
    # Of a model that `from_pretrained` did not make, transformers writes the towers under names that only it knows.
    native._weight_conversions = get_model_conversion_mapping(native, add_legacy=False)
    # Else only process 0 of all nodes would write, and a process on each node may have been asked to save.
    native.should_save_on_this_rank = model.should_save_on_this_rank
    weights = model.state_dict() if state_dict is None else state_dict
    native.save_pretrained(
        directory, state_dict={name + key.removeprefix("backbone"): weight for key, weight in weights.items()}
    )
    vision = getattr(native.config, "vision_config", None)
    if getattr(vision, "model_type", None) == "resnet":
        # It does not convert pixels to its dtype, and sentence-transformers passes float32: half-precision weights are
        # converted when they are loaded.
        native.config.dtype = "float32"
        native.config.save_pretrained(directory)
    processor.save_pretrained(directory)
    Path(directory, "chat_template.jinja").write_text(template)
    return type(native)


def _native_model(model: PreTrainedModel, processor: ProcessorMixin) -> tuple[PreTrainedModel, str]:
    """Return the native model without weights, and the name of the backbone in it."""
    if model.config.positions != "native" or square_of(processor) is not None:
        raise NoNativeFormError(
            "this model has sequential positions or reads images as squares, which its native class and serving "
            "engines cannot do"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise NoNativeFormError("the weights of this model are quantized, and engines quantize in their own ways")
    config = deepcopy(model.backbone.config)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise NoNativeFormError(f"transformers has no generative class for a backbone of type '{config.model_type}'")
    setattr(config, SETTINGS_KEY, {"pooling": model.config.pooling, "prompts": model.config.prompts})
    if model.config.matryoshka_dimensions:  # vLLM refuses `dimensions` without it
        config.matryoshka_dimensions = model.config.matryoshka_dimensions
    if config.model_type in INTERLEAVED_MROPE_FAMILIES and (rope := config.get_text_config().rope_parameters):
        rope.setdefault("mrope_interleaved", True)  # transformers always interleaves, vLLM asks the configuration
    # One process saves: under ZeRO-3, transformers would divide the new model among all and wait for the others.
    with torch.device("meta"), set_zero3_state():
        # It never runs, and a convolutional tower refuses the attention that the language model has.
        native = AutoModelForImageTextToText.from_config(config, dtype=model.dtype, attn_implementation="eager")
    names = [name for name, child in native.named_children() if type(child) is type(model.backbone)]
    if not names:
        raise NoNativeFormError(f"{type(native).__name__} does not contain a {type(model.backbone).__name__}")
    return native, names[0]


def complete_template(processor: ProcessorMixin) -> str:
    """Return the chat template with the beginning-of-sequence token that the tokenizer adds to a rendered text.

    transformers adds that token to a rendered text that lacks it, whereas serving engines tokenize a rendered
    conversation as it is. If the template writes the token, both read the same tokens.

    Raises:
        NoNativeFormError: The processor's tokenizer adds more than that one token.
        ValueError: The processor has no chat template.
    """
    if processor.chat_template is None:
        raise ValueError("this processor has no chat template: load it with `unime.processor_from_backbone`")
    tokenizer = processor.tokenizer
    (text,) = processor.apply_chat_template([to_messages(to_item_dict("a"))], tokenize=False)
    begin, bare = tokenizer.bos_token, tokenizer(text, add_special_tokens=False)["input_ids"]
    added = tokenizer(text)["input_ids"]
    if added == bare or (begin is not None and text.startswith(begin)):
        return processor.chat_template
    if added != [tokenizer.bos_token_id, *bare]:
        raise NoNativeFormError(
            f"the tokenizer adds {len(added) - len(bare)} special tokens to a prompt, not only one at its beginning, "
            "which a serving engine would leave out"
        )
    return f"{{{{- '{begin}' -}}}}\n{processor.chat_template}"
