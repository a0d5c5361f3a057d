"""Tiny random models and processors of any image-text architecture, from transformers' classes and their defaults."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tiny_tokenizers import tokenizer
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.image_utils import SizeDict
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING


# What a configuration has of these gets these values; all other values are its defaults, the size of images included.
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "n_embd", "out_hidden_size", "projection_dim"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size_mlp"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth", "encoder_layers", "decoder_layers", "n_layer"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "n_head", "num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_topk", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_num_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "qk_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "hidden_size_per_layer_input", "index_head_dim"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_nextn_predict_layers"), 1),
    "deepstack_visual_indexes": [0],
    "max_position_embeddings": 8192,
}
MROPE_SECTION = [2, 1, 1]  # half of `head_dim`, on three axes
MAX_MILLIONS = 20
MAX_DETAIL_CHARACTERS = 200
NO_PROCESSOR = "Transformers has no complete processor for it"
NEEDS_TIMM = "It needs timm, which is not installed"
NOT_SMALL = "No small model can be built from the defaults of its classes"
INITIALIZER_RANGE = 0.3
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
NOT_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token", "add_eos_token")
# Processors that real checkpoints name in their files, and values without which small sizes do not fit together.
PROCESSORS = {"fast_vlm": "LlavaProcessor", "glm_ocr": "Glm46VProcessor", "glmga": "Glm46VProcessor"}
GLM_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
HYBRID = {"text_config": {"num_hidden_layers": 4}}  # the fourth layer attends to all tokens
OVERRIDES: dict[str, dict[str, Any]] = {
    "qwen3_5": HYBRID | {"vision_config": {"patch_size": 8}},
    **dict.fromkeys(("qwen3_5_moe", "qwen4_exp"), HYBRID),
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), HYBRID | {"image_token_id": "<|image_token|>"}),
    "kimi_k25": {"text_config": {"num_key_value_heads": 4}, "projection_hidden_size": 32},
    "mistral_large4": {"text_config": {"num_key_value_heads": 4}},
    "lfm3_vl": {"text_config": {"num_hidden_layers": 3}},  # the third layer attends to all tokens
    "llava_next_video": {"vision_config": {"image_size": 336, "patch_size": 14}},
    "paligemma": {"vision_config": {"image_size": 64, "patch_size": 8}},
    "step3p7": {"text_config": {"sliding_window": 4096}},
    "video_llava": {"vision_config": {"image_size": 224, "patch_size": 14}},
    "gemma4": {
        "vision_config": {
            "model_type": "gemma4_vision",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
        }
    },
    "aya_vision": {"image_token_index": "<|IMG_PATCH|>", "vision_config": {"image_size": 364, "patch_size": 14}},
    "cohere2_vision": {"vision_config": {"image_size": 128, "patch_size": 8}},
    "aria": {"vision_config": {"image_size": 980, "patch_size": 14}},
    "ovis2": {"image_token_id": "<IMG_ATOM>"},
    "paddleocr_vl": {"text_config": {"rope_parameters": GLM_ROPE}},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "deepseek_vl": {"vision_config": {"image_size": 384, "patch_size": 16}},
    # Published ones have a tower of timm. The processor is given the pixels per token.
    "fast_vlm": {
        "patch_size": 8,
        "vision_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 32],
            "depths": [1, 1],
            "layer_type": "basic",
            "hidden_size": 32,
            "image_size": 64,
        },
    },
    "gemma3": {"vision_config": {"image_size": 64, "patch_size": 8}, "mm_tokens_per_image": 16},
    "shieldgemma2": {"vision_config": {"image_size": 64, "patch_size": 8}, "mm_tokens_per_image": 16},
    **dict.fromkeys(("glm46v", "glm4v", "glm_ocr", "glmga"), {"text_config": {"rope_parameters": GLM_ROPE}}),
    "glm4v_moe": {"text_config": {"rope_parameters": GLM_ROPE | {"mrope_section": [1, 1, 0]}}},
    "inkling2": {"vision_config": {"text_hidden_size": 32}},
    "inkling2_loop": {"vision_config": {"text_hidden_size": 32}},
    "internvl": {"vision_config": {"image_size": [64, 64], "patch_size": [8, 8]}, "image_seq_length": 16},
    "mllama": {
        "text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
        "vision_config": {
            "image_size": 64,
            "patch_size": 8,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
        },
    },
}
IMAGE_PROCESSOR_ARGUMENTS = {"paligemma": {"image_seq_length": 64}}
LITERAL = re.compile(r"""["'](<[^<>\s"']{2,40}>|\[[A-Z_]{3,20}\])["']""")
CONSTANT = re.compile(r"""_TOKEN = ["']([^"'\s]+)["']""")
TOKEN_ATTRIBUTE = re.compile(r"""tokenizer(?:\.|, ["'])(\w+_token)(?:_id)?\b""")
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- message['role'] ~ ': ' -}}
{%- for part in message['content'] -%}
{{- 'IMAGE' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{{- '\\n' -}}
{%- endfor -%}
{{- 'assistant:' if add_generation_prompt -}}
"""


MAPPINGS = {
    "image_processor": IMAGE_PROCESSOR_MAPPING,
    "video_processor": VIDEO_PROCESSOR_MAPPING,
    "feature_extractor": FEATURE_EXTRACTOR_MAPPING,
}


class NoTinyModelError(Exception):
    """A tiny model cannot be built from transformers' classes alone.

    Args:
        reason: One of the reasons that many architectures share.
        detail: What is wrong with this one.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def tiny_architecture(model_type: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build a tiny model and its processor.

    Raises:
        NoTinyModelError: The classes cannot be built small from their defaults.
    """
    config_class = CONFIG_MAPPING[model_type]
    overrides = OVERRIDES.get(model_type, {})
    try:
        default = config_class()
        numbers = {name: value for name, value in overrides.items() if not isinstance(value, str)}
        geometry = config_class(**merged(size_arguments(default, None), numbers))
        processor = tiny_processor(model_type, geometry)
        config = config_class(**merged(size_arguments(default, processor), with_tokens(overrides, processor)))
        with torch.device("meta"):
            weights = AutoModelForImageTextToText.from_config(config).parameters()
        millions = sum(weight.numel() for weight in weights) / 1e6
        if millions > MAX_MILLIONS:
            raise NoTinyModelError(NOT_SMALL, f"with small sizes it still has {millions:.0f} million weights")
        model = AutoModelForImageTextToText.from_config(config)
    except NoTinyModelError:
        raise
    except ImportError as error:
        if "timm" in str(error):
            raise NoTinyModelError(NEEDS_TIMM) from error
        raise NoTinyModelError(NOT_SMALL, one_line(error)) from error
    except Exception as error:
        raise NoTinyModelError(NOT_SMALL, one_line(error)) from error
    for parameter in model.parameters():
        if parameter.ndim > 1 or not parameter.any():  # a gate that is closed would hide images
            torch.nn.init.normal_(parameter, std=INITIALIZER_RANGE)
    return model, processor


def one_line(error: Exception) -> str:
    """Return the first line of an error with its type."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_DETAIL_CHARACTERS]}"


def with_tokens(overrides: dict[str, Any], processor: ProcessorMixin) -> dict[str, Any]:
    """Return overrides in which the names of tokens are their numbers."""
    ids = processor.tokenizer.get_added_vocab()
    return {name: ids[value] if isinstance(value, str) else value for name, value in overrides.items()}


def merged(arguments: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return nested arguments, of which some are replaced."""
    replaced = {
        name: merged(arguments.get(name, {}), value) if name.endswith("_config") else value
        for name, value in overrides.items()
    }
    return arguments | replaced


def size_arguments(config: PreTrainedConfig, processor: ProcessorMixin | None) -> dict[str, Any]:
    """Return the arguments that make a configuration small, with the tokens of a processor if there is one."""
    values = vars(config)
    arguments: dict[str, Any] = {}
    vocabulary = {} if processor is None else {"vocab_size": len(processor.tokenizer)}
    for name, value in (SIZES | vocabulary).items():
        if isinstance(values.get(name), type(value)) and not isinstance(values[name], bool):
            arguments[name] = value
    for name, value in values.items():
        if processor is not None and name.endswith(("_token_id", "_token_index")) and value is not None:
            token = token_id(processor, re.sub("_(id|index)$", "", name))
            arguments[name] = [token] if isinstance(value, list) else token
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope:
        arguments["rope_parameters"] = rope | {"mrope_section": MROPE_SECTION}
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            arguments[name] = {"model_type": part.model_type} | size_arguments(part, processor)
    return arguments


def token_id(processor: ProcessorMixin, name: str) -> int:
    """Return the id of the special token that a configuration calls `name`, such as `vision_start_token`."""
    for owner in (processor.tokenizer, processor):  # Gemma's processor calls the start of an image so
        token = getattr(owner, name, None)
        if isinstance(token, str):
            return processor.tokenizer.convert_tokens_to_ids(token)
    words = name.removesuffix("_token")
    for token, index in processor.tokenizer.get_added_vocab().items():
        if re.sub(r"\W+", "_", token).strip("_").lower() == words:
            return index
    return 0


def tiny_tokenizer(processor_class: type[ProcessorMixin]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the special tokens that the source of a processor names."""
    source = inspect.getsource(inspect.getmodule(processor_class))
    named = {name: f"<|{name}|>" for name in TOKEN_ATTRIBUTE.findall(source) if name not in NOT_NAMED}
    for name in named:  # `tokenizer.image_token if hasattr(tokenizer, "image_token") else "<image>"`
        fallback = re.search(rf"tokenizer\.{name}\b[^\n]* else [\"']([^\"'\s]+)[\"']", source)
        named[name] = fallback[1] if fallback else named[name]
    special = list(dict.fromkeys([*SPECIAL, *LITERAL.findall(source), *CONSTANT.findall(source), *named.values()]))
    backend = tokenizer(special, pad="<pad>", eos="</s>", bos="<s>").backend_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        extra_special_tokens=named,
    )


def tiny_processor(model_type: str, config: PreTrainedConfig) -> ProcessorMixin:
    """Return a processor with a small tokenizer, and other parts with defaults and the sizes of the vision tower."""
    name = PROCESSOR_MAPPING_NAMES.get(model_type) or PROCESSORS.get(model_type)
    if name is None:
        raise NoTinyModelError(NO_PROCESSOR)
    processor_class = getattr(transformers, name)
    parts: dict[str, Any] = {}
    for part in processor_class.get_attributes():
        if part == "tokenizer":
            parts[part] = tiny_tokenizer(processor_class)
        elif part in MAPPINGS:
            arguments = patch_arguments(config)
            if part == "image_processor":
                arguments |= IMAGE_PROCESSOR_ARGUMENTS.get(model_type, {})
            parts[part] = part_class(part, name, type(config))(**arguments)
        else:
            raise NoTinyModelError(NO_PROCESSOR, f"no default {part.replace('_', ' ')}")
    parameters = inspect.signature(processor_class.__init__).parameters
    for name, parameter in parameters.items():
        # Such as `patch_size`, which is saved with a real processor.
        if (parameter.default is None or name == "spatial_merge_size") and name not in parts:
            value = next((vars(part)[name] for part in (config, *parts_of(config)) if name in vars(part)), None)
            if value is not None:
                parts[name] = value
    for name in ("image_seq_length", "mm_tokens_per_image"):
        if "image_seq_length" in parameters and name in vars(config):
            parts["image_seq_length"] = vars(config)[name]
    if "num_additional_image_tokens" in parameters:
        strategy = parts.setdefault("vision_feature_select_strategy", "default")
        parts["num_additional_image_tokens"] = int(strategy == "default")  # CLIP's class token, which is left out
    processor = processor_class(**parts)
    fit_images(processor, config)
    tokens = vars(processor)
    image_token = tokens.get("image_placeholder_token") or tokens.get("image_token")
    if isinstance(image_token, str):
        processor.chat_template = CHAT_TEMPLATE.replace("IMAGE", image_token)
    return processor


def part_class(part: str, processor_name: str, config_class: type[PreTrainedConfig]) -> Callable[..., Any]:
    """Return the class of a part of a processor; model types with the same processor share it."""
    mapping = MAPPINGS[part]
    types = [key for key, name in PROCESSOR_MAPPING_NAMES.items() if name == processor_name]
    for candidate in (config_class, *(CONFIG_MAPPING[key] for key in types if key in CONFIG_MAPPING)):
        if candidate in mapping:
            classes = mapping[candidate]
            return (classes.get("torchvision") or classes["pil"]) if isinstance(classes, dict) else classes
    raise NoTinyModelError(NO_PROCESSOR, f"no default {part.replace('_', ' ')}")


def patch_arguments(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the patch and merge sizes of a vision tower as image processors of the Qwen-VL kind call them."""
    vision = next((vars(part) for part in parts_of(config) if "patch_size" in vars(part)), {})
    names = {
        "patch_size": "patch_size",
        "temporal_patch_size": "temporal_patch_size",
        "spatial_merge_size": "merge_size",
    }
    return {argument: vision[name] for name, argument in names.items() if isinstance(vision.get(name), int)}


def fit_images(processor: ProcessorMixin, config: PreTrainedConfig) -> None:
    """Give an image processor of fixed size the size that the vision tower reads."""
    edge = next((vars(part)["image_size"] for part in parts_of(config) if "image_size" in vars(part)), None)
    edge = edge[0] if isinstance(edge, (list, tuple)) else edge
    image_processor = processor.image_processor
    if not isinstance(edge, int) or image_processor.size is None:
        return
    given = {name for name, value in dict(image_processor.size).items() if value is not None}
    if given == {"height", "width"}:
        image_processor.size = SizeDict(height=edge, width=edge)
    elif given == {"shortest_edge"}:
        image_processor.size = SizeDict(shortest_edge=edge)
        image_processor.crop_size = SizeDict(height=edge, width=edge)


def parts_of(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Return the configurations in a configuration."""
    return [part for name in config.sub_configs if isinstance(part := getattr(config, name, None), PreTrainedConfig)]
