"""Going on after a training was cut off, at whatever moment."""

import json
import logging
from pathlib import Path


logger = logging.getLogger(__name__)


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """Find the latest `checkpoint-*` folder whose saving was not cut off; None if there is none.

    [`EmbeddingTrainer`] writes `trainer_state.json` last, when every process has written its part.
    """
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if folder.name.rpartition("-")[2].isdigit()]
    for folder in sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            logger.warning("%s is passed over: its saving was cut off", folder)
        else:
            return str(folder)
    return None
