"""Going on after a training was cut off, at whatever moment."""

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
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..checkpoint import redact_home
from ..checkpoint_safety import TRAINING_RECORD, integrity_error
from ..modeling_unime import UniMEModel
from ..storage.atomic_files import atomic_write


logger = logging.getLogger(__name__)


@contextmanager
def removing_unfinished(folder: Path) -> Iterator[None]:
    """Let a checkpoint count as complete only when all of it is written: its `trainer_state.json` comes last.

    Raises:
        OSError: It cannot be written, because the disk is full, say; what there is of it is removed.
    """
    state = folder / TRAINER_STATE_NAME
    state.unlink(missing_ok=True)  # of the same step of an earlier run
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch says with a `RuntimeError` of its container that it cannot write a file.
        if state.exists() or isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        reason = str(error).splitlines()[0]
        raise OSError(
            f"{folder} cannot be written ({reason}): make room on its disk and start again, which goes on from the "
            "checkpoint before"
        ) from None


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Find the latest `checkpoint-*` folder whose saving was not cut off; None if there is none.

    [`EmbeddingTrainer`] writes `trainer_state.json` last, when every process has written its part. Folders of which a
    file is no longer whole are passed over too.
    """
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if folder.name.rpartition("-")[2].isdigit()]
    for folder in sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text())
        except (OSError, ValueError):
            logger.warning("%s is passed over: its saving was cut off", folder)
            continue
        damaged = {
            path.name: damage for path in sorted(folder.iterdir()) if (damage := integrity_error(path)) is not None
        }
        if not damaged:
            return str(folder)
        for name, damage in damaged.items():
            logger.warning("%s is passed over: %s is damaged (%s)", folder, name, damage)
    return None


# Where files went, how progress was shown, how processes were fed: nothing that the weights depend on.
_ELSEWHERE = ("output_dir", "logging_", "save_", "report_to", "run_name", "disable_tqdm", "hub_", "push_to_hub")
_ELSEWHERE += ("accelerator_config", "dataloader_pin", "dataloader_num")


def write_training_record(trainer: Trainer, model: UniMEModel, directory: str | Path) -> None:
    """Write the stages that led to a model, its own last.

    Args:
        trainer ([`~transformers.Trainer`]): After training.
        model ([`UniMEModel`]): What it trained; knows where it was loaded from, and there the stages before are.
        directory (`str` or `Path`): Where the model, or its adapter, was saved.
    """
    started_from = model.name_or_path or model.backbone.name_or_path
    before = Path(started_from, TRAINING_RECORD)
    own = {
        "trainer": type(trainer).__name__,
        "started from": redact_home(started_from),
        "rows": len(trainer.train_dataset) if isinstance(trainer.train_dataset, Sized) else "a stream",
        "processes": trainer.args.world_size,
        "steps": trainer.state.global_step,
        "arguments": changed(trainer.args),
    }
    if isinstance(trainer.model, PeftModel):
        adapter = trainer.model.active_peft_config
        targets = adapter.target_modules if isinstance(adapter.target_modules, str) else sorted(adapter.target_modules)
        own["adapter"] = {"rank": adapter.r, "alpha": adapter.lora_alpha, "targets": targets}
    stages = [*(json.loads(before.read_text()) if before.is_file() else []), own]
    with atomic_write(Path(directory, TRAINING_RECORD)) as part:
        part.write_text(json.dumps(stages, indent=1) + "\n")


def changed(args: TrainingArguments) -> dict[str, Any]:
    """The settings that differ from their defaults and that the weights depend on, ready for JSON."""
    values = args.to_dict()
    found = {}
    for field in dataclasses.fields(args):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = values.get(field.name, default)
        # `TrainingArguments` itself turns some defaults into others: None into False, say.
        if value != default and (value or default) and not field.name.startswith(_ELSEWHERE):
            found[field.name] = value
    return found
