"""Train, resume and save: complete checkpoints, the end of every recipe, and the record of how a model was trained."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..checkpoint import redact_home
from ..checkpoint_safety import TRAINING_RECORD, integrity_error
from ..storage.atomic_files import atomic_write
from .adapter import merge_checkpoint


logger = logging.getLogger(__name__)


def train_and_save(trainer: Trainer, base_model: str, **kwargs: Any) -> None:
    """Train, resuming from the last complete checkpoint, and save the result as a checkpoint that loads everywhere.

    `resume_from_checkpoint` of the training arguments names another checkpoint to resume from.

    A fully trained model is saved in `output_dir`. An adapter is saved in `output_dir/adapter`, and the base model
    with the adapter merged in `output_dir`.

    Args:
        trainer ([`EmbeddingTrainer`]): The trainer; its `args.output_dir` is where everything is saved.
        base_model (`str`): Folder or Hub id that the model was loaded from.
        kwargs: Passed to [`merge_checkpoint`] (`dtype`, ...).
    """
    output_dir = trainer.args.output_dir
    checkpoint = trainer.args.resume_from_checkpoint or last_complete_checkpoint(output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    if not isinstance(trainer.model, PeftModel):
        trainer.save_model()
        return
    adapter_dir = f"{output_dir}/adapter"
    trainer.save_model(adapter_dir)
    if trainer.is_world_process_zero():
        merge_checkpoint(base_model, adapter_dir, output_dir, **kwargs)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Return the latest complete and undamaged `checkpoint-*` folder, or None.

    [`EmbeddingTrainer`] writes `trainer_state.json` last, after every process has written its part, so a folder
    without it was interrupted. Skipped folders are logged as warnings.

    Args:
        output_dir (`str` or `Path`): The folder of the training run; it need not exist.
    """
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if folder.name.rpartition("-")[2].isdigit()]
    for folder in sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text())
        except (OSError, ValueError):
            logger.warning("skipping %s: saving it was interrupted", folder)
            continue
        errors = {
            path.name: error for path in sorted(folder.iterdir()) if (error := integrity_error(path)) is not None
        }
        if not errors:
            return str(folder)
        for name, error in errors.items():
            logger.warning("skipping %s: %s is damaged (%s)", folder, name, error)
    return None


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
        part.write_text(json.dumps(stages, indent=1) + "\n")


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
