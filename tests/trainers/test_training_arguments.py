"""Every argument of `TrainingArguments`: what the table in the docs says about it is true."""

import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import ParallelismConfig
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import EarlyStoppingCallback, ProcessorMixin, TrainingArguments
from transformers.utils import logging

from unime.checkpoint import save_checkpoint
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, train_and_save


ROOT = Path(__file__).resolve().parents[2]
TABLE = (ROOT / "docs" / "reference" / "training-arguments.md").read_text()
REFUSED = {
    "gradient_accumulation_steps": 2,
    "label_smoothing_factor": 0.1,
    "auto_find_batch_size": True,
    "use_cache": True,
    "remove_unused_columns": True,
    "label_names": ["label"],
    "include_for_metrics": ["inputs"],
    "batch_eval_metrics": True,
    "parallelism_config": ParallelismConfig(),
    "enable_jit_checkpoint": True,
}
# Values other than the defaults, which change neither the training nor the metrics of an evaluation.
WITHOUT_EFFECT = {
    "average_tokens_across_devices": False,
    "logging_nan_inf_filter": False,
    "prediction_loss_only": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "eval_accumulation_steps": 1,
    "ddp_find_unused_parameters": True,
    "ddp_bucket_cap_mb": 1,
    "ddp_broadcast_buffers": True,
    "ddp_static_graph": True,
    "do_train": True,
    "do_eval": True,
    "do_predict": True,
    "local_rank": 0,
}
# Arguments that tests of other files exercise.
TESTED_ELSEWHERE = {
    "test_evaluation.py": [
        "eval_delay",
        "eval_on_start",
        "eval_steps",
        "eval_strategy",
        "greater_is_better",
        "load_best_model_at_end",
        "metric_for_best_model",
        "per_device_eval_batch_size",
    ],
    "fp16_deepspeed.py": ["fp16"],
    "test_throughput.py": ["include_num_input_tokens_seen"],
    "test_push_to_hub.py": [
        "push_to_hub",
        "hub_model_id",
        "hub_token",
        "hub_private_repo",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
    ],
    "test_trackers.py": ["report_to", "run_name", "project"],
}
CHECKS: dict[str, Callable] = {}


def statuses() -> dict[str, str]:
    """Return the status of each argument in the table of the docs."""
    rows = re.findall(r"^\| (`[^|]+) \| (works|refused|no effect|not run)\b", TABLE, flags=re.MULTILINE)
    return {name: status for names, status in rows for name in re.findall(r"`(\w+)`", names)}


def checks(*names: str) -> Callable[[Callable], Callable]:
    """Register a test as the one that exercises the named arguments."""
    return lambda test: CHECKS.update(dict.fromkeys(names, test)) or test


@pytest.fixture
def text_rows() -> list[dict[str, Any]]:
    return [
        {
            "query": {"text": f"question {i}" + " and more" * (i % 3)},
            "positive": {"text": f"answer {i}"},
            "negatives": [],
            "task": "task",
            "label": None,
        }
        for i in range(8)
    ]


@pytest.fixture
def make_trainer(
    make_model: Callable, processor: ProcessorMixin, text_rows: list[dict[str, Any]], tmp_path: Path
) -> Callable[..., ContrastiveTrainer]:
    def make(
        train_dataset: Any = None, callbacks: list | None = None, dropout: float = 0.1, **options: Any
    ) -> ContrastiveTrainer:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return ContrastiveTrainer(
            make_model(),
            ContrastiveConfig(**defaults | options),
            train_dataset=text_rows if train_dataset is None else train_dataset,
            eval_dataset=text_rows,
            processing_class=processor,
            peft_config=LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=dropout),
            callbacks=callbacks,
        )

    return make


@pytest.fixture
def train(make_trainer: Callable[..., ContrastiveTrainer]) -> Callable[..., ContrastiveTrainer]:
    def train(**options: Any) -> ContrastiveTrainer:
        trainer = make_trainer(**options)
        trainer.train()
        return trainer

    return train


