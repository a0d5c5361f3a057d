"""A UniME checkpoint: one folder that `AutoModel` and `SentenceTransformer` both load, and its way to the Hub."""

import hashlib
import json
import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData, try_to_load_from_cache
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

from .checkpoint_safety import forbid_remote_code, model_files, read_config
from .configuration_unime import UniMEConfig
from .modeling_unime import UniMEModel
from .processing_unime import processor_from_backbone


# Named prompts for sentence-transformers (`encode(..., prompt_name=...)`): the instruction of each kind of query. The
# empty ones leave the one-word prompt of the chat template, so mteb finds a prompt for queries and for documents.
PROMPTS = {
    "query": "",
    "document": "",
    "image": "Represent the given image.",
    "text_to_image": "Find me an everyday image that matches the given caption:",
    "image_to_text": "Find an image caption describing the given everyday image.",
    "composed": "Given an image, find a similar everyday image with the described changes:",
    "classification": "Represent the given image for classification",
    "question": "Represent the given image with the following question:",
    "crop": "Represent the given cropped image of the object",
}


def load_model(path: str, **kwargs) -> tuple[UniMEModel, ProcessorMixin]:
    """Load a UniME checkpoint, or wrap a native image-text backbone.

    Args:
        path (`str`): Folder or Hub id of a UniME checkpoint or of a backbone.
        kwargs: Passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, `quantization_config`, ...).

    Returns:
        `tuple[UniMEModel, ProcessorMixin]`: The model and its processor with UniME's chat template.

    Raises:
        ValueError: The backbone is not an image-text model, its weights are a pickle, or it wants to run code. Or the
            checkpoint is damaged or incomplete.
    """
    own = read_config(path).model_type == UniMEConfig.model_type
    with forbid_remote_code(path):
        if not own:
            model = UniMEModel.from_backbone(path, use_safetensors=True, **kwargs)
            return model, processor_from_backbone(path, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        if processor.chat_template is None:
            raise ValueError(f"{path} lacks chat_template.jinja, its prompt: copy or download the checkpoint again")
        model, report = UniMEModel.from_pretrained(path, use_safetensors=True, output_loading_info=True, **kwargs)
    if report["missing_keys"]:  # transformers would go on with random ones
        raise ValueError(
            f"{path} lacks weights, such as {min(report['missing_keys'])}: copy or download the checkpoint again"
        )
    return model, processor


def redact_home(text: str) -> str:
    """A path or a command as others may read it: `~` in place of the home folder, which names its user."""
    return text.replace(os.path.expanduser("~") + os.sep, "~" + os.sep)


def fingerprint(checkpoint: str) -> str:
    """The commit of a Hub id, or a hash of the contents of a folder's files: a copy of a checkpoint is the same model.

    Files that decide no vector, such as the model card, do not count. A folder is read whole, which takes about as
    long as to load it.

    Args:
        checkpoint (`str`): Folder or Hub id of a checkpoint or backbone.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        cached = try_to_load_from_cache(checkpoint, "config.json")  # in a folder that has the commit's name
        return Path(cached).parent.name if isinstance(cached, str) else "unknown"
    digest = hashlib.blake2b(digest_size=8)
    for path in model_files(folder):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def require_merged_adapters(model: PreTrainedModel) -> None:
    """Refuse a model with unmerged LoRA adapters: its weights alone would not give its embeddings.

    Raises:
        ValueError: The model has unmerged LoRA adapters.
    """
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("this model has unmerged LoRA adapters: merge them first (`model.merge_and_unload()`)")


def save_checkpoint(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    directory: str | Path,
    card: str | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> Path:
    """Write everything that loads: weights, code, processor, template, sentence-transformers modules and a card.

    All files are written beside those that the folder holds, and take their places when the last one is complete.

    Args:
        model ([`UniMEModel`]): The model; LoRA adapters must have been merged into it.
        processor (`ProcessorMixin`): Its processor, with UniME's chat template.
        directory (`str` or `Path`): Where to write; made if absent.
        card (`str`, *optional*, defaults to a short card made from the model): Text of `README.md`.
        state_dict (`dict`, *optional*, defaults to the model's own): The weights, where its own are in shards.

    Returns:
        `Path`: The directory.

    Raises:
        ValueError: The model carries unmerged adapters, or the processor has no chat template.
        OSError: The files cannot be written, because the disk is full, say; the folder holds what it held before.
    """
    require_merged_adapters(model)
    if processor.chat_template is None:
        raise ValueError("this processor has no chat template: load it with `unime.processor_from_backbone`")
    directory = Path(directory)
    backbone = model.config.backbone_config
    backbone._name_or_path = redact_home(backbone._name_or_path)
    part = directory / ".part"
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed here
    try:
        part.mkdir(parents=True)
        model.save_pretrained(part, state_dict=state_dict)
        processor.save_pretrained(part)
        write_sentence_transformer(model, part)
        (part / "README.md").write_text(model_card(model) if card is None else card)
        written = [path.relative_to(part) for path in sorted(part.rglob("*")) if path.is_file()]
        for path in written:
            (directory / path).parent.mkdir(exist_ok=True)
            (part / path).replace(directory / path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{directory} cannot be written ({error}): make room on its disk and save again") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for path in directory.glob("model*.safetensors*"):  # of an earlier save in more or fewer files
        if path.relative_to(directory) not in written:
            path.unlink()
    return directory


def push_checkpoint(model: PreTrainedModel, processor: ProcessorMixin, repo_id: str, private: bool = False) -> str:
    """Save a checkpoint as [`save_checkpoint`] does and upload it to the Hub; returns the commit's address."""
    with tempfile.TemporaryDirectory() as directory:
        return push_folder(save_checkpoint(model, processor, directory), repo_id, private)


def push_folder(directory: Path, repo_id: str, private: bool = False) -> str:
    """Upload a saved checkpoint, card and all, to a repository of the Hub; returns the commit's address."""
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=directory))


