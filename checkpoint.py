"""UniME checkpoints: one folder that `AutoModel` and `SentenceTransformer` load, saved locally or on the Hub."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from importlib.metadata import requires
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData, try_to_load_from_cache
from packaging.requirements import Requirement
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME, has_file

from .adapters import merge_saved_adapter
from .checkpoint_safety import (
    ADAPTER_CONFIG,
    adapter_base,
    forbid_remote_code,
    give_weights_the_umask,
    model_files,
    read_config,
)
from .configuration_unime import UniMEConfig
from .image_size import ImageSize, set_image_size
from .image_tokens_unime import square_of
from .llava_qwen import KEY_MAPPING, is_llava_qwen, llava_qwen_processor
from .modeling_unime import UniMEModel, require_all_weights
from .native_form import NoNativeFormError, save_native
from .presets import Preset, find_preset
from .processing_unime import TEMPLATE_HEAD, chat_template
from .unime_phi3_v import Phi3VConfig


logger = logging.getLogger(__name__)

# A checkpoint contains the code that loads it as UniME (`auto_map`). One that native classes cannot load has the type
# "unime", for which the classes of this package are used where it is installed.
UniMEConfig.register_for_auto_class()
UniMEModel.register_for_auto_class("AutoModel")
AutoConfig.register(UniMEConfig.model_type, UniMEConfig, exist_ok=True)
AutoModel.register(UniMEConfig, UniMEModel, exist_ok=True)
AUTO_MAP = {"AutoConfig": "configuration_unime.UniMEConfig", "AutoModel": "modeling_unime.UniMEModel"}
MODELING_FILE = Path(__file__).with_name("modeling_unime.py")
# Backbones that transformers lacks -> the file of the checkpoint that registers them before it loads UniME.
ENTRY_FILES = {Phi3VConfig.model_type: Path(__file__).with_name("unime_phi3_v.py")}

# Named prompts for sentence-transformers (`encode(..., prompt_name=...)`): the instruction of each kind of query.
# Empty ones select the one-word prompt of the chat template; mteb needs one for queries and one for documents.
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

POOLING_MODES = {"last": "lasttoken", "mean": "mean"}  # names of sentence-transformers
RENDERS_MESSAGES = {"specifier": ">=6.2", "reason": "items are rendered through the chat template"}
SQUARE_IMAGES = {
    "specifier": "<0",
    "reason": "this model reads images as squares, which no version can do: load it with unime.load_model",
}


def named_prompts(config: UniMEConfig) -> dict[str, str]:
    """Return the instruction of each kind of query: UniME's, or those that the model was trained with."""
    return PROMPTS | (config.prompts or {})


def load_model(
    path: str, image_size: ImageSize | None = None, preset: str | None = None, **kwargs
) -> tuple[UniMEModel, ProcessorMixin]:
    """Load a UniME checkpoint, a published embedder as its authors run it, or wrap a native image-text backbone.

    A LoRA or DoRA adapter, trained by UniME or by others, is merged into the model that it was trained on.

    Args:
        path (`str`): Folder or Hub id of a UniME checkpoint, of a published embedder, of a backbone, or of an adapter.
        image_size (`int`, `dict` or `str`, *optional*): The size at which the model reads images, such as 336, or
            arguments of its image processor; see [`set_image_size`]. Defaults to the preset's, or to the size saved
            with the checkpoint.
        preset (`str`, *optional*): How the authors of a published embedder run it: the name of a preset, the path of a
            JSON file of the same form, `"none"` for UniME's own prompt, or `"keep"` for the checkpoint's own chat
            template. Defaults to the preset of the id, see [`find_preset`]; a UniME checkpoint keeps what it was saved
            with.
        kwargs: Passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, `quantization_config`, ...).

    Returns:
        `tuple[UniMEModel, ProcessorMixin]`: The model, and its processor with the chat template that it was trained
        with, or UniME's.

    Raises:
        FileNotFoundError: The path, the preset, or the base of an adapter does not exist.
        ValueError: The backbone is not an image-text model, its weights are a pickle, it requires code of its own,
            the checkpoint is damaged or incomplete, an adapter does not fit its base or shall be merged into quantized
            weights, the model cannot read images at `image_size`, or the preset does not fit the model.
        MissingExtraError: The path is an adapter, and PEFT is not installed.
    """
    chosen = _preset_of(path, preset)
    if chosen is not None:
        logger.warning("%s is run as its authors run it: preset %s (%s)", path, chosen.name, chosen.family)
        kwargs = {"dtype": chosen.dtype} | kwargs if chosen.dtype else kwargs
    is_unime = read_config(path).model_type == UniMEConfig.model_type
    if not is_unime:
        model = _load_weights(path, is_unime, **kwargs)
        processor = load_processor(path, image_size, preset)
    else:
        processor = load_processor(path, image_size, preset)
        model = _load_weights(path, is_unime, **kwargs)
    if chosen is not None:
        chosen.apply_to_config(model.config)
    share_image_grids(processor, model)
    return model, processor


