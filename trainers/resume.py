"""Going on after a training was cut off, at whatever moment."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME

from ..checkpoint_folder import damage_of


logger = logging.getLogger(__name__)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
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
        damaged = {path.name: damage for path in sorted(folder.iterdir()) if (damage := damage_of(path)) is not None}
        if not damaged:
            return str(folder)
        for name, damage in damaged.items():
            logger.warning("%s is passed over: %s is damaged (%s)", folder, name, damage)
    return None
