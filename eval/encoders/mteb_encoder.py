"""UniME for mteb (MTEB and its image tasks): the encoder, and the `ModelMeta` of a submission.

    import mteb
    from unime.eval.encoders.mteb_encoder import model_meta

    meta = model_meta("checkpoints/unime-tiny", name="unime/unime-tiny")
    tasks = mteb.get_tasks(["STSBenchmark", "Flickr30kT2IRetrieval"])
    results = mteb.evaluate(meta, tasks, cache=mteb.ResultCache("runs/mteb"))
    print(results.to_dataframe())
    print(meta.to_python())

mteb stores scores by name and revision in `runs/mteb/results` and does not compute them again. To submit a model, copy
the part of this file above `model_meta` and the printed `ModelMeta` into a file of
`mteb/models/model_implementations`, and the folder of scores into mteb's results repository. That part runs without
this package if the checkpoint may run its own code: `loader_kwargs={"trust_remote_code": True}`.
"""

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCardData, get_local_safetensors_metadata, metadata_load, snapshot_download
from jinja2 import TemplateError
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.modality_collators import FramesCollator
from mteb.types import PromptType
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModel, AutoProcessor


ENCODE_WINDOW_ITEMS = 512  # items to collect and sort at a time; mteb's own batches may hold a single image
VIDEO_FRAMES = 8  # evenly spaced, as in MMEB-V2
MAX_WINDOW_PIXELS = 2**25  # ends a window earlier: 134 MB, as Pillow takes 4 bytes for a pixel
BYTES_PER_PARAMETER = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # by safetensors type