def _load_weights(path: str, is_unime: bool, **kwargs: Any) -> UniMEModel:
    base = adapter_base(path)
    if base is not None:
        if kwargs.get("quantization_config") is not None:
            raise ValueError(
                f"the adapter in {path} cannot be merged into quantized weights: write a merged checkpoint with "
                f"`unime export --model {path} --output FOLDER` and load that one"
            )
        model = _load_weights(base, is_unime, **kwargs)
        merge_saved_adapter(model, path)
        return model
    with forbid_remote_code(path):
        if not is_unime:
            if is_llava_qwen(read_config(path)):
                kwargs = {"key_mapping": KEY_MAPPING} | kwargs
            return UniMEModel.from_backbone(path, use_safetensors=True, **kwargs)
        model, report = UniMEModel.from_pretrained(path, use_safetensors=True, output_loading_info=True, **kwargs)
    require_all_weights(path, report["missing_keys"])
    return model


def load_processor(path: str, image_size: ImageSize | None = None, preset: str | None = None) -> ProcessorMixin:
    """Load the processor of a checkpoint or backbone, as [`load_model`] does, without the weights.

    An adapter has the processor that was saved with it, or else that of its base.

    Args:
        path (`str`): Folder or Hub id of a UniME checkpoint, of a backbone, or of an adapter.
        image_size (`int`, `dict` or `str`, *optional*): The size at which the model reads images; see
            [`set_image_size`].
        preset (`str`, *optional*): How the authors of a published embedder run it; see [`load_model`].

    Raises:
        FileNotFoundError: There is no such folder or preset.
        ValueError: The checkpoint is damaged or has no chat template, the model cannot read images at `image_size`, or
            the preset does not fit the model.
    """
    chosen = _preset_of(path, preset)
    base = adapter_base(path)
    if base is not None and not has_file(path, PROCESSOR_NAME):
        return load_processor(base, image_size, preset or (chosen.name if chosen else None))
    config = read_config(path)
    is_unime = config.model_type == UniMEConfig.model_type
    with forbid_remote_code(path):
        if is_llava_qwen(config):
            processor = llava_qwen_processor(path, config)
        else:
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    has_unime_template = is_unime or TEMPLATE_HEAD in (processor.chat_template or "")
    if chosen is not None and not (preset is None and has_unime_template):
        chosen.apply_to_processor(processor)
    elif not has_unime_template:
        processor.chat_template = chat_template(processor)
    if processor.chat_template is None:
        raise ValueError(
            f"{path} has no chat_template.jinja, which holds its prompts: copy or download the checkpoint again"
        )
    set_image_size(processor, image_size)
    return processor


def _preset_of(path: str, preset: str | None) -> Preset | None:
    """Return the preset to load a checkpoint with, which must fit the type of its backbone.

    An adapter without a preset of its own has that of its base.
    """
    chosen = find_preset(path, preset)
    config, base = read_config(path), adapter_base(path)
    is_unime = config.model_type == UniMEConfig.model_type
    if preset is None and is_unime:
        return None
    if chosen is None:
        return None if base is None or preset is not None else _preset_of(base, None)
    model_type = config.backbone_config.model_type if is_unime else config.model_type
    if chosen.model_types and model_type not in chosen.model_types:
        raise ValueError(
            f"the preset {chosen.name} is for models of type {' or '.join(chosen.model_types)}, but {path} is of type "
            f"'{model_type}': pass preset='none', or the preset of its family"
        )
    return chosen


