"""A UniME checkpoint in mteb (MTEB and its image tasks): the encoder, and the `ModelMeta` of a submission.

    import mteb
    from unime.eval.encoders.mteb_encoder import model_meta

    meta = model_meta("checkpoints/unime-tiny", name="unime/unime-tiny")
    tasks = mteb.get_tasks(["STSBenchmark", "Flickr30kT2IRetrieval"])
    results = mteb.evaluate(meta, tasks, cache=mteb.ResultCache("runs/mteb"))
    print(results.to_dataframe())
    print(meta.to_python())

mteb keeps scores per name and revision under `runs/mteb/results`, and computes none a second time. To submit, put the
part of this file above `model_meta`, which runs without this package, and the printed `ModelMeta` into a file of
`mteb/models/model_implementations`, and the folder of scores into mteb's repository of results.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCardData, get_local_safetensors_metadata, metadata_load, snapshot_download
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoProcessor

from ...checkpoint import fingerprint as revision_of
from ...checkpoint_safety import forbid_remote_code, read_config


WINDOW = 512  # items held, images decoded, and sorted at a time; mteb's own batches may be as small as one image
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of one parameter, by safetensors' names of types


class UniMEEncoder(AbsEncoder):
    """Embeds mteb's batches: what a row holds of text and image is one item, mteb's instruction is the item's.

    The instruction is the first of: that of `prompts` (by mteb's order: task and side, task, task type and side, task
    type, side), that of the task for this side, none. A task's single prompt is for queries and for what has no side,
    never for documents. Without an instruction the checkpoint's one-word prompt stands, as it does where mteb runs
    the folder as a SentenceTransformer.

    Args:
        name (`str`): Hub id, or a folder's name of the form `organization/model`.
        revision (`str`, *optional*): Commit of the Hub id.
        device (`str`, *optional*, defaults to the GPU where there is one): Where it computes.
        path (`str`, *optional*, defaults to `name`): Folder that is read in place of the Hub.
        prompts (`dict[str, str]`, *optional*): Instructions by task, task type or side, such as
            `{"document": "Represent the given image.", "Any2AnyRetrieval-query": "Find an image of:"}`.
        max_length (`int`, *optional*, defaults to the tokenizer's): Most tokens of one item.
        max_tokens (`int`, *optional*, defaults to the model's `default_micro_batch_tokens`): Of a micro-batch.
        embed_dim (`int`, *optional*): Leading dimensions to keep (Matryoshka).
        trust_remote_code (`bool`, *optional*): Run the checkpoint's own code, where this package is not installed.
        kwargs: Passed to `AutoModel.from_pretrained` (`dtype`, `attn_implementation`, ...).

    Raises:
        KeyError: A key of `prompts` names no task, task type or side.
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
        trust_remote_code: bool = False,
        **kwargs: Any,
    ):
        self.model_prompts = self.validate_task_to_prompt_name(prompts)
        source = {"pretrained_model_name_or_path": path or name, "revision": None if path else revision}
        source["trust_remote_code"] = trust_remote_code
        self.processor = AutoProcessor.from_pretrained(**source)
        model = AutoModel.from_pretrained(**source, use_safetensors=True, **kwargs)
        self.model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
        """Embed all rows that mteb gives.

        Args:
            inputs (`DataLoader`): Batches with a column `text`, a column `image`, or both.
            task_metadata (`TaskMetadata`): Names the task and holds its prompt.
            hf_split, hf_subset (`str`): Which part of the task; the embedding does not depend on it.
            prompt_type (`PromptType`, *optional*): Query or document; absent where the task has no sides.
            batch_size (`int`, *optional*): Size of mteb's batches; the token budget `micro_batch_tokens` counts here.
            show_progress_bar (`bool`, *optional*, defaults to `True`): Show progress.

        Returns:
            `np.ndarray` of shape `(rows, dimensions)`, float32: Unit vectors in the order of the rows.

        Raises:
            ValueError: A batch has neither of the two columns.
        """
        items = _items(inputs, task_metadata.name, self.instruction(task_metadata, prompt_type))
        parts = []
        while window := list(islice(items, WINDOW)):
            parts.append(self.model.encode(window, self.processor, show_progress_bar=show_progress_bar, **self.limits))
        return np.concatenate(parts)

    def instruction(self, task: TaskMetadata, prompt_type: PromptType | None) -> str | None:
        """The instruction of a task's queries, of its documents, or of its items where it has no sides."""
        name = self.get_prompt_name(task, prompt_type)
        if name is not None:
            return self.model_prompts[name]
        if isinstance(task.prompt, dict):
            return task.prompt.get(prompt_type.value) if prompt_type else None
        return None if prompt_type == PromptType.document else task.prompt


def _items(inputs: DataLoader, task: str, instruction: str | None) -> Iterator[dict[str, Any]]:
    for batch in inputs:
        columns = [column for column in ("text", "image") if column in batch]
        if not columns:
            raise ValueError(
                f"task '{task}' gives {', '.join(batch)}, but UniME embeds texts and images: leave this task out"
            )
        for values in zip(*(batch[column] for column in columns), strict=True):
            yield dict(zip(columns, values, strict=True)) | {"instruction": instruction}


def model_meta(path: str, name: str | None = None, revision: str | None = None, **fields: Any) -> ModelMeta:
    """Fill mteb's description of a model from a checkpoint; `mteb.evaluate(model_meta(...), tasks)` runs it.

    Args:
        path (`str`): Folder or Hub id of a UniME checkpoint.
        name (`str`, *optional*, defaults to `path`): Its Hub id, `organization/model`.
        revision (`str`, *optional*, defaults to the Hub's newest commit, or a hash of the folder's files' names, sizes
            and times): What mteb keeps scores under, beside the name.
        fields: Other fields of `mteb.ModelMeta`, or other values than the checkpoint's: `release_date`,
            `training_datasets` (mteb's names), `public_training_code`, `loader_kwargs` (such as `{"prompts": {...}}`,
            arguments of [`UniMEEncoder`]), `embed_dim` (a list, for Matryoshka), ...

    Raises:
        ValueError: The path holds no UniME checkpoint, or a folder has no name of the form `organization/model`.
    """
    local = Path(path).is_dir()
    if local and (name is None or "/" not in name):
        raise ValueError(f"the folder {path} needs a name for mteb: pass name='organization/model', got {name!r}")
    folder = path if local else snapshot_download(path, revision=revision)
    config = read_config(folder)
    if config.model_type != "unime":
        raise ValueError(
            f"{path} is of type '{config.model_type}', no UniME checkpoint: write one with `unime.save_checkpoint`"
        )
    text_config = config.backbone_config.get_text_config()
    with forbid_remote_code(folder):
        tokenizer = AutoProcessor.from_pretrained(folder, trust_remote_code=False).tokenizer
    card = ModelCardData(**(metadata_load(Path(folder, "README.md")) or {}), ignore_metadata_errors=True)
    parameters = get_local_safetensors_metadata(folder).parameter_count
    name = name or path
    known = {
        # Without the folder's own path in `loader_kwargs`, what is printed and stored fits other machines too.
        "loader": partial(UniMEEncoder, path=str(folder)),
        "name": name,
        "revision": (revision or revision_of(path)) if local else Path(folder).name,  # the latter is the commit
        "release_date": None,
        "languages": None,
        "n_parameters": sum(parameters.values()),
        "n_embedding_parameters": text_config.vocab_size * text_config.hidden_size,
        "memory_usage_mb": round(sum(BYTES.get(kind, 1) * count for kind, count in parameters.items()) / 2**20),
        "micro_batch_tokens": min(tokenizer.model_max_length, text_config.max_position_embeddings),
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
        "modalities": ["image", "text"],
    }
    return ModelMeta(**known | fields)