def adapter(trainer: ContrastiveTrainer) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def logged(trainer: ContrastiveTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_the_table_lists_every_argument_and_each_is_tested():
    table = statuses()
    assert set(table) == {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {name for name, status in table.items() if status == "refused"} == set(REFUSED)
    assert {name for name, status in table.items() if status == "no effect"} == set(WITHOUT_EFFECT)
    elsewhere = {name: file for file, names in TESTED_ELSEWHERE.items() for name in names}
    for name, file in elsewhere.items():
        assert name in (Path(__file__).parent / file).read_text(), f"{file} does not set {name}"
    assert {name for name, status in table.items() if status == "works"} == set(CHECKS) | set(elsewhere)


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_would_mislead_are_refused(name: str, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"^{name}(=2)? .*: (remove it|lower|set|raise)"):
        ContrastiveConfig(str(tmp_path), use_cpu=True, **{name: REFUSED[name]})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dispatch_batches", True),
        ("split_batches", True),
        ("even_batches", False),
        ("num_steps", 2),
    ],
)
def test_batches_that_the_loss_cannot_compare_are_refused(setting: str, value: object, tmp_path: Path):
    config = {"gradient_accumulation_kwargs": {setting: value}} if setting == "num_steps" else {setting: value}
    with pytest.raises(ValueError, match=f"^accelerator_config: {setting}"):
        ContrastiveConfig(str(tmp_path), use_cpu=True, accelerator_config=config)


@pytest.mark.parametrize("optim", ["lomo", "adalomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"])
def test_optimizers_that_step_during_the_backward_pass_are_refused(optim: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"^optim={optim} changes a weight as soon as its gradient is there"):
        ContrastiveConfig(str(tmp_path), use_cpu=True, optim=optim)


def test_one_process_with_several_gpus_is_refused(make_trainer: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ContrastiveConfig, "n_gpu", 4)
    monkeypatch.setattr("sys.argv", ["recipes/stage2.py", "--config", "my recipe.yaml"])
    command = "accelerate launch --num_processes 4 recipes/stage2.py --config 'my recipe.yaml'"
    with pytest.raises(ValueError, match=f"^one process cannot train on 4 GPUs: .*`{command}`"):
        make_trainer()


def test_some_arguments_change_nothing(train: Callable):
    plain, changed = train(), train(**WITHOUT_EFFECT)
    torch.testing.assert_close(adapter(changed), adapter(plain), atol=0, rtol=0)
    metrics = [trainer.evaluate() for trainer in (plain, changed)]
    for name in metrics[0]:
        if not name.endswith(("_runtime", "_per_second")):
            assert metrics[0][name] == metrics[1][name]


@checks("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1")
@checks("adam_beta2", "adam_epsilon", "optim", "max_steps", "per_device_train_batch_size", "output_dir")
def test_the_optimizer_and_the_schedule(train: Callable, tmp_path: Path):
    trainer = train(
        optim="adamw_torch",
        learning_rate=0.01,
        max_steps=4,
        warmup_steps=1,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": 0.005},
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_beta2=0.9,
        adam_epsilon=1e-6,
    )
    group = trainer.optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-6, 0.1)
    rates = logged(trainer, "learning_rate")
    assert (
        rates[:2] == [0, 0.01] and rates == sorted(rates[:1]) + sorted(rates[1:], reverse=True) and rates[-1] > 0.005
    )
    assert trainer.state.global_step == 4 and trainer.state.epoch == 2 and (tmp_path / "run").is_dir()


@checks("optim_args")
def test_optimizer_arguments(make_trainer: Callable):
    optimizer = make_trainer(optim="ademamix", optim_args="beta3=0.5,alpha=1.5").create_optimizer()
    assert optimizer.defaults["betas"][2] == 0.5 and optimizer.defaults["alpha"] == 1.5


