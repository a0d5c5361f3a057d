"""The models of the benchmarks: `unime-tiny`, and random models of large families, where layers dominate the time.

A random model has the architecture, the chat template and the special tokens of its family, with the vocabulary of
`checkpoints/tiny-backbone`. As its weights are random, it measures speed only. Those of `REAL_SIZES` have the layers
and the token embeddings of the published checkpoints, which they are named after.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)

from unime import UniMEModel, load_model, save_checkpoint
from unime.processing_unime import chat_template


ROOT = Path(__file__).resolve().parents[1]
TINY = "unime-tiny"
FAMILIES = ("llava-onevision", "qwen2-vl")  # 60 to 100 M parameters
# Keeps the embeddings of different items apart, as trained weights do; the default of 0.02 does not.
INITIALIZER_RANGE = 0.04
LANGUAGE_3M = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 4096,
    "initializer_range": INITIALIZER_RANGE,
    "tie_word_embeddings": True,
}
LANGUAGE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 9,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "initializer_range": INITIALIZER_RANGE,
    "tie_word_embeddings": True,
}
QWEN2_2B = LANGUAGE | {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "vocab_size": 151936,
}
QWEN2_7B = QWEN2_2B | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
SIGLIP = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 5, "num_attention_heads": 6}
SIGLIP |= {"image_size": 96, "patch_size": 16}  # a tile becomes 36 tokens
QWEN_VISION = {"depth": 5, "embed_dim": 384, "num_heads": 6, "patch_size": 16}
QWEN_VISION_3M = {"depth": 3, "embed_dim": 192, "num_heads": 3, "patch_size": 16}
QWEN_VISION_675M = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "patch_size": 14}
# The language model and the vision tower of each random model.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava-onevision": (LANGUAGE, SIGLIP),
    "qwen2-vl": (LANGUAGE, QWEN_VISION),
    "qwen2-vl-3m": (LANGUAGE_3M, QWEN_VISION_3M),
    "qwen2-vl-2b": (QWEN2_2B, QWEN_VISION_675M),
    "qwen2-vl-7b": (QWEN2_7B, QWEN_VISION_675M),
}
REAL_SIZES = ("qwen2-vl-2b", "qwen2-vl-7b")
LLAVA_ONEVISION_CHAT = """\
{%- for message in messages -%}
{{- '<|im_start|>' ~ message['role'] ~ ' ' -}}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- '\\n' ~ part['text'] -}}{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
QWEN_VL_CHAT = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' ~ message['role'] ~ '\\n' -}}
{%- for part in message['content'] -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def _tokenizer(max_length: int, *special: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "tiny-backbone", extra_special_tokens=[])
    tokenizer.add_special_tokens(
        {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "extra_special_tokens": ["<|im_start|>", *special],
        }
    )
    tokenizer.model_max_length = max_length
    return tokenizer


def _language_config(language: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return {"vocab_size": len(tokenizer)} | language | ids


def _llava_onevision(language: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedConfig, ProcessorMixin]:
    tokenizer = _tokenizer(language["max_position_embeddings"], "<image>", "<video>")
    tile = vision["image_size"]
    grid = [[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile]]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=Qwen2Config(**_language_config(language, tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        tie_word_embeddings=True,
    )
    size = {"height": tile, "width": tile}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(tile // vision["patch_size"]) ** 2,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION_CHAT,
    )
    return config, processor


def _qwen2_vl(language: dict[str, Any], vision: dict[str, Any]) -> tuple[PreTrainedConfig, ProcessorMixin]:
    special = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _tokenizer(language["max_position_embeddings"], *special)
    frequencies = language["hidden_size"] // language["num_attention_heads"] // 2
    third = 3 * frequencies // 8  # for the height, and as much for the width
    rope = {"rope_type": "default", "mrope_section": [frequencies - 2 * third, third, third]}
    config = Qwen2VLConfig(
        vision_config=vision | {"hidden_size": language["hidden_size"]},
        text_config=_language_config(language, tokenizer) | {"rope_parameters": rope},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    patch = vision["patch_size"]
    token_side = 2 * patch  # pixels; a square of this side becomes one token
    pixels = {"shortest_edge": 4 * token_side**2, "longest_edge": 1024 * token_side**2}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(patch_size=patch, size=pixels),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=patch),
        chat_template=QWEN_VL_CHAT,
    )
    return config, processor


def configuration(name: str) -> tuple[PreTrainedConfig, ProcessorMixin]:
    """Return the configuration and the processor of a random model.

    Args:
        name (`str`): One of `FAMILIES` or `REAL_SIZES`.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in SIZES:
        raise ValueError(f"there is no random model of {name!r}: choose from {', '.join(SIZES)}")
    return _qwen2_vl(*SIZES[name]) if name.startswith("qwen2-vl") else _llava_onevision(*SIZES[name])


def random_model(family: str, folder: Path) -> Path:
    """Write a random native backbone, with its tokenizer and processor.

    Args:
        family (`str`): One of `FAMILIES`, or `qwen2-vl-3m`, which reads large images in little time.
        folder (`Path`): Output folder; created if absent.

    Returns:
        `Path`: `folder`, which `unime.load_model` loads.

    Raises:
        ValueError: The family is unknown.
    """
    config, processor = configuration(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def checkpoint(name: str, folder: Path) -> Path:
    """Return the UniME checkpoint of a name: `unime-tiny`, or a random model of a family, written below `folder`.

    Raises:
        ValueError: The name is unknown.
    """
    if name == TINY:
        return ROOT / "checkpoints" / TINY
    model, processor = load_model(str(random_model(name, folder / f"{name}-backbone")), dtype="float32")
    return save_checkpoint(model, processor, folder / name)


def real_size_checkpoint(name: str, folder: Path, device: str) -> Path:
    """Write a random UniME checkpoint of a published size, in bfloat16, and return its folder.

    Args:
        name (`str`): One of `REAL_SIZES`.
        folder (`Path`): Where to write it, into a folder of its name: 4 to 16 GB.
        device (`str`): Where to draw the weights; a GPU takes seconds, a CPU minutes.

    Raises:
        ValueError: The name is unknown.
    """
    config, processor = configuration(name)
    processor.chat_template = chat_template(processor)
    torch.manual_seed(0)
    with torch.device(device):
        model = UniMEModel.from_backbone(config, dtype=torch.bfloat16)
    return save_checkpoint(model, processor, folder / name)