class UniMEEncoder(AbsEncoder):
    """An mteb encoder: the text, image and video of a row form one item, and mteb's instruction becomes the item's.

    A video is read by the checkpoint's video processor if it has one, else as separate images.

    The instruction is the first that exists of: the one in `prompts` (in mteb's order: task and side, task, task type
    and side, task type, side), the task's for this side, none. A task's only prompt applies to queries and to tasks
    without sides, never to documents. Without an instruction the checkpoint's one-word prompt is used, as when mteb
    runs the folder as a SentenceTransformer.

    Args:
        name (`str`): Hub id, or for a folder its name as `organization/model`.
        revision (`str`, *optional*): Commit of the Hub id.
        device (`str`, *optional*, defaults to the GPU if there is one): Device of the model.
        path (`str`, *optional*, defaults to `name`): Folder to read instead of the Hub.
        prompts (`dict[str, str]`, *optional*): Instructions by task, task type or side, such as
            `{"document": "Represent the given image.", "Any2AnyRetrieval-query": "Find an image of:"}`.
        max_length (`int`, *optional*, defaults to the tokenizer's): Maximum number of tokens per item.
        micro_batch_tokens (`int`, *optional*, defaults to the model's `default_micro_batch_tokens`): Token budget of a
            micro-batch.
        embed_dim (`int`, *optional*): Number of leading dimensions to keep (Matryoshka).
        num_frames (`int`, *optional*, defaults to 8): Number of evenly spaced frames to read of a video.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run the checkpoint's own code, which needs no
            package, instead of this package's.
        kwargs: Passed to [`UniMEModel.from_pretrained`] (`dtype`, `attn_implementation`, ...).

    Raises:
        ImportError: This package is not installed, and `trust_remote_code` is `False`.
        KeyError: A key of `prompts` is not a task, task type or side.
        ValueError: The checkpoint lacks weights.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        device: str | None = None,
        *,
        path: str | None = None,
        prompts: dict[str, str] | None = None,
        max_length: int | None = None,
        micro_batch_tokens: int | None = None,
        embed_dim: int | None = None,
        num_frames: int = VIDEO_FRAMES,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ):
        self.model_prompts = self.validate_task_to_prompt_name(prompts)
        source: dict[str, Any] = {
            "pretrained_model_name_or_path": path or name,
            "revision": None if path else revision,
        }
        source["trust_remote_code"] = trust_remote_code
        AutoConfig.from_pretrained(**source)  # refuses a model that needs code of its own
        self.processor = AutoProcessor.from_pretrained(**source)
        # By name, because this part of the file is copied to mteb.
        model_class = AutoModel if trust_remote_code else import_module("unime").UniMEModel
        model, report = model_class.from_pretrained(**source, use_safetensors=True, output_loading_info=True, **kwargs)
        if report["missing_keys"]:
            raise ValueError(f"{path or name} has no weights for {min(report['missing_keys'])}: download it again")
        self.model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.num_frames = num_frames
        self.limits = {"max_length": max_length, "micro_batch_tokens": micro_batch_tokens, "truncate_dim": embed_dim}

    def encode(
        self,
        inputs: DataLoader,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool = True,
    ) -> np.ndarray:
        """Embed the rows of a task.

        Args:
            inputs (`DataLoader`): Batches with one or more of the columns `text`, `image` and `video`.
            task_metadata (`TaskMetadata`): Name and prompt of the task.
            hf_split (`str`): Split of the task; ignored.
            hf_subset (`str`): Subset of the task; ignored.
            prompt_type (`PromptType`, *optional*): Query or document; `None` if the task has no sides.
            batch_size (`int`, *optional*): Size of mteb's batches; ignored, `micro_batch_tokens` applies instead.
            show_progress_bar (`bool`, *optional*, defaults to `True`): Show a progress bar.

        Returns:
            `np.ndarray` of shape `(rows, dimensions)`, float32: Unit vectors in the order of the rows.

        Raises:
            ValueError: A batch has none of these columns.
        """
        instruction = self.instruction(task_metadata, prompt_type)
        windows = item_windows(inputs, task_metadata.name, instruction, self.num_frames)
        return np.concatenate([self.encode_items(window, show_progress_bar) for window in windows])

    def encode_items(self, items: list[dict[str, Any]], show_progress_bar: bool) -> np.ndarray:
        """Embed items, `(N, dimensions)`."""
        if any("video" in item for item in items) and not self._reads_videos():
            # The frames of a video come before the text, as images do.
            items = [{"image" if key == "video" else key: value for key, value in item.items()} for item in items]
        return self.model.encode(items, self.processor, show_progress_bar=show_progress_bar, **self.limits)

    def _reads_videos(self) -> bool:
        """Return whether the chat template has a place for videos; the package may not be installed."""
        video = [{"role": "user", "content": [{"type": "video", "video": []}]}]
        try:
            prompt = self.processor.apply_chat_template(video, tokenize=False, with_times=True)
        except TemplateError:
            return False
        video_token = vars(self.processor).get("video_token")
        return video_token is not None and video_token in prompt

    def instruction(self, task: TaskMetadata, prompt_type: PromptType | None) -> str | None:
        """Return the instruction of a task's queries, of its documents, or of its items if it has no sides."""
        name = self.get_prompt_name(task, prompt_type)
        if name is not None:
            return self.model_prompts[name]
        if isinstance(task.prompt, dict):
            return task.prompt.get(prompt_type.value) if prompt_type else None
        return None if prompt_type == PromptType.document else task.prompt


def _items(inputs: DataLoader, task: str, instruction: str | None, num_frames: int) -> Iterator[dict[str, Any]]:
    for batch in inputs:
        columns = [column for column in ("text", "image", "video") if column in batch]
        if not columns:  # where there is audio beside others, mteb itself warns that it is not read
            raise ValueError(
                f"task '{task}' has the columns {', '.join(batch)}, but UniME embeds text, image and video; skip it"
            )
        for values in zip(*(batch[column] for column in columns), strict=True):
            item = dict(zip(columns, values, strict=True)) | {"instruction": instruction}
            if "video" in item:
                item["video"] = _frames(item["video"], num_frames)
            yield item


def _frames(video: Any, num_frames: int) -> list[Image.Image]:
    """Return evenly spaced frames of a video, a list of images or torchcodec's decoder of a file."""
    if isinstance(video, list):
        count = min(num_frames, len(video))
        return [video[index] for index in np.linspace(0, len(video) - 1, count).round().astype(int)]
    count = min(num_frames, video.metadata.num_frames)
    frames = FramesCollator.resample_video(video, num_frames=count)
    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames.cpu()]


def _pixels(item: dict[str, Any]) -> int:
    images = [*item.get("video", ()), *([item["image"]] if "image" in item else [])]
    return sum(image.width * image.height for image in images)


