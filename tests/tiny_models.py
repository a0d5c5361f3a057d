"""Tiny random models of real architectures: native image-text checkpoints, built offline in moments.

Each tiny model has the classes, special tokens, chat template and image tiling of the checkpoint that it represents.
Its random weights vary enough (`INITIALIZER_RANGE`) to give different items clearly different embeddings.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tiny_architectures import tiny_architecture
from tiny_tokenizers import idefics_tokenizer, llama_tokenizer, phi_tokenizer, qwen_tokenizer, qwen_vl_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.conversion_mapping import get_model_conversion_mapping

from unime.unime_phi3_v import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor


INITIALIZER_RANGE = 0.2
LAYER_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TILE_PIXELS = 24  # a tile has nine patches, thus nine tokens
PATCH_PIXELS = 8
VISION_SIZES = LAYER_SIZES | {
    "image_size": TILE_PIXELS,
    "patch_size": PATCH_PIXELS,
    "initializer_range": INITIALIZER_RANGE,
}
GRID_PINPOINTS = [
    [TILE_PIXELS, 2 * TILE_PIXELS],
    [2 * TILE_PIXELS, TILE_PIXELS],
    [2 * TILE_PIXELS, 2 * TILE_PIXELS],
]


def text_config_arguments(tokenizer: PreTrainedTokenizerFast) -> dict:
    """Return the arguments that the configurations of all language models share."""
    return LAYER_SIZES | {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "vocab_size": len(tokenizer),
        "initializer_range": INITIALIZER_RANGE,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def chat_template(name: str) -> str:
    """Return the chat template of the real checkpoint."""
    return (Path(__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build LLaVA-1.5: CLIP, an MLP and Llama."""
    tokenizer = llama_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION_SIZES),
        text_config=LlamaConfig(**text_config_arguments(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(TILE_PIXELS // PATCH_PIXELS) ** 2,
    )
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": TILE_PIXELS}, crop_size={"height": TILE_PIXELS, "width": TILE_PIXELS}
    )
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("llava"),
    )
    return LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build LLaVA-1.6-Mistral-7B: an image becomes a thumbnail and up to four tiles."""
    tokenizer = llama_tokenizer()
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION_SIZES),
        text_config=MistralConfig(**text_config_arguments(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=GRID_PINPOINTS,
    )
    image_processor = LlavaNextImageProcessor(
        size={"shortest_edge": TILE_PIXELS},
        crop_size={"height": TILE_PIXELS, "width": TILE_PIXELS},
        image_grid_pinpoints=GRID_PINPOINTS,
    )
    processor = LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=PATCH_PIXELS,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("llava-next"),
    )
    return LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build LLaVA-OneVision-Qwen2-7B: SigLIP, tiles, and a video processor."""
    tokenizer = qwen_tokenizer("<image>", "<video>")
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION_SIZES, vision_use_head=False),
        text_config=Qwen2Config(**text_config_arguments(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRID_PINPOINTS,
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(
            size={"height": TILE_PIXELS, "width": TILE_PIXELS}, image_grid_pinpoints=GRID_PINPOINTS
        ),
        tokenizer,
        LlavaOnevisionVideoProcessor(size={"height": TILE_PIXELS, "width": TILE_PIXELS}),
        num_image_tokens=(TILE_PIXELS // PATCH_PIXELS) ** 2,
        vision_feature_select_strategy="full",
        chat_template=chat_template("llava-onevision"),
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def qwen_vl_config_arguments(tokenizer: PreTrainedTokenizerFast) -> dict:
    """Return the arguments that the configurations of Qwen2-VL and Qwen3-VL share."""
    text = text_config_arguments(tokenizer)
    sections = [text["head_dim"] // 4, text["head_dim"] // 8, text["head_dim"] // 8]
    return {
        "text_config": text | {"rope_parameters": {"rope_type": "default", "mrope_section": sections}},
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }


VIDEO_SIZE = {"shortest_edge": 4 * 16**2, "longest_edge": 16 * 16**2}  # of a frame; for Qwen3-VL, of all frames


def qwen_vl_image_processor() -> Qwen2VLImageProcessor:
    """Return a processor that turns an image of any shape into 4 to 16 tokens of 16 x 16 pixels."""
    return Qwen2VLImageProcessor(
        patch_size=PATCH_PIXELS, size={"shortest_edge": 4 * 16**2, "longest_edge": 16 * 16**2}
    )


def qwen2_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build Qwen2-VL: native resolution, flattened patches, three-axis rotary positions."""
    tokenizer = qwen_vl_tokenizer()
    arguments = qwen_vl_config_arguments(tokenizer)
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 4, "patch_size": PATCH_PIXELS}
    vision |= {"hidden_size": arguments["text_config"]["hidden_size"], "initializer_range": INITIALIZER_RANGE}
    config = Qwen2VLConfig(vision_config=vision, **arguments)
    video = Qwen2VLVideoProcessor(patch_size=PATCH_PIXELS, size=VIDEO_SIZE)
    processor = Qwen2VLProcessor(qwen_vl_image_processor(), tokenizer, video, chat_template=chat_template("qwen-vl"))
    return Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build Qwen2.5-VL: as Qwen2-VL, and most vision layers attend within windows."""
    tokenizer = qwen_vl_tokenizer()
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": PATCH_PIXELS}
    vision |= {"window_size": 32, "fullatt_block_indexes": [1], "initializer_range": INITIALIZER_RANGE}
    arguments = qwen_vl_config_arguments(tokenizer)
    vision["out_hidden_size"] = arguments["text_config"]["hidden_size"]
    config = Qwen2_5_VLConfig(vision_config=vision, **arguments)
    video = Qwen2VLVideoProcessor(patch_size=PATCH_PIXELS, size=VIDEO_SIZE)
    processor = Qwen2_5_VLProcessor(
        qwen_vl_image_processor(), tokenizer, video, chat_template=chat_template("qwen-vl")
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build Qwen3-VL: as Qwen2-VL, and early vision layers also feed into the language model's layers."""
    tokenizer = qwen_vl_tokenizer()
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": PATCH_PIXELS}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0], "initializer_range": INITIALIZER_RANGE}
    arguments = qwen_vl_config_arguments(tokenizer)
    vision["out_hidden_size"] = arguments["text_config"]["hidden_size"]
    config = Qwen3VLConfig(vision_config=vision, **arguments)
    video = Qwen3VLVideoProcessor(patch_size=PATCH_PIXELS, size=VIDEO_SIZE)
    processor = Qwen3VLProcessor(qwen_vl_image_processor(), tokenizer, video, chat_template=chat_template("qwen-vl"))
    return Qwen3VLForConditionalGeneration(config), processor


def idefics_config_arguments(tokenizer: PreTrainedTokenizerFast) -> dict:
    """Return the arguments that the configurations of Idefics3 and SmolVLM share: 4 tokens per 32-pixel tile."""
    return {
        "vision_config": VISION_SIZES | {"image_size": 32},
        "text_config": LlamaConfig(**text_config_arguments(tokenizer)),
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
        "scale_factor": 2,
    }


def smolvlm() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build SmolVLM: an image becomes a grid of tiles and a thumbnail, each with its own marker token."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = idefics_tokenizer("<|im_start|>", "<|im_end|>", unlisted=["<global-img>", *tiles])
    image_processor = SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    video = SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    processor = SmolVLMProcessor(
        image_processor, tokenizer, video, image_seq_len=4, chat_template=chat_template("smolvlm")
    )
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**idefics_config_arguments(tokenizer))), processor


def idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build Idefics3-8B-Llama3: as SmolVLM, but the markers of the tiles are ordinary text."""
    tokenizer = idefics_tokenizer("<|begin_of_text|>", "<|end_of_text|>")
    image_processor = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=4, chat_template=chat_template("idefics3"))
    return Idefics3ForConditionalGeneration(Idefics3Config(**idefics_config_arguments(tokenizer))), processor


def phi3_v() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build Phi-3.5-Vision: crops of 4 tokens, and rotary frequencies that change beyond 512 positions."""
    tokenizer = phi_tokenizer()
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 8.0}
    rope |= {"short_factor": [1.0, 1.1, 1.4, 2.0], "long_factor": [1.1, 4.0, 20.0, 60.0]}
    config = Phi3VConfig(
        vision_config=VISION_SIZES | {"image_size": 32},
        text_config=text_config_arguments(tokenizer)
        | {"rope_parameters": rope, "original_max_position_embeddings": 512},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    image_processor = Phi3VImageProcessor(size={"height": 32, "width": 32}, num_img_tokens=4)
    return Phi3VForCausalLM(config), Phi3VProcessor(image_processor, tokenizer)


def text_only() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Build Qwen3: a language model without image input, which cannot be a backbone."""
    tokenizer = qwen_tokenizer()
    return Qwen3ForCausalLM(Qwen3Config(**text_config_arguments(tokenizer))), tokenizer


TINY_MODELS: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "llava": llava,
    "llava-next": llava_next,
    "llava-onevision": llava_onevision,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "phi3-v": phi3_v,
}


def make_tiny_model(name: str, folder: Path) -> Path:
    """Write the tiny model `name` to `folder` and return `folder`.

    It is one of `TINY_MODELS`, "text-only", or any other image-text model type of transformers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build = TINY_MODELS.get(name, text_only if name == "text-only" else partial(tiny_architecture, name))
        model, processor = build()
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)  # as published weights are named
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