def model_card(model: PreTrainedModel, sections: str = "", **metadata: Any) -> str:
    """Fill the model card's template.

    Args:
        model ([`UniMEModel`]): Says its backbone, its size and its dimensions.
        sections (`str`, *optional*): Markdown that follows: results, training, limits, licences.
        metadata: What the Hub reads beside the defaults: fields of [`~huggingface_hub.ModelCardData`] (`base_model`,
            `datasets`, `license`, `model_name` with `eval_results`, ...).
    """
    template = (files("unime") / "model_cards" / "template.md").read_text()
    tags = ["multimodal-embedding", "sentence-transformers", "unime", "transformers"]
    data = ModelCardData(
        **{"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity", "tags": tags} | metadata
    )
    return template.format(
        metadata=data.to_yaml(),
        sections=sections.strip(),
        backbone=model.config.backbone_config.model_type,
        parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M",
        dimensions=model.config.hidden_size,
        prompts="\n".join(f"| `{name}` | {text or '(one-word prompt)'} |" for name, text in PROMPTS.items()),
    )


def write_sentence_transformer(model: PreTrainedModel, directory: Path) -> None:
    """Describe the folder to sentence-transformers with its own classes only: Transformer, Pooling, Normalize."""
    package = "sentence_transformers."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": package + "base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": package + "sentence_transformer.modules.pooling.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": package + "base.modules.normalize.Normalize"},
    ]
    method = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": method,
            "image": method,
            "message": method | {"format": "structured"},
        },
        "module_output_name": "token_embeddings",
    }
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": PROMPTS,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "requirements": {
            "sentence-transformers": {"specifier": ">=6.2", "reason": "items are rendered through the chat template"},
            "transformers": {
                "specifier": ">=5.17",
                "reason": "the backbone is loaded without its language-model head",
            },
        },
    }
    contents = {
        "modules.json": modules,
        "sentence_bert_config.json": transformer,
        "config_sentence_transformers.json": settings,
        "1_Pooling/config.json": {
            "embedding_dimension": model.config.hidden_size,
            "pooling_mode": "lasttoken",
            "include_prompt": True,
        },
        "2_Normalize/config.json": {},
    }
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
