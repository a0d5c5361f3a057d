"""TensorBoard, W&B and trackio receive every statistic of training and evaluation."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import ProcessorMixin

from unime.trainers import ContrastiveConfig, ContrastiveTrainer


pytestmark = pytest.mark.slow
STATISTICS = ["loss", "filtered", "hardness", "positive_similarity", "negative_similarity", "accuracy"]
EXPECTED = {f"train/{name}" for name in [*STATISTICS, "grad_norm", "learning_rate", "tokens_per_second"]}
EXPECTED |= {f"eval/pets_{name}" for name in STATISTICS} | {f"eval/tools_{name}" for name in STATISTICS}


@pytest.fixture
def train(
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], None]:
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": tmp_path, "TRACKIO_DIR": tmp_path / "trackio"}.items():
        monkeypatch.setenv(name, str(value))

    def train(tracker: str) -> None:
        args = ContrastiveConfig(
            str(tmp_path / "run"),
            per_device_train_batch_size=12,
            max_steps=2,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            report_to=tracker,
            run_name="a-run",
            project="a-project",
            hub_token="a secret token",
            use_cpu=True,
            disable_tqdm=True,
        )
        sets = {"pets": rows[:8], "tools": rows[8:]}
        ContrastiveTrainer(
            make_model(), args, train_dataset=rows, eval_dataset=sets, processing_class=processor
        ).train()

    return train


def test_tensorboard_receives_all_statistics(train: Callable[[str], None], tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("tensorboard")
    (file,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert EXPECTED <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("eval/pets_accuracy")] == [1, 2]
    assert b"a secret token" not in file.read_bytes()


def test_wandb_receives_all_statistics(train: Callable[[str], None], tmp_path: Path):
    import wandb

    train("wandb")
    wandb.finish()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("run-*.wandb")
    record = file.read_bytes()
    assert [name for name in [*EXPECTED, "a-run", "a-project"] if name.encode() not in record] == []
    assert not [path for path in folder.rglob("*") if path.is_file() and b"a secret token" in path.read_bytes()]


def test_trackio_receives_all_statistics(train: Callable[[str], None], tmp_path: Path):
    train("trackio")
    database = sqlite3.connect(tmp_path / "trackio" / "a-project.db")
    entries = [json.loads(metrics) for (metrics,) in database.execute("SELECT metrics FROM metrics")]
    assert EXPECTED <= set().union(*entries)
    assert len([entry for entry in entries if "eval/tools_accuracy" in entry]) == 2
    assert "a secret token" not in "".join(database.iterdump())
