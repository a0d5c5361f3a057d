"""Train, resume and save: complete checkpoints, the end of every recipe, and the record of how a model was trained."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from peft import PeftModel
from safetensors import SafetensorError
from torch import distributed
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..checkpoint import redact_home
from ..checkpoint_safety import TRAINING_RECORD, integrity_error
from ..json_output import to_json
from ..storage.atomic_files import atomic_write
from .adapter import merge_checkpoint


logger = logging.getLogger(__name__)


def train_and_save(trainer: Trainer, base_model: str, **kwargs: Any) -> None:
    """Train, resuming from the last complete checkpoint, and save the result as a checkpoint that loads everywhere.

    `resume_from_checkpoint` of the training arguments names another checkpoint to resume from.

    A fully trained model is saved in `output_dir`. An adapter is saved in `output_dir/adapter`, and the base model
    with the adapter merged in `output_dir`; after training over 4-bit weights, [`EmbeddingConfig`]'s
    `merge_dequantized` chooses the weights to merge into.

    Args:
        trainer ([`EmbeddingTrainer`]): The trainer; its `args.output_dir` is where everything is saved.
        base_model (`str`): Folder or Hub id that the model was loaded from.
        kwargs: Passed to [`merge_checkpoint`] (`dtype`, ...).
    """
    output_dir = trainer.args.output_dir
    resume_and_train(trainer)
    if not isinstance(trainer.model, PeftModel):
        trainer.save_model()
        return
    adapter_dir = f"{output_dir}/adapter"
    trainer.save_model(adapter_dir)
    if trainer.args.should_save:
        quantizer = getattr(trainer.model.get_base_model(), "hf_quantizer", None)
        merge_checkpoint(
            base_model,
            adapter_dir,
            output_dir,
            quantization_config=None if quantizer is None else quantizer.quantization_config,
            dequantize=trainer.args.merge_dequantized,
            **kwargs,
        )


def resume_and_train(trainer: Trainer) -> None:
    """Train, resuming from `resume_from_checkpoint` or the last complete checkpoint, and save the trainer's state.

    Args:
        trainer ([`ResumableTrainer`]): The trainer.
    """
    check_output_dir(trainer)
    checkpoint = trainer.args.resume_from_checkpoint or last_complete_checkpoint(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()


def check_output_dir(trainer: Trainer) -> None:
    """Check that `save_on_each_node` says whether the nodes share the disk of `output_dir`; every process calls this.

    Args:
        trainer ([`~transformers.Trainer`]): The trainer, before training.

    Raises:
        ValueError: Nodes without a shared disk would save one checkpoint together, or nodes with a shared disk would
            overwrite each other's files, or FSDP2 would save a checkpoint whose parts are on several disks.
    """
    args = trainer.args
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".shared-{_gather(uuid4().hex)[0]}"
    if args.process_index == 0:
        marker.touch()
    _gather(None)  # the marker exists from here on
    shared, writes = zip(*_gather((marker.exists(), args.should_save)), strict=True)
    if args.process_index == 0:
        marker.unlink()
    if not all(shared) and trainer.is_fsdp_enabled:
        raise ValueError(
            "FSDP2 divides a checkpoint among the processes, which do not share the disk of output_dir "
            f"{folder}: give a folder that all nodes see, or launch with DDP or DeepSpeed"
        )
    if not all(shared) and not args.save_on_each_node:
        raise ValueError(
            f"the nodes do not share the disk of output_dir {folder}: set save_on_each_node to true, or give a folder "
            "that all nodes see"
        )
    if all(shared) and sum(writes) > 1:
        raise ValueError(
            f"save_on_each_node would make the nodes overwrite each other's files in output_dir {folder}, which they "
            "share: set it to false"
        )


def _gather(value: Any) -> list[Any]:
    """Return the values of all processes, in their order; every process must call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Return the latest `checkpoint-*` folder that is complete and undamaged for every process, or None.

    [`EmbeddingTrainer`] writes `trainer_state.json` last, after every process has written its part, so a folder
    without it was interrupted. Skipped folders are logged as warnings. In distributed training every process must
    call this: nodes without a shared disk may have different checkpoints.

    Args:
        output_dir (`str` or `Path`): The folder of the training run; it need not exist.

    Raises:
        ValueError: Another node has no part of the latest checkpoint, or has the part of this one.
    """
    folders = {
        int(step): folder
        for folder in Path(output_dir).glob("checkpoint-*")
        if (step := folder.name.rpartition("-")[2]).isdigit()
    }
    complete = [step for step, folder in sorted(folders.items()) if _is_complete(folder)]
    started, finished = zip(*_gather(({*folders}, {*complete})), strict=True)
    common = set.intersection(*finished)
    if not common and (lost := set.union(*finished) - set.intersection(*started)):
        raise ValueError(
            f"checkpoint-{max(lost)} is not on the disks of all nodes: copy {output_dir} from another node, or remove "
            "it from all nodes to start again"
        )
    if not common:
        return None
    checkpoint = folders[max(common)]
    parts = _gather({path.name for path in checkpoint.glob("rng_state_*.pth")})
    for process, names in enumerate(parts):
        if (own := f"rng_state_{process}.pth") not in names and own in set.union(*parts):
            raise ValueError(
                f"the part of {checkpoint} that process {process} saved is on another node, as the nodes have changed "
                "places: launch them in the order of before"
            )
    return str(checkpoint)


def _is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete and undamaged, and log why not."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        logger.warning("skipping %s: saving it was interrupted", checkpoint)
        return False
    errors = {
        path.name: error for path in sorted(checkpoint.iterdir()) if (error := integrity_error(path)) is not None
    }
    for name, error in errors.items():
        logger.warning("skipping %s: %s is damaged (%s)", checkpoint, name, error)
    return not errors


def copy_to_every_node(checkpoint: Path, args: TrainingArguments) -> None:
    """Write the files of a checkpoint that process 0 alone writes on every node; every process must call this.

    DeepSpeed reads the name of its part of a checkpoint from the file `latest`, which it writes on one node only.

    Args:
        checkpoint (`Path`): The checkpoint's folder, on this node.
        args (`TrainingArguments`): The training arguments.
    """
    file = checkpoint / "latest"
    content = _gather(file.read_text() if file.is_file() else None)[0]
    if content is not None and args.should_save:
        file.write_text(content)


@contextmanager
def removing_unfinished(folder: Path) -> Iterator[None]:
    """Make a checkpoint count as complete only when all of it is written, and remove it if writing fails.

    `trainer_state.json` marks a complete checkpoint: it is removed first, and the code inside this context must write
    it last.

    Args:
        folder (`Path`): The checkpoint's folder, which may hold the same step of an earlier run.

    Raises:
        OSError: The checkpoint cannot be written, for example because the disk is full.
    """
    state = folder / TRAINER_STATE_NAME
    state.unlink(missing_ok=True)
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch reports that it cannot write a file as a `RuntimeError` of its file container.
        if state.exists() or isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        reason = str(error).splitlines()[0]
        raise OSError(
            f"cannot write {folder} ({reason}): free disk space and run the same command again, which "
            "resumes from the previous checkpoint"
        ) from None


# Output, logging and data loading, on which the weights do not depend.
UNRECORDED_ARGUMENTS = (
    "output_dir",
    "logging_",
    "save_",
    "report_to",
    "run_name",
    "disable_tqdm",
    "hub_",
    "push_to_hub",
    "accelerator_config",
    "dataloader_pin",
    "dataloader_num",
)


def write_training_record(trainer: Trainer, model: PreTrainedModel, directory: str | Path) -> None:
    """Write the training stages that led to a model, the present one last.

    Args:
        trainer ([`~transformers.Trainer`]): The trainer, after training.
        model ([`UniMEModel`]): The trained model; the folder that it was loaded from has the record of the stages
            before, if there were any.
        directory (`str` or `Path`): Where the model, or its adapter, was saved.
    """
    started_from = model.name_or_path or model.backbone.name_or_path
    previous_record = Path(started_from, TRAINING_RECORD)
    stage = {
        "trainer": type(trainer).__name__,
        "started from": redact_home(started_from),
        "rows": len(trainer.train_dataset) if isinstance(trainer.train_dataset, Sized) else "a stream",
        "processes": trainer.args.world_size,
        "steps": trainer.state.global_step,
        "arguments": changed_arguments(trainer.args),
    }
    if isinstance(trainer.model, PeftModel):
        adapter = trainer.model.active_peft_config
        targets = adapter.target_modules if isinstance(adapter.target_modules, str) else sorted(adapter.target_modules)
        stage["adapter"] = {"rank": adapter.r, "alpha": adapter.lora_alpha, "targets": targets}
    stages = [*(json.loads(previous_record.read_text()) if previous_record.is_file() else []), stage]
    with atomic_write(Path(directory, TRAINING_RECORD)) as part:
        part.write_text(to_json(stages, indent=1) + "\n")


def changed_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Return the arguments that differ from their defaults and that the weights depend on, ready for JSON.

    Args:
        args (`TrainingArguments`): The arguments of a training run.
    """
    values = args.to_dict()
    changed = {}
    for field in dataclasses.fields(args):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = values.get(field.name, default)
        # `TrainingArguments` itself replaces some defaults by equivalent values, such as None by False.
        if value != default and (value or default) and not field.name.startswith(UNRECORDED_ARGUMENTS):
            changed[field.name] = value
    return changed
