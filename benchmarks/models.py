"""The models of the benchmarks: `unime-tiny`, and random models of large families, where layers dominate the time.

A random model has the architecture, the chat template and the special tokens of its family, with the vocabulary of
`checkpoints/tiny-backbone`. As its weights are random, it measures speed only.
"""

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)

from unime import load_model, save_checkpoint


ROOT = Path(__file__).resolve().parents[1]
TINY = "unime-tiny"
FAMILIES = ("llava-onevision", "qwen2-vl")
WIDTH = 768
# Keeps the embeddings of different items apart, as trained weights do; the default of 0.02 does not.
INITIALIZER_RANGE = 0.04
LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 2048,
    "num_hidden_layers": 9,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "initializer_range": INITIALIZER_RANGE,
    "tie_word_embeddings": True,
}
TILE, PATCH = 96, 16  # pixels; a tile becomes 36 tokens in LLaVA-OneVision
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


def _tokenizer(*special: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "tiny-backbone", extra_special_tokens=[])
    tokenizer.add_special_tokens(
        {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "extra_special_tokens": ["<|im_start|>", *special],
        }
    )
    tokenizer.model_max_length = LANGUAGE["max_position_embeddings"]
    return tokenizer


def _language_config(tokenizer: PreTrainedTokenizerBase) -> dict:
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return LANGUAGE | ids | {"vocab_size": len(tokenizer)}


def _llava_onevision() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = _tokenizer("<image>", "<video>")
    grid = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]
    vision = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 5, "num_attention_heads": 6}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision, image_size=TILE, patch_size=PATCH, vision_use_head=False),
        text_config=Qwen2Config(**_language_config(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        tie_word_embeddings=True,
    )
    tile = {"height": TILE, "width": TILE}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=tile, image_grid_pinpoints=grid),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=tile),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION_CHAT,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def _qwen2_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = _tokenizer("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
    config = Qwen2VLConfig(
        vision_config={"depth": 5, "embed_dim": 384, "num_heads": 6, "hidden_size": WIDTH, "patch_size": PATCH},
        text_config=_language_config(tokenizer)
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12]}},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    token_side = 2 * PATCH  # pixels; a square of this side becomes one token
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(
            patch_size=PATCH, size={"shortest_edge": 4 * token_side**2, "longest_edge": 64 * token_side**2}
        ),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=PATCH),
        chat_template=QWEN_VL_CHAT,
    )
    return Qwen2VLForConditionalGeneration(config), processor


def random_model(family: str, folder: Path) -> Path:
    """Write a random native backbone of 60 to 100 M parameters, with its tokenizer and processor.

    Args:
        family (`str`): One of `FAMILIES`.
        folder (`Path`): Output folder; created if absent.

    Returns:
        `Path`: `folder`, which `unime.load_model` loads.

    Raises:
        ValueError: The family is unknown.
    """
    if family not in FAMILIES:
        raise ValueError(f"there is no random model of {family!r}: choose from {', '.join(FAMILIES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = _llava_onevision() if family == "llava-onevision" else _qwen2_vl()
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
