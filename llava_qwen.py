"""LLaVA-OneVision checkpoints in the format of LLaVA-NeXT's code (`llava_qwen`), such as LLaVE's.

The architecture is that of `llava_onevision` in transformers. The configuration is read as one of that type, the
weights are renamed as by transformers' conversion script, and the processor is built around the tokenizer.
"""

import re
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedConfig,
    Qwen2Config,
)


ARCHITECTURE = "LlavaQwenForCausalLM"
VISION_TOWER = "google/siglip-so400m-patch14-384"
# The published tower lacks the last of 27 layers, whose output LLaVA-OneVision does not use.
VISION_CONFIG: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 26,
    "patch_size": 14,
    "vision_use_head": False,
}
# From the names of the weights to those of `LlavaOnevisionModel`.
KEY_MAPPING = {
    r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?": "vision_tower.",
    r"^model\.mm_projector\.0\.": "multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "multi_modal_projector.linear_2.",
    r"^model\.image_newline$": "image_newline",
    r"^model\.(layers|embed_tokens|norm)\.": r"language_model.\1.",
}


class LlavaQwenConfig(LlavaOnevisionConfig):
    """Reads the configuration of a `llava_qwen` checkpoint as a [`~transformers.LlavaOnevisionConfig`]."""

    model_type = "llava_qwen"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the configuration.

        Raises:
            ValueError: The vision tower or the projector is another one than in LLaVA-OneVision.
        """
        tower, projector = config_dict.get("mm_vision_tower"), config_dict.get("mm_projector_type")
        if tower != VISION_TOWER or projector != "mlp2x_gelu":
            raise ValueError(
                f"this llava_qwen checkpoint has the vision tower {tower} and the projector {projector}, but only "
                f"{VISION_TOWER} with mlp2x_gelu can be read as llava_onevision: use another checkpoint"
            )
        text = {name: value for name, value in config_dict.items() if name in Qwen2Config().to_dict()}
        converted = {
            "architectures": [ARCHITECTURE],
            "text_config": text | {"model_type": "qwen2", "architectures": None},
            "vision_config": VISION_CONFIG,
            "image_grid_pinpoints": _grids(config_dict["image_grid_pinpoints"]),
            "vision_aspect_ratio": config_dict.get("image_aspect_ratio", "anyres_max_9"),
            "tie_word_embeddings": config_dict.get("tie_word_embeddings", False),
            "dtype": config_dict.get("dtype", config_dict.get("torch_dtype")),
        }
        if config_dict.get("image_token_index", 0) > 0:  # in LLaVA-NeXT's code an image is the token -200
            converted["image_token_index"] = config_dict["image_token_index"]
        return LlavaOnevisionConfig.from_dict(converted, **kwargs)


def _grids(pinpoints: list[list[int]] | str) -> list[list[int]]:
    """Return the sizes in pixels that "(1x1),...,(2x2)" stands for, or a list of them."""
    if not isinstance(pinpoints, str):
        return [list(map(int, size)) for size in pinpoints]
    pairs = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+)\s*x\s*(\d+)\)", pinpoints)]
    edge = VISION_CONFIG["image_size"]
    (first_rows, first_columns), (last_rows, last_columns) = pairs[0], pairs[-1]
    rows, columns = range(first_rows, last_rows + 1), range(first_columns, last_columns + 1)
    return [[edge * row, edge * column] for row in rows for column in columns]


def is_llava_qwen(config: PreTrainedConfig) -> bool:
    """Return whether a configuration was read from a `llava_qwen` checkpoint."""
    return config.architectures == [ARCHITECTURE]


def llava_qwen_processor(path: str, config: LlavaOnevisionConfig) -> LlavaOnevisionProcessor:
    """Build the processor of a `llava_qwen` checkpoint, which has a tokenizer only.

    Args:
        path (`str`): Folder or Hub id.
        config (`LlavaOnevisionConfig`): Its configuration.

    Raises:
        ValueError: The tokenizer has another number of tokens than the configuration assumes.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    if tokenizer.convert_tokens_to_ids("<image>") != config.image_token_index:
        raise ValueError(
            f"the image token of {path} would be {tokenizer.convert_tokens_to_ids('<image>')}, but its weights expect "
            f"{config.image_token_index}: set image_token_index in its config.json"
        )
    vision = config.vision_config
    edge = {"height": vision.image_size, "width": vision.image_size}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=edge, image_grid_pinpoints=config.image_grid_pinpoints),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=edge),
        num_image_tokens=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=config.vision_aspect_ratio,
    )


AutoConfig.register(LlavaQwenConfig.model_type, LlavaQwenConfig, exist_ok=True)
