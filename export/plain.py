"""Plain export: the backbone under its native class, so that serving engines load it without remote code."""

from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from transformers import AutoModelForImageTextToText, ProcessorMixin
from transformers.conversion_mapping import get_model_conversion_mapping

from ..checkpoint import ENTRY_FILES, named_prompts, require_merged_adapters, write_sentence_transformer
from ..checkpoint_safety import give_weights_the_umask
from ..image_tokens_unime import square_of
from ..modeling_unime import UniMEModel
from ..processing_unime import to_item_dict, to_messages


INTERLEAVED_MROPE_FAMILIES = {"qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"}

POOLED = {"last": "last hidden state of the last token", "mean": "mean of the last hidden states of all tokens"}
CARD = """\
---
{metadata}
---
# Plain UniME checkpoint

The weights of a [UniME](https://arxiv.org/abs/2504.17432) model ({parameters} parameters, {dimensions} dimensions)
with the parameter names of `{architecture}`, without its language-model head. {loading}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder"{argument})
embeddings = model.encode(["a slice of pizza", image, {{"image": image, "text": "What is this?"}}])
```
{serving}
The prompt is in `chat_template.jinja`: send `messages` to an engine, not bare text. An embedding is the normalised
{pooled}. An instruction is the system message; these instructions have names:

| name | instruction |
|---|---|
{prompts}
"""
NATIVE = {
    "loading": """The folder contains no code:
`SentenceTransformer` and `AutoModel` load it without `trust_remote_code`, and serving engines read its class, weights
and pooling.""",
    "argument": "",
    "serving": """
```sh
vllm serve path/to/this/folder --runner pooling --convert embed
```
""",
}
WITH_CODE = {
    "loading": """transformers lacks this
architecture, so the folder contains its code: `SentenceTransformer` and `AutoModel` load it with `trust_remote_code`,
and without it after `import unime.checkpoint`. No serving engine was tried.""",
    "argument": ", trust_remote_code=True",
    "serving": "",
}


def export_plain(
    model: UniMEModel, processor: ProcessorMixin, directory: str | Path, metadata: ModelCardData | None = None
) -> Path:
    """Write a checkpoint of native transformers classes, in the dtype of the model's weights.

    For a backbone that transformers lacks, Phi-3-Vision, the folder contains its code too.

    Args:
        model ([`UniMEModel`]): The model; LoRA adapters must have been merged into it.
        processor (`ProcessorMixin`): Its processor, with UniME's chat template.
        directory (`str` or `Path`): Output folder, new or empty.
        metadata (`ModelCardData`, *optional*): Metadata of the model card for the Hub: licence, results, ...

    Returns:
        `Path`: The directory.

    Raises:
        ValueError: The folder is not empty, the model has unmerged adapters, the processor has no chat template or
            adds tokens that a template cannot produce, the generative class does not contain the backbone, or the
            model reads images or counts positions in a way that this class does not know.
    """
    directory = new_folder(directory)
    require_merged_adapters(model)
    template = complete_template(processor)
    if model.config.positions != "native" or square_of(processor) is not None:
        raise ValueError(
            "this model has sequential positions or reads images as squares, which its native class and serving "
            "engines cannot do: use the original checkpoint"
        )
    # Engines map the parameter names of the generative class: the backbone and a head. The head is left out, because
    # embedding does not use it and engines skip it when they pool.
    with torch.device("meta"):
        native = AutoModelForImageTextToText.from_config(model.backbone.config)
    names = [name for name, child in native.named_children() if type(child) is type(model.backbone)]
    if not names:
        raise ValueError(
            f"{type(native).__name__} does not contain a {type(model.backbone).__name__}: this backbone has no plain "
            "export, use the original checkpoint"
        )
    setattr(native, names[0], model.backbone)
    # Of a model that `from_pretrained` did not make, transformers writes the towers under names that only it knows.
    native._weight_conversions = get_model_conversion_mapping(native, add_legacy=False)
    rope = native.config.get_text_config().rope_parameters or {}
    if native.config.model_type in INTERLEAVED_MROPE_FAMILIES and "mrope_section" in rope:
        rope.setdefault("mrope_interleaved", True)  # transformers always interleaves, vLLM asks the configuration
    if model.config.matryoshka_dimensions:  # vLLM refuses `dimensions` without it
        native.config.matryoshka_dimensions = model.config.matryoshka_dimensions
    weights = {name: weight for name, weight in native.state_dict().items() if weight.device.type != "meta"}
    native.save_pretrained(directory, state_dict=weights)
    give_weights_the_umask(directory)
    processor.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(template)
    write_sentence_transformer(model, processor, directory)
    (directory / "README.md").write_text(_plain_card(model, type(native).__name__, metadata))
    return directory


def new_folder(directory: str | Path) -> Path:
    """Create a folder, or refuse one that holds files, which would seem to be part of the export."""
    directory = Path(directory)
    if directory.is_dir() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty: choose a new folder")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def complete_template(processor: ProcessorMixin) -> str:
    """Return the chat template with the beginning-of-sequence token that the tokenizer adds to a rendered text.

    transformers adds that token to a rendered text that lacks it, whereas serving engines tokenize a rendered
    conversation as it is. If the template writes the token, both read the same tokens.

    Raises:
        ValueError: The processor has no chat template, or its tokenizer adds more than that one token.
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
        raise ValueError(
            f"the tokenizer adds {len(added) - len(bare)} special tokens to a prompt, not only one at its beginning: "
            "a serving engine would leave them out, so this checkpoint cannot be exported"
        )
    return f"{{{{- '{begin}' -}}}}\n{processor.chat_template}"


def _plain_card(model: UniMEModel, architecture: str, metadata: ModelCardData | None = None) -> str:
    """Return the model card of a plain checkpoint."""
    tags = ["multimodal-embedding", "sentence-transformers", "transformers"]
    fields = metadata.to_dict() if metadata else {"tags": tags}
    fixed = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
    data = ModelCardData(**fields | fixed)
    return CARD.format(
        metadata=data.to_yaml(),
        architecture=architecture,
        parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M",
        dimensions=model.config.hidden_size,
        **(WITH_CODE if model.config.backbone_config.model_type in ENTRY_FILES else NATIVE),
        pooled=POOLED[model.config.pooling],
        prompts="\n".join(
            f"| `{name}` | {text or '(one-word prompt)'} |" for name, text in named_prompts(model.config).items()
        ),
    )