@checks("max_grad_norm", "num_train_epochs")
def test_gradients_are_clipped_and_epochs_are_counted(train: Callable):
    options = {"optim": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "num_train_epochs": 1.5, "max_steps": -1}
    trainer = train(max_grad_norm=1e-6, lr_scheduler_type="constant", **options)
    # Three steps, each of a gradient of norm 1e-6 at most. The matrices B of the adapter start at zero.
    assert trainer.state.global_step == 3
    moved = torch.cat([weight.flatten() for name, weight in adapter(trainer).items() if "lora_B" in name]).norm()
    assert 0 < moved <= 3.01e-6
    assert all(norm > 1e-4 for norm in logged(trainer, "grad_norm"))


@checks("logging_strategy", "logging_steps", "logging_first_step")
def test_logging_steps(train: Callable):
    def steps(**options: Any) -> list[int]:
        return [entry["step"] for entry in train(max_steps=4, **options).state.log_history if "loss" in entry]

    assert steps(logging_steps=3, logging_first_step=True) == [1, 3]
    assert steps(logging_strategy="epoch") == [2, 4]


@checks("log_level", "log_level_replica", "log_on_each_node", "disable_tqdm")
def test_console_output(train: Callable, capsys: pytest.CaptureFixture):
    level = logging.get_verbosity()
    try:
        train(log_level="error", log_level_replica="critical", log_on_each_node=False, disable_tqdm=False)
        assert logging.get_verbosity() == logging.ERROR
    finally:
        logging.set_verbosity(level)
    assert "2/2" in capsys.readouterr().err


@checks("neftune_noise_alpha")
def test_gradient_caching_repeats_the_noise_of_neftune(train: Callable):
    kept, repeated, none = (
        adapter(train(micro_batch_tokens=60, graph_cache_gb=gigabytes, neftune_noise_alpha=alpha, optim="sgd"))
        for gigabytes, alpha in ((1, 5.0), (0, 5.0), (0, None))
    )
    torch.testing.assert_close(repeated, kept, atol=1e-6, rtol=1e-4)
    assert max((repeated[name] - none[name]).abs().max() for name in none) > 1e-4


