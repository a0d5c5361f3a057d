"""Tiny models of published embedders, as their authors publish them."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from phi3_v_parity import write_checkpoint
from tiny_models import (
    INITIALIZER_RANGE,
    LAYER_SIZES,
    PATCH_PIXELS,
    TILE_PIXELS,
    chat_template,
    llava_next,
    llava_onevision,
    qwen2_vl,
    qwen3_vl,
    qwen_vl_config_arguments,
    qwen_vl_image_processor,
    text_config_arguments,
)
from tiny_tokenizers import gemma_tokenizer, llama_3_tokenizer, qwen_tokenizer, with_end_token
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    EmbeddingGemma2Config,
    EmbeddingGemma2Model,
    EmbeddingGemma2Processor,
    EmbeddingGemma2VideoProcessor,
    Gemma4AudioFeatureExtractor,
    Gemma4ImageProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig


def e5_v() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build LLaVA-NeXT with the special tokens of Llama 3."""
    model, processor = llava_next()
    processor.tokenizer = llama_3_tokenizer("<image>")
    model.resize_token_embeddings(len(processor.tokenizer))
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    return model, processor


def qwen3_vl_embedding() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build Qwen3-VL whose tokenizer adds the end token."""
    model, processor = qwen3_vl()
    with_end_token(processor.tokenizer, "<|endoftext|>")
    return model, processor


def phi3_v() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build Phi-3.5-Vision."""
    with TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def bge_vl_mllm() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build LLaVA-NeXT whose configuration names code of its own, which is never run."""
    model, processor = llava_next()
    model.config.auto_map = {"AutoModel": "modeling_llavanext_for_embedding.LLaVANextForEmbedding"}
    return model, processor


def wemm_embedding() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build Qwen3.5: layers of linear attention before one of full attention, and a token for the embedding."""
    tokenizer = qwen_tokenizer(
        "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<embedding>"
    )
    arguments = qwen_vl_config_arguments(tokenizer)
    linear = {f"linear_{part}_head_dim": 8 for part in ("key", "value")}
    linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    arguments["text_config"] |= linear | {"layer_types": ["linear_attention", "full_attention"]}
    arguments["text_config"]["rope_parameters"]["partial_rotary_factor"] = 1.0
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": PATCH_PIXELS}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 16, "initializer_range": INITIALIZER_RANGE}
    config = Qwen3_5Config(vision_config=vision, **arguments)
    processor = Qwen3VLProcessor(
        qwen_vl_image_processor(), tokenizer, Qwen3VLVideoProcessor(), chat_template=chat_template("qwen-vl")
    )
    return Qwen3_5ForConditionalGeneration(config), processor


def embedding_gemma_2() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build EmbeddingGemma 2 without its towers: bidirectional, with a projection of each token."""
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    names |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tokenizer = gemma_tokenizer(names)
    text = text_config_arguments(tokenizer) | {"layer_types": ["sliding_attention", "full_attention"]}
    text |= {"hidden_size_per_layer_input": 16, "embedding_dim": 48, "global_head_dim": 16, "sliding_window": 8}
    config = EmbeddingGemma2Config(text_config=text)
    config.vision_config = config.audio_config = None
    processor = EmbeddingGemma2Processor(
        Gemma4AudioFeatureExtractor(), Gemma4ImageProcessor(), tokenizer, EmbeddingGemma2VideoProcessor()
    )
    return EmbeddingGemma2Model(config), processor


def mllama() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build Llama-3.2-Vision: layers of cross-attention to up to four tiles, and an image is one token."""
    tokenizer = llama_3_tokenizer("<|image|>")
    text = text_config_arguments(tokenizer) | {"cross_attention_layers": [1]}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    vision = LAYER_SIZES | {"num_global_layers": 1, "attention_heads": 4, "image_size": TILE_PIXELS}
    vision |= {"patch_size": PATCH_PIXELS, "max_num_tiles": 4, "initializer_range": INITIALIZER_RANGE}
    vision |= {"intermediate_layers_indices": [0], "vision_output_dim": 2 * LAYER_SIZES["hidden_size"]}
    config = MllamaConfig(
        vision_config=MllamaVisionConfig(**vision),
        text_config=MllamaTextConfig(**text),
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    image_processor = MllamaImageProcessor(size={"height": TILE_PIXELS, "width": TILE_PIXELS}, max_image_tiles=4)
    return MllamaForConditionalGeneration(config), MllamaProcessor(image_processor, tokenizer)


# Preset -> a tiny model, and the last part of a Hub id of its family.
PUBLISHED: dict[str, tuple[Callable[[], tuple[PreTrainedModel, ProcessorMixin]], str]] = {
    "embeddinggemma-2": (embedding_gemma_2, "embeddinggemma-2"),
    "wemm-embedding": (wemm_embedding, "WeMM-Embedding-2B"),
    "llave": (llava_onevision, "LLaVE-2B"),  # see test_llava_qwen.py for its published layout
    "unime-phi-3.5": (phi3_v, "UniME-Phi3.5-V-4.2B"),
    "vlm2vec-phi-3.5": (phi3_v, "VLM2Vec-Full"),
    "unime-llava-1.6": (llava_next, "UniME-LLaVA-1.6-7B"),
    "unime-llava-onevision": (llava_onevision, "UniME-LLaVA-OneVision-7B"),
    "unime-v2-qwen2-vl": (qwen2_vl, "UniME-V2-Qwen2VL-2B"),
    "unime-v2-llava-onevision": (llava_onevision, "UniME-V2-LLaVA-OneVision-8B"),
    "vlm2vec-llava-next": (llava_next, "VLM2Vec-LLaVa-Next"),
    "vlm2vec-v2": (qwen2_vl, "VLM2Vec-V2.0"),
    "gme": (qwen2_vl, "gme-Qwen2-VL-2B-Instruct"),
    "mme5": (mllama, "mmE5-mllama-11b-instruct"),
    "bge-vl-mllm": (bge_vl_mllm, "BGE-VL-MLLM-S1"),
    "vlm2vec-qwen2-vl": (qwen2_vl, "VLM2Vec-Qwen2VL-2B"),
    "qwen3-vl-embedding": (qwen3_vl_embedding, "Qwen3-VL-Embedding-2B"),
    "e5-v": (e5_v, "e5-v"),
}


def make_published_model(preset: str, parent: Path) -> Path:
    """Write the tiny model of a family to a folder named after one of its Hub ids, and return the folder."""
    build, name = PUBLISHED[preset]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = build()
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)  # as published weights are named
    model.eval().save_pretrained(parent / name)
    processor.save_pretrained(parent / name)
    return parent / name
