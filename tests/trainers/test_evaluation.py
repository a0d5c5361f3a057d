"""Evaluation during and after training: its metrics, its batches, and any number of processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from peft import LoraConfig
from transformers import AutoConfig, EarlyStoppingCallback, ProcessorMixin

from unime import UniMEModel
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, DistillationConfig, DistillationTrainer


STATISTICS = ["loss", "filtered", "hardness", "positive_similarity", "negative_similarity", "accuracy"]


@pytest.fixture
def make_trainer(
    make_model: Callable, processor: ProcessorMixin, rows: list[dict[str, Any]], tmp_path: Path
) -> Callable[..., ContrastiveTrainer]:
    def make(eval_dataset: Any, callbacks: list | None = None, **options: Any) -> ContrastiveTrainer:
        defaults = {
            "per_device_train_batch_size": 12,
            "per_device_eval_batch_size": 8,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "micro_batch_tokens": 100,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return ContrastiveTrainer(
            make_model(),
            ContrastiveConfig(str(tmp_path / "run"), **defaults | options),
            train_dataset=rows,
            eval_dataset=eval_dataset,
            processing_class=processor,
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
            callbacks=callbacks,
        )

    return make


def test_the_metrics_are_means_over_all_rows(make_trainer: Callable, rows: list[dict[str, Any]]):
    # Seven rows in batches of at most four: rows 0, 2, 4 and 6, and rows 1, 3 and 5.
    trainer = make_trainer(rows[:7], per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    parts = [make_trainer(part).evaluate() for part in (rows[0:7:2], rows[1:7:2])]
    for name in STATISTICS:
        four, three = (part[f"eval_{name}"] for part in parts)
        assert metrics[f"eval_{name}"] == pytest.approx((4 * four + 3 * three) / 7, rel=1e-4, abs=1e-5)
    assert parts[0]["eval_loss"] != pytest.approx(parts[1]["eval_loss"], rel=0.01)


def test_every_evaluation_set_has_its_own_metrics(make_trainer: Callable, rows: list[dict[str, Any]]):
    sets = {"pets": rows[:8], "tools": IterableDataset.from_generator(lambda: iter(rows[8:16]))}
    trainer = make_trainer(sets, max_steps=3, eval_strategy="steps", eval_steps=1, eval_delay=2)
    trainer.train()
    for name in sets:
        names = {f"eval_{name}_{statistic}" for statistic in STATISTICS}
        entries = [set(entry) for entry in trainer.state.log_history if f"eval_{name}_loss" in entry]
        assert len(entries) == 2 and all(names <= entry for entry in entries)
    metrics = trainer.evaluate()
    assert metrics["eval_pets_loss"] == pytest.approx(trainer.evaluate(rows[:8])["eval_loss"], rel=1e-5)
    logged = {name for entry in trainer.state.log_history for name in entry if name.startswith("eval_")}
    assert "eval_accuracy" not in logged - set(trainer.state.log_history[-1])
    assert trainer.predict(rows[:8]).metrics["test_loss"] == pytest.approx(metrics["eval_pets_loss"], rel=1e-5)


def test_training_statistics_are_not_mixed_with_those_of_evaluation(
    make_trainer: Callable, rows: list[dict[str, Any]]
):
    def logs(**options: Any) -> list[dict[str, float]]:
        trainer = make_trainer(rows[:8], max_steps=4, logging_steps=2, **options)
        trainer.train()
        return [
            {name: value for name, value in entry.items() if name in STATISTICS}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]

    assert logs(eval_strategy="steps", eval_steps=1, eval_on_start=True) == logs()


@pytest.mark.parametrize("metric", ["accuracy", "eval_positive_similarity"])
def test_a_statistic_can_choose_the_best_model_and_stop_early(
    metric: str, make_trainer: Callable, rows: list[dict[str, Any]], tmp_path: Path
):
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "save_total_limit": 1}
    trainer = make_trainer(
        rows[:8],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=10)],
        max_steps=6,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=True,
        **steps,
    )
    trainer.train()
    history = [
        entry[f"eval_{metric.removeprefix('eval_')}"] for entry in trainer.state.log_history if "eval_loss" in entry
    ]
    # No improvement reaches the threshold of 10: the second evaluation ends the training.
    assert trainer.state.global_step == len(history) == 2
    assert trainer.state.best_metric == max(history)
    assert trainer.evaluate()[f"eval_{metric.removeprefix('eval_')}"] == pytest.approx(max(history), rel=1e-5)
    best = f"checkpoint-{1 + history.index(max(history))}"
    assert best in [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("num_rows", [3, 9])
def test_every_row_is_evaluated_whatever_training_drops(
    drop_last: bool, num_rows: int, make_trainer: Callable, rows: list[dict[str, Any]]
):
    # Nine rows would leave a last batch of one, which has no negative.
    trainer = make_trainer(rows[:num_rows], dataloader_drop_last=drop_last, dataloader_num_workers=2)
    batches = list(trainer.get_eval_dataloader())
    assert (
        sum(len(batch["query"]) for batch in batches) == sum(int(batch["num_rows"]) for batch in batches) == num_rows
    )
    metrics = trainer.evaluate()
    assert metrics["eval_samples_per_second"] / metrics["eval_steps_per_second"] == pytest.approx(
        num_rows / len(batches), rel=0.01
    )


def test_a_trainer_without_evaluation_rows_says_so(make_trainer: Callable):
    with pytest.raises(ValueError, match="there is nothing to evaluate: pass an eval_dataset"):
        make_trainer(None).evaluate()


def test_stage_1_evaluates_with_an_online_teacher(make_model: Callable, processor: ProcessorMixin, tmp_path: Path):
    def teach(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text), text.count("1"), 1.0] for text in texts])

    args = DistillationConfig(
        str(tmp_path), per_device_train_batch_size=4, per_device_eval_batch_size=4, use_cpu=True, report_to="none"
    )
    texts = [{"text": f"{i} and more" * (1 + i % 3)} for i in range(5)]
    trainer = DistillationTrainer(
        make_model(), args, train_dataset=texts, teacher=teach, eval_dataset=texts, processing_class=processor
    )
    assert 0 < trainer.evaluate()["eval_loss"] < 10


@pytest.fixture(scope="module")
def evaluated(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that evaluates joined batches of four rows and returns the result of each process."""
    folder = tmp_path_factory.mktemp("joined")
    torch.manual_seed(0)
    UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava"))).save_pretrained(folder / "model")
    script = str(Path(__file__).parent / "joined_evaluation.py")

    @cache
    def run(processes: int, sharding: str = "ddp") -> list[dict[str, Any]]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        output = folder / f"{sharding}-{processes}"
        arguments = [script, str(folder / "model"), str(tiny_model("llava")), str(output), sharding]
        process = subprocess.run(
            [*(launch if processes > 1 else launch[:1]), *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert process.returncode == 0, process.stderr[-4000:]
        return [torch.load(f"{output}.{index}") for index in range(processes)]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2", "zero3"])
def test_the_metrics_do_not_depend_on_the_number_of_processes(evaluated: Callable, sharding: str):
    (one,) = evaluated(1)
    for result in evaluated(2, sharding):
        for stage, sets in {"contrastive": ["pets", "tools", "single"], "distillation": ["texts"]}.items():
            assert result[stage] == pytest.approx(one[stage], rel=1e-4, abs=1e-5)
            assert {f"eval_{name}_loss" for name in sets} <= set(result[stage])


@pytest.mark.slow
def test_one_process_embeds_the_only_row_of_an_evaluation_set(evaluated: Callable):
    last = [result["contrastive batches"][-1] for result in (*evaluated(1), *evaluated(2))]
    assert [len(rows) for rows in last] == [1, 0, 1]


@pytest.mark.slow
def test_tokens_and_operations_are_those_of_all_processes(evaluated: Callable):
    # The texts are distinct: no process embeds a text that another one embeds too.
    (tokens, operations), *two = (result["distillation work"] for result in (*evaluated(1), *evaluated(2)))
    assert tokens > 100 and operations > 1e6 and two == [(tokens, operations)] * 2
