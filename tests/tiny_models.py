"""Tiny random tiny models of real backbones: native image-text checkpoints, made offline in a moment.

Every tiny model has the classes, special tokens, chat layout and image slicing of the checkpoint it stands for, and random
weights wide enough (`INITIALIZER_RANGE`) that different items get clearly different embeddings.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from tiny_tokenizers import idefics_tokenizer, llama_tokenizer, qwen_tokenizer, qwen_vl_tokenizer
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


INITIALIZER_RANGE = 0.2
LAYER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TILE = 24  # pixels; with patches of 8 pixels a tile gives nine tokens
PATCH = 8
VISION = LAYER | {"image_size": TILE, "patch_size": PATCH, "initializer_range": INITIALIZER_RANGE}
GRID = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]


def text_sizes(tokenizer: PreTrainedTokenizerFast) -> dict:
    """Return the arguments that the configs of all language models share."""
    return LAYER | {
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
    """Return the chat layout of the real checkpoint."""
    return (Path(__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-1.5: CLIP, an MLP and Llama."""
    words = llama_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**text_sizes(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=(TILE // PATCH) ** 2,
    )
    images = CLIPImageProcessor(size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE})
    processor = LlavaProcessor(
        images,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("llava"),
    )
    return LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-1.6-Mistral-7B: an image is a thumbnail and up to four tiles."""
    words = llama_tokenizer()
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=MistralConfig(**text_sizes(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=GRID,
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=GRID
    )
    processor = LlavaNextProcessor(
        images,
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("llava-next"),
    )
    return LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[PreTrainedModel, ProcessorMixin]:
    """LLaVA-OneVision-Qwen2-7B: SigLIP, tiles, and a video processor."""
    words = qwen_tokenizer("<image>", "<video>")
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=Qwen2Config(**text_sizes(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRID,
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size={"height": TILE, "width": TILE}, image_grid_pinpoints=GRID),
        words,
        LlavaOnevisionVideoProcessor(size={"height": TILE, "width": TILE}),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=chat_template("llava-onevision"),
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def qwen_vl_config(words: PreTrainedTokenizerFast) -> dict:
    """Return what the configs of Qwen2-VL and Qwen3-VL share."""
    return {
        "text_config": text_sizes(words) | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
        "image_token_id": words.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": words.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": words.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": words.convert_tokens_to_ids("<|vision_end|>"),
    }


def qwen_vl_images() -> Qwen2VLImageProcessor:
    """Return a processor that cuts an image of any shape into 4 to 16 tokens of 16 x 16 pixels."""
    return Qwen2VLImageProcessor(patch_size=PATCH, size={"shortest_edge": 4 * 16**2, "longest_edge": 16 * 16**2})


def qwen2_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2-VL: native resolution, flattened patches, three-axis rotary positions."""
    words = qwen_vl_tokenizer()
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": PATCH}
    config = Qwen2VLConfig(vision_config=vision | {"initializer_range": INITIALIZER_RANGE}, **qwen_vl_config(words))
    video = Qwen2VLVideoProcessor(patch_size=PATCH)
    processor = Qwen2VLProcessor(qwen_vl_images(), words, video, chat_template=chat_template("qwen-vl"))
    return Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2.5-VL: as Qwen2-VL, and most vision layers attend within windows."""
    words = qwen_vl_tokenizer()
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": PATCH}
    vision |= {"out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(vision_config=vision | {"initializer_range": INITIALIZER_RANGE}, **qwen_vl_config(words))
    video = Qwen2VLVideoProcessor(patch_size=PATCH)
    processor = Qwen2_5_VLProcessor(qwen_vl_images(), words, video, chat_template=chat_template("qwen-vl"))
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen3-VL: as Qwen2-VL, and early vision layers feed the language model's too."""
    words = qwen_vl_tokenizer()
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": PATCH}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(vision_config=vision | {"initializer_range": INITIALIZER_RANGE}, **qwen_vl_config(words))
    video = Qwen3VLVideoProcessor(patch_size=PATCH)
    processor = Qwen3VLProcessor(qwen_vl_images(), words, video, chat_template=chat_template("qwen-vl"))
    return Qwen3VLForConditionalGeneration(config), processor


def idefics_sizes(words: PreTrainedTokenizerFast) -> dict:
    """Return what the configs of Idefics3 and SmolVLM share: 4 tokens from a 32-pixel tile."""
    return {
        "vision_config": VISION | {"image_size": 32},
        "text_config": LlamaConfig(**text_sizes(words)),
        "image_token_id": words.convert_tokens_to_ids("<image>"),
        "pad_token_id": words.pad_token_id,
        "scale_factor": 2,
    }


def smolvlm() -> tuple[PreTrainedModel, ProcessorMixin]:
    """SmolVLM: an image is a grid of tiles and a thumbnail, each with its own marker token."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = idefics_tokenizer("<|im_start|>", "<|im_end|>", unlisted=["<global-img>", *tiles])
    images = SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    video = SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    processor = SmolVLMProcessor(images, words, video, image_seq_len=4, chat_template=chat_template("smolvlm"))
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**idefics_sizes(words))), processor


def idefics3() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Idefics3-8B-Llama3: as SmolVLM, and the tiles' markers are ordinary text."""
    words = idefics_tokenizer("<|begin_of_text|>", "<|end_of_text|>")
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, words, image_seq_len=4, chat_template=chat_template("idefics3"))
    return Idefics3ForConditionalGeneration(Idefics3Config(**idefics_sizes(words))), processor


def text_only() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Qwen3: a language model without images, which cannot be a backbone."""
    words = qwen_tokenizer()
    return Qwen3ForCausalLM(Qwen3Config(**text_sizes(words))), words


TINY_MODELS: dict[str, Callable[[], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "llava": llava,
    "llava-next": llava_next,
    "llava-onevision": llava_onevision,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
}


def make_tiny_model(name: str, folder: Path) -> Path:
    """Write the tiny model `name` (one of `TWINS`, or "text-only") into `folder` and return `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = text_only() if name == "text-only" else TINY_MODELS[name]()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
