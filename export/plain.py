"""Plain export: the backbone under its native class, so that serving engines load it without remote code."""

from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import ProcessorMixin

from ..checkpoint import ENTRY_FILES, named_prompts, require_merged_adapters, write_sentence_transformer
from ..checkpoint_safety import give_weights_the_umask
from ..modeling_unime import UniMEModel
from ..native_form import NoNativeFormError, save_native


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

`SentenceTransformer.encode` fetches a text that is the URL of an image, and opens one that is the path of an image:
pass texts of others as `{{"text": text}}`, which it only reads.
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
    try:
        native = save_native(model, processor, directory)
    except NoNativeFormError as reason:
        raise ValueError(f"{reason}: this model has no plain export, use the original checkpoint") from None
    give_weights_the_umask(directory)
    write_sentence_transformer(model, processor, directory)
    (directory / "README.md").write_text(_plain_card(model, native.__name__, metadata))
    return directory


def new_folder(directory: str | Path) -> Path:
    """Create a folder, or refuse one that holds files, which would seem to be part of the export."""
    directory = Path(directory)
    if directory.is_dir() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty: choose a new folder")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


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