@checks("torch_empty_cache_steps")
def test_the_device_cache_is_emptied(train: Callable, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr("transformers.trainer.clear_device_cache", lambda *args, **kwargs: calls.append(args))
    train(torch_empty_cache_steps=1)
    assert len(calls) == 2


@checks("debug")
def test_underflow_and_overflow_are_watched(train: Callable):
    trainer = train(debug="underflow_overflow")
    hooks = [hook for module in trainer.model.modules() for hook in module._forward_hooks.values()]
    assert any("DebugUnderflowOverflow" in hook.__qualname__ for hook in hooks)


@checks("skip_memory_metrics")
def test_memory_metrics(make_trainer: Callable):
    metrics = make_trainer(skip_memory_metrics=False).train().metrics
    assert {"init_mem_cpu_alloc_delta", "train_mem_cpu_peaked_delta"} <= set(metrics)


@checks("seed", "data_seed", "full_determinism")
def test_seeds(train: Callable):
    try:
        first, again, order, other = (
            adapter(train(full_determinism=True, **seeds))
            for seeds in ({"seed": 1}, {"seed": 1}, {"seed": 1, "data_seed": 2}, {"seed": 2})
        )
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(again, first, atol=0, rtol=0)
    for changed in (order, other):
        assert any(not torch.equal(changed[name], first[name]) for name in first)


@checks("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node")
def test_saving(train: Callable, tmp_path: Path):
    train(max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=2, save_on_each_node=True)
    folders = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert [folder.name for folder in folders] == ["checkpoint-2", "checkpoint-3"]
    assert (folders[0] / "optimizer.pt").exists()
    train(max_steps=1, save_strategy="epoch", save_only_model=True, output_dir=str(tmp_path / "model"))
    assert not list((tmp_path / "model").rglob("optimizer.pt")) and list((tmp_path / "model").rglob("adapter_model.*"))


@checks("ignore_data_skip", "restore_callback_states_from_checkpoint", "train_sampling_strategy")
def test_resuming(make_trainer: Callable, tmp_path: Path):
    class Watched(EarlyStoppingCallback):
        """A callback that keeps the patience that it starts with."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.counter_at_start = self.early_stopping_patience_counter

    def resume(**options: Any) -> tuple[list[int], int]:
        evaluation = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
        saving = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
        trainer = make_trainer(
            callbacks=[Watched(early_stopping_patience=9)],
            train_sampling_strategy="sequential",
            **evaluation | saving | options,
        )
        contents = []
        compute_loss = trainer.compute_loss

        def watched_loss(model: torch.nn.Module, inputs: dict[str, Any], **kwargs: Any) -> Tensor:
            if model.training:
                contents.append(int(inputs["content"][0]))
            return compute_loss(model, inputs, **kwargs)

        trainer.compute_loss = watched_loss
        checkpoint = tmp_path / "run" / "checkpoint-1"
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint.exists() else None)
        (callback,) = (item for item in trainer.callback_handler.callbacks if isinstance(item, Watched))
        return contents, callback.counter_at_start

    (first, second), _ = resume()
    assert resume(ignore_data_skip=False)[0] == [second]
    assert resume(ignore_data_skip=True)[0] == [first]
    state = tmp_path / "run" / "checkpoint-1" / "trainer_state.json"
    state.write_text(
        state.read_text().replace('"early_stopping_patience_counter": 0', '"early_stopping_patience_counter": 3')
    )
    assert resume(restore_callback_states_from_checkpoint=True)[1] == 3


@checks("resume_from_checkpoint")
def test_a_recipe_resumes_from_the_named_checkpoint_or_else_from_the_last_one(
    make_model: Callable, processor: ProcessorMixin, make_trainer: Callable, tmp_path: Path
):
    base = str(save_checkpoint(make_model().eval(), processor, tmp_path / "base"))

    def steps_taken(**options: Any) -> int:
        trainer = make_trainer(save_strategy="steps", save_steps=1, **options)
        steps = []
        training_step = trainer.training_step
        trainer.training_step = lambda *args, **kwargs: steps.append(1) or training_step(*args, **kwargs)
        train_and_save(trainer, base)
        assert trainer.state.global_step == 2
        return len(steps)

    assert steps_taken() == 2
    assert steps_taken() == 0  # from checkpoint-2
    assert steps_taken(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1")) == 1


def test_copies_of_the_arguments_keep_the_token_and_paths_that_files_must_not_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = ContrastiveConfig(str(tmp_path / "run"), hub_token="secret", matryoshka_dims=[8], use_cpu=True)
    for copied in (copy.copy(args), copy.deepcopy(args), dataclasses.replace(args)):
        assert (copied.hub_token, copied.output_dir) == ("secret", str(tmp_path / "run"))
    assert copy.copy(args).matryoshka_dims is args.matryoshka_dims
    assert copy.deepcopy(args).matryoshka_dims is not args.matryoshka_dims
    torch.save(args, tmp_path / "args.bin")
    saved = (tmp_path / "args.bin").read_bytes()
    assert b"secret" not in saved and str(tmp_path).encode() not in saved


@checks("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers")
@checks("dataloader_multiprocessing_context", "dataloader_in_order", "dataloader_pin_memory", "dataloader_drop_last")
@checks("accelerator_config")
def test_data_loading(train: Callable, text_rows: list[dict[str, Any]]):
    options = {
        "dataloader_num_workers": 2,
        "dataloader_prefetch_factor": 1,
        "dataloader_persistent_workers": True,
        "dataloader_multiprocessing_context": "fork",
        "dataloader_in_order": True,
        "dataloader_pin_memory": False,
        "accelerator_config": {"non_blocking": True, "use_seedable_sampler": True},
    }
    workers, plain = (
        # Without dropout, as starting workers draws random numbers.
        train(train_dataset=text_rows[:7], num_train_epochs=2, max_steps=-1, dropout=0.0, **settings)
        for settings in (options, {})
    )
    torch.testing.assert_close(adapter(workers), adapter(plain), atol=0, rtol=0)
    loader = workers.callback_handler.train_dataloader
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 1, True)
    assert plain.state.global_step == 2  # of four rows each, as the last three are dropped
    assert (
        train(
            train_dataset=text_rows[:7], num_train_epochs=1, max_steps=-1, dataloader_drop_last=False
        ).state.global_step
        == 2
    )


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
@checks("length_column_name")
def test_rows_are_sampled_by_their_length(strategy: str, train: Callable, text_rows: list[dict[str, Any]]):
    rows = Dataset.from_list([row | {"tokens": len(row["query"]["text"])} for row in text_rows])
    trainer = train(train_dataset=rows, train_sampling_strategy=strategy, length_column_name="tokens")
    assert trainer.state.global_step == 2


def test_sampling_by_length_that_is_impossible_is_refused(train: Callable, text_rows: list[dict[str, Any]]):
    for strategy in ("group_by_length", "batch_rebalance"):
        with pytest.raises(ValueError, match=f"'{strategy}' needs the length .* a stored column 'tokens'"):
            train(train_dataset=text_rows, train_sampling_strategy=strategy, length_column_name="tokens")
    rows = Dataset.from_list([row | {"length": 1} for row in text_rows])
    with pytest.raises(ValueError, match="divide the blocks of one task over the processes: set task_block_size"):
        train(train_dataset=rows, train_sampling_strategy="batch_rebalance", task_block_size=2)


@checks("activation_checkpointing", "activation_checkpointing_kwargs")
@checks("gradient_checkpointing", "gradient_checkpointing_kwargs")
def test_activation_checkpointing_changes_nothing(train: Callable):
    plain = adapter(train())
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        trainer = train(**{name: True, f"{name}_kwargs": {"use_reentrant": False}})
        assert trainer.model.get_base_model().backbone.is_activation_checkpointing
        torch.testing.assert_close(adapter(trainer), plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("capability", "bf16", "warned"), [("AVX2", True, 1), ("AVX512", True, 0), ("AVX2", False, 0)]
)
def test_bfloat16_on_a_cpu_that_is_slow_in_it_is_warned_of(
    capability: str,
    bf16: bool,
    warned: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    ContrastiveConfig(str(tmp_path), use_cpu=True, bf16=bf16)
    assert sum("set bf16 to false" in message for message in caplog.messages) == warned


@checks("bf16", "bf16_full_eval", "use_cpu")
def test_bfloat16(train: Callable, make_trainer: Callable):
    plain, mixed = train(), train(bf16=True)
    assert mixed.args.device.type == "cpu" and {weight.dtype for weight in adapter(mixed).values()} == {torch.float32}
    assert logged(mixed, "loss") != logged(plain, "loss")
    # Adam's first step has the size of the learning rate whatever the gradient, so later losses may differ more.
    assert logged(mixed, "loss")[0] == pytest.approx(logged(plain, "loss")[0], rel=0.1)
    full = make_trainer(bf16_full_eval=True)
    loss = full.evaluate()["eval_loss"]
    assert {weight.dtype for weight in full.model.parameters()} == {torch.bfloat16}
    assert loss == pytest.approx(make_trainer().evaluate()["eval_loss"], rel=0.1)


@pytest.mark.slow
@checks("torch_compile", "torch_compile_backend", "torch_compile_mode")
def test_compiled_training_equals_plain_training(train: Callable):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = adapter(train())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    compiled = train(torch_compile=True, torch_compile_backend="eager", torch_compile_mode="default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(adapter(compiled), plain, atol=1e-5, rtol=1e-4)
