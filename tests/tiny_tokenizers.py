"""Tokenizers of the tiny models: byte-level BPE with few tokens and the special tokens of real checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


TRAINING_TEXTS = [
    "Summarize the above sentence in one word:",
    "Summarize the above image in one word:",
    "Find an image that matches the given caption.",
    "Represent the given image with the following question:",
    "a pizza on a red tile to the left of a cat on a blue tile",
    "user assistant system What is at the top left?",
]


def tokenizer(
    special: list[str], pad: str, eos: str, bos: str | None = None, unlisted: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a few hundred tokens, which can encode any text.

    Args:
        special: Special tokens.
        pad: Padding token.
        eos: End-of-sequence token.
        bos: Beginning-of-sequence token, which starts every text.
        unlisted: Special tokens that `all_special_tokens` does not list, such as the tile markers of SmolVLM.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special_tokens = [*special, *unlisted]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special_tokens, initial_alphabet=alphabet)
    bpe.train_from_iterator(TRAINING_TEXTS, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, eos_token=eos, bos_token=bos, extra_special_tokens=special
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with the special tokens of LLaVA-1.5 and LLaVA-1.6."""
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    return tokenizer(special, pad="<pad>", eos="</s>", bos="<s>")


def qwen_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the special tokens of Qwen2 and additional ones."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special]
    return tokenizer(special, pad="<|endoftext|>", eos="<|im_end|>")


def qwen_vl_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with the special tokens of Qwen2-VL and Qwen3-VL."""
    return qwen_tokenizer("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


def idefics_tokenizer(bos: str, eos: str, unlisted: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the special tokens of Idefics3 and SmolVLM."""
    special = [bos, eos, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    return tokenizer(special, pad=eos, eos="<end_of_utterance>", unlisted=unlisted)


def llama_3_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the special tokens of Llama 3 and additional ones."""
    roles = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", *special]
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", *roles]
    return tokenizer(special, pad="<|finetune_right_pad_id|>", eos="<|eot_id|>", bos="<|begin_of_text|>")


def gemma_tokenizer(named: dict[str, str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the special tokens of Gemma, which adds one to both ends of a text.

    Args:
        named: Further special tokens by their names, such as `{"image_token": "<|image|>"}`.
    """
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *named.values()]
    bare = tokenizer(special, pad="<pad>", eos="<eos>")
    ends = [(token, bare.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos> $B <eos>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare.backend_tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        extra_special_tokens=named,
    )


def with_end_token(tokenizer: PreTrainedTokenizerFast, end: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that adds a token to the end of every text."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.convert_tokens_to_ids(end))]
    )
    return tokenizer


def phi_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer built as that of Phi-3.5-Vision: texts begin with a space, bytes are a fallback."""
    return PreTrainedTokenizerFast.from_pretrained(Path(__file__).parent / "phi3_v_reference")