def item_windows(
    inputs: DataLoader, task: str, instruction: str | None, num_frames: int = VIDEO_FRAMES
) -> Iterator[list[dict[str, Any]]]:
    """Yield the items of a task's batches in windows that fit the memory.

    Args:
        inputs (`DataLoader`): As in [`UniMEEncoder.encode`].
        task (`str`): Name of the task, for errors.
        instruction (`str`, *optional*): Instruction of the items.
        num_frames (`int`, *optional*, defaults to 8): Number of frames of a video.

    Raises:
        ValueError: A batch has no text, image or video.
    """
    window, pixels = [], 0
    for item in _items(inputs, task, instruction, num_frames):
        window.append(item)
        pixels += _pixels(item)
        if len(window) == ENCODE_WINDOW_ITEMS or pixels >= MAX_WINDOW_PIXELS:
            yield window
            window, pixels = [], 0
    if window:
        yield window


def model_meta(path: str, name: str | None = None, revision: str | None = None, **fields: Any) -> ModelMeta:
    """Create mteb's description of a checkpoint; `mteb.evaluate(model_meta(...), tasks)` runs it.

    Args:
        path (`str`): Folder or Hub id of a UniME checkpoint.
        name (`str`, *optional*, defaults to `path`): Its Hub id, `organization/model`. Required for a folder.
        revision (`str`, *optional*): Key under which mteb stores scores, with the name. Defaults to the newest commit
            on the Hub, or for a folder to a hash of its files' names, sizes and modification times.
        fields: Fields of `mteb.ModelMeta` to add or override: `release_date`, `training_datasets` (mteb's names),
            `public_training_code`, `loader_kwargs` (arguments of [`UniMEEncoder`], such as `{"prompts": {...}}`),
            `embed_dim` (a list, for Matryoshka), ...

    Raises:
        ValueError: The path is not a UniME checkpoint, or a folder has no name of the form `organization/model`.
    """
    from ...batching_unime import default_max_length
    from ...checkpoint import fingerprint
    from ...checkpoint_safety import forbid_remote_code, read_config, refuse_adapter

    local = Path(path).is_dir()
    if local and (name is None or "/" not in name):
        raise ValueError(f"the folder {path} needs a name for mteb; pass name='organization/model', got {name!r}")
    folder = path if local else snapshot_download(path, revision=revision)
    config = read_config(folder)
    refuse_adapter(folder)
    if config.model_type != "unime":
        raise ValueError(
            f"{path} has model_type '{config.model_type}' and is not a UniME checkpoint; create one with "
            "`unime.save_checkpoint`"
        )
    text_config = config.backbone_config.get_text_config()
    with forbid_remote_code(folder):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    card = ModelCardData(**(metadata_load(Path(folder, "README.md")) or {}), ignore_metadata_errors=True)
    parameter_count = get_local_safetensors_metadata(folder).parameter_count
    name = name or path
    defaults = {
        # The path is not part of `loader_kwargs`, so that the printed and stored description fits other machines.
        "loader": partial(UniMEEncoder, path=str(folder)),
        "name": name,
        "revision": (revision or fingerprint(path)) if local else Path(folder).name,  # a snapshot is named by commit
        "release_date": None,
        "languages": None,
        "n_parameters": sum(parameter_count.values()),
        "n_embedding_parameters": text_config.vocab_size * text_config.hidden_size,
        "memory_usage_mb": round(
            sum(BYTES_PER_PARAMETER.get(dtype, 1) * count for dtype, count in parameter_count.items()) / 2**20
        ),
        "max_tokens": default_max_length(processor, config.backbone_config),
        "embed_dim": config.hidden_size,
        "license": None if card.license == "other" else card.license,
        "open_weights": True,
        "public_training_code": None,
        "public_training_data": None,
        "framework": ["Sentence Transformers", "PyTorch", "Transformers", "safetensors"],
        "reference": f"https://huggingface.co/{name}",
        "similarity_fn_name": "cosine",
        "use_instructions": True,
        "training_datasets": None,
        "adapted_from": card.base_model if isinstance(card.base_model, str) else None,
        # Without torchcodec, which decodes the videos of tasks, mteb loads no model that lists them.
        "modalities": ["image", "text", *(["video"] if find_spec("torchcodec") else [])],
    }
    return ModelMeta(**defaults | fields)
