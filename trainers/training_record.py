"""What a checkpoint was trained with: a file beside it, stage after stage, from which its card is written."""

import dataclasses
import json
from collections.abc import Sized
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import Trainer, TrainingArguments

from ..checkpoint import without_home
from ..checkpoint_folder import TRAINING_RECORD
from ..data.whole import whole
from ..modeling_unime import UniMEModel


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
        "started from": without_home(started_from),
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
    with whole(Path(directory, TRAINING_RECORD)) as part:
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