def share_image_grids(processor: ProcessorMixin, model: UniMEModel) -> None:
    """Give a model the grids of tiles of its processor; LLaVA-1.6 and LLaVA-OneVision have them in both.

    Args:
        processor (`ProcessorMixin`): The processor.
        model ([`UniMEModel`]): The model; its configuration is changed.
    """
    grids = processor.image_processor.to_dict().get("image_grid_pinpoints")
    if grids is not None:
        for config in (model.config.backbone_config, model.backbone.config):
            config.image_grid_pinpoints = grids


def redact_home(text: str) -> str:
    """Replace the home folder in a path or a command by `~`, because it names the user."""
    return text.replace(os.path.expanduser("~") + os.sep, "~" + os.sep)


def fingerprint(checkpoint: str) -> str:
    """Return the commit of a Hub id, or a hash of a folder's model files, so that a copy counts as the same model.

    Files that do not affect embeddings, such as the model card, are left out. The whole folder is read, which takes
    about as long as loading it.

    Args:
        checkpoint (`str`): Folder or Hub id of a checkpoint or backbone.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        for name in (CONFIG_NAME, ADAPTER_CONFIG):
            cached = try_to_load_from_cache(checkpoint, name)
            if isinstance(cached, str):  # its folder is named after the commit
                return Path(cached).parent.name
        return "unknown"
    digest = hashlib.blake2b(digest_size=8)
    for path in model_files(folder):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "blake2b").digest())
    base = adapter_base(folder)
    if base is not None:
        digest.update(fingerprint(base).encode())
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
    """Save weights, code, processor, chat template, sentence-transformers modules and a model card in one folder.

    Native classes load the folder without its code, and so do sentence-transformers and serving engines; `AutoModel`
    with `trust_remote_code=True` loads it as a [`UniMEModel`]. A model that the native class cannot reproduce needs
    `trust_remote_code=True` everywhere; the log says why.

    All files are first written to a temporary subfolder. They replace those in the folder when the last one is
    complete.

    Args:
        model ([`UniMEModel`]): The model, with LoRA adapters merged.
        processor (`ProcessorMixin`): Its processor, with UniME's chat template.
        directory (`str` or `Path`): Folder to write to; created if needed.
        card (`str`, *optional*, defaults to a short card): Text of `README.md`.
        state_dict (`dict`, *optional*, defaults to the model's own): Weights to save, for a sharded model.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: The model has unmerged adapters, or the processor has no chat template.
        OSError: The files cannot be written, for example because the disk is full. The folder keeps its old content.
    """
    require_merged_adapters(model)
    if processor.chat_template is None:
        raise ValueError("this processor has no chat template: load it with `unime.processor_from_backbone`")
    directory = Path(directory)
    backbone = model.config.backbone_config
    backbone._name_or_path = redact_home(backbone._name_or_path)
    part = directory / ".part"
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed here
    try:
        part.mkdir(parents=True)
        _save_model(model, processor, part, state_dict)
        give_weights_the_umask(part)
        write_sentence_transformer(model, processor, part)
        (part / "README.md").write_text(model_card(model) if card is None else card)
        written = [path.relative_to(part) for path in sorted(part.rglob("*")) if path.is_file()]
        for path in written:
            (directory / path).parent.mkdir(exist_ok=True)
            (part / path).replace(directory / path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {directory} ({error}): free disk space and save again") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for path in directory.glob("model*.safetensors*"):  # left by an earlier save with another number of files
        if path.relative_to(directory) not in written:
            path.unlink()
    return directory


def _save_model(
    model: PreTrainedModel, processor: ProcessorMixin, folder: Path, state_dict: dict[str, Tensor] | None
) -> None:
    """Write weights, configuration, code and processor, in the native form if there is one."""
    backbone_type = model.config.backbone_config.model_type
    entry = ENTRY_FILES.get(backbone_type)
    try:
        if entry is not None:
            raise NoNativeFormError(f"transformers lacks backbones of type '{backbone_type}'")
        save_native(model, processor, folder, state_dict)
        _write_code(folder, MODELING_FILE, AUTO_MAP)
    except NoNativeFormError as reason:
        logger.warning("%s loads with trust_remote_code=True only: %s", folder.parent, reason)
        # With the prefix `backbone.`, transformers would not reverse a renaming to the names of the original weights.
        model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
        if entry is not None:
            _write_code(folder, entry, {key: f"{entry.stem}.{name.split('.')[1]}" for key, name in AUTO_MAP.items()})
        processor.save_pretrained(folder)


def _write_code(folder: Path, file: Path, auto_map: dict[str, str]) -> None:
    """Write a file with all files that it imports, and let the configuration name the classes in them."""
    for source in (file, *map(Path, get_relative_import_files(file))):
        shutil.copy(source, folder)
    path = folder / CONFIG_NAME
    config = json.loads(path.read_text()) | {"auto_map": auto_map}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def push_checkpoint(model: PreTrainedModel, processor: ProcessorMixin, repo_id: str, private: bool = False) -> str:
    """Save a checkpoint as [`save_checkpoint`] does, upload it to the Hub, and return the URL of the commit.

    Args:
        model ([`UniMEModel`]): The model, with LoRA adapters merged.
        processor (`ProcessorMixin`): Its processor.
        repo_id (`str`): Hub id of the repository; created if needed.
        private (`bool`, *optional*, defaults to `False`): Whether a new repository is private.
    """
    with tempfile.TemporaryDirectory() as directory:
        return push_folder(save_checkpoint(model, processor, directory), repo_id, private)


def push_folder(directory: Path, repo_id: str, private: bool = False) -> str:
    """Upload a saved checkpoint, including its model card, to the Hub and return the URL of the commit.

    Args:
        directory (`Path`): Folder of the checkpoint.
        repo_id (`str`): Hub id of the repository; created if needed.
        private (`bool`, *optional*, defaults to `False`): Whether a new repository is private.
    """
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=directory))


def model_card(model: PreTrainedModel, sections: str = "", **metadata: Any) -> str:
    """Return a model card from the template.

    Args:
        model ([`UniMEModel`]): The model; the card states its backbone, its size and its dimensions.
        sections (`str`, *optional*): Markdown that follows: results, training, limitations, licenses.
        metadata: Additional or replaced metadata for the Hub: fields of [`~huggingface_hub.ModelCardData`]
            (`base_model`, `datasets`, `license`, `model_name` with `eval_results`, ...).
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
        prompts="\n".join(
            f"| `{name}` | {text or '(one-word prompt)'} |" for name, text in named_prompts(model.config).items()
        ),
    )


def _requirement(package: str) -> str:
    """Return the version specifier of a dependency, which `pyproject.toml` states."""
    core = (requirement for requirement in map(Requirement, requires("unime") or ()) if requirement.marker is None)
    return str(next(requirement.specifier for requirement in core if requirement.name == package))


def write_sentence_transformer(model: PreTrainedModel, processor: ProcessorMixin, directory: Path) -> None:
    """Write the files that sentence-transformers needs, naming only its own classes: Transformer, Pooling, Normalize.

    sentence-transformers resizes images as the processor does. Where they are resized to a square first, these files
    state a requirement that no version meets, so that it gives the reason instead of other embeddings.

    Args:
        model ([`UniMEModel`]): The model.
        processor (`ProcessorMixin`): Its processor.
        directory (`Path`): Folder of the checkpoint.
    """
    squares_images = square_of(processor) is not None
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
        "prompts": named_prompts(model.config),
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "requirements": {
            "sentence-transformers": SQUARE_IMAGES if squares_images else RENDERS_MESSAGES,
            "transformers": {
                "specifier": _requirement("transformers"),
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
            "pooling_mode": POOLING_MODES[model.config.pooling],
            "include_prompt": True,
        },
        "2_Normalize/config.json": {},
    }
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
