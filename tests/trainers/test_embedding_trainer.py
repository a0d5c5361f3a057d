from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, LlavaModel, ProcessorMixin
from trl import TrlParser

from unime import UniMEModel
from unime.trainers import (
    ContrastiveConfig,
    ContrastiveTrainer,
    DistillationConfig,
    DistillationTrainer,
    load_adapter,
    merge_adapter,
)
from unime.trainers.embedding_trainer import EmbeddingTrainer
from unime.trainers.gradient_cache import with_last_layer_shortcut


@pytest.fixture
def options() -> dict[str, Any]:
    return {
        "per_device_train_batch_size": 12,
        "per_device_eval_batch_size": 12,
        "max_steps": 4,
        "micro_batch_tokens": 100,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1)])
def test_resumed_training_equals_uninterrupted_training(
    peft_config: LoraConfig | None,
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    args = ContrastiveConfig(str(tmp_path), **options | {"save_strategy": "steps", "save_steps": 2})

    def trainer(model: UniMEModel) -> ContrastiveTrainer:
        torch.manual_seed(0)  # for the initial weights of the adapter
        return ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor, peft_config=peft_config)

    uninterrupted = trainer(make_model(dropout=0.2))
    uninterrupted.train()
    resumed = trainer(make_model(dropout=0.2))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(resumed.model.state_dict(), uninterrupted.model.state_dict(), atol=0, rtol=0)
    assert [e.get("loss") for e in resumed.state.log_history] == [
        e.get("loss") for e in uninterrupted.state.log_history
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_resumed_in_its_second_pass_equals_uninterrupted_training(
    num_workers: int,
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    args = ContrastiveConfig(
        str(tmp_path),
        **options | {"save_strategy": "steps", "save_steps": 3, "max_steps": 5, "dataloader_num_workers": num_workers},
    )

    def trainer() -> ContrastiveTrainer:
        stream = IterableDataset.from_generator(lambda: iter(rows)).shuffle(seed=0, buffer_size=len(rows))
        return ContrastiveTrainer(
            make_model(dropout=0.2), args, train_dataset=stream, processing_class=processor
        )  # a pass has two batches

    uninterrupted, resumed = trainer(), trainer()
    uninterrupted.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    torch.testing.assert_close(resumed.model.state_dict(), uninterrupted.model.state_dict(), atol=0, rtol=0)
    losses = [[entry.get("loss") for entry in run.state.log_history] for run in (resumed, uninterrupted)]
    assert losses[0] == losses[1]


def private_megabytes() -> float:
    """Return the memory that only this process has: without the pages of files, which processes share."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounts of memory")
def test_resuming_takes_no_memory_for_a_second_copy_of_the_weights(
    tiny_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    config = AutoConfig.from_pretrained(tiny_model("llava"))
    config.text_config.hidden_size, config.text_config.intermediate_size = 512, 8192
    model = UniMEModel.from_backbone(config)
    megabytes = sum(parameter.nbytes for parameter in model.parameters()) / 2**20
    args = ContrastiveConfig(str(tmp_path), **options)
    trainer = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor)
    trainer.save_model(str(tmp_path / "checkpoint-1"), _internal_call=True)
    files = (tmp_path / "checkpoint-1").glob("*.*")
    assert len({file.stat().st_mode for file in files if file.suffix in (".json", ".safetensors")}) == 1
    saved = {name: parameter.sum().item() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()

    before, peak, loaded = private_megabytes(), [0.0], Event()

    def watch() -> None:
        while not loaded.wait(0.002):
            peak.append(private_megabytes())

    watcher = Thread(target=watch)
    watcher.start()
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    loaded.set()
    watcher.join()
    assert {name: parameter.sum().item() for name, parameter in model.named_parameters()} == saved
    assert megabytes > 90 and max(peak) - before < megabytes / 4


@pytest.mark.parametrize("stage", [ContrastiveTrainer, DistillationTrainer])
def test_the_matryoshka_loss_is_the_mean_over_full_and_truncated_embeddings(
    stage: type,
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    config, kwargs = partial(ContrastiveConfig, temperature=0.2), {}  # 0.02 would multiply rounding errors by 50
    if stage is DistillationTrainer:
        rows = [{"text": f"{i} and more" * (1 + i % 3)} for i in range(24)]
        config, kwargs = (
            DistillationConfig,
            {"teacher": lambda texts: [[len(text), text.count("1"), 1] for text in texts]},
        )

    def trainer(**arguments: object) -> EmbeddingTrainer:
        args = config(str(tmp_path), **options, **arguments)
        return stage(make_model(), args, train_dataset=rows, processing_class=processor, **kwargs)

    matryoshka, plain = trainer(matryoshka_dims=[8, 2]), trainer()
    batch = plain.data_collator(rows[:6])
    loss = matryoshka.compute_loss(matryoshka.model, batch)
    loss.backward()

    embed = with_last_layer_shortcut(plain.model, lambda tensors: plain.model(**tensors).embeddings)
    parts = [embed(tensors) for tensors in batch["micro_batches"]]
    items = torch.cat(parts)[torch.argsort(batch["order"])]
    expected = sum(
        plain.batch_loss(torch.nn.functional.normalize(items[:, :dimensions], dim=1), batch)[0]
        for dimensions in (items.shape[1], 8, 2)
    )
    (expected / 3).backward()
    torch.testing.assert_close(loss, expected / 3)
    gradients = [[parameter.grad for parameter in trained.model.parameters()] for trained in (matryoshka, plain)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_invalid_matryoshka_dimensions_are_refused(
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    with pytest.raises(ValueError, match="matryoshka_dims must be positive"):
        ContrastiveConfig(str(tmp_path), matryoshka_dims=[0])
    args = ContrastiveConfig(str(tmp_path), **options, matryoshka_dims=[8, 1024])
    with pytest.raises(ValueError, match="must be smaller than the model's"):
        ContrastiveTrainer(make_model(), args, train_dataset=rows, processing_class=processor).train()


def test_the_best_model_is_loaded_at_the_end(
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    # The highest loss counts as the best, so that the best model is not the last.
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    args = ContrastiveConfig(str(tmp_path), **options | steps | best)
    trainer = ContrastiveTrainer(make_model(), args, train_dataset=rows, eval_dataset=rows, processing_class=processor)
    trainer.train()
    highest = max(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.state.best_global_step < args.max_steps
    assert trainer.evaluate()["eval_loss"] == pytest.approx(highest)


def test_the_saved_model_loads_as_unime_and_natively_with_the_same_embeddings(
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    args = ContrastiveConfig(str(tmp_path / "run"), **options)
    trainer = ContrastiveTrainer(make_model(), args, train_dataset=rows, processing_class=processor)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    image = Image.radial_gradient("L").resize((40, 24)).convert("RGB")
    items = ["a cat", image, {"image": image, "text": "What is it?"}]
    expected = trainer.model.encode(items, processor)
    loaded = UniMEModel.from_pretrained(tmp_path / "final")
    np.testing.assert_allclose(loaded.encode(items), expected, atol=1e-6)
    remote_code = AutoModel.from_pretrained(tmp_path / "final", trust_remote_code=True)
    assert type(remote_code).__module__.startswith("transformers_modules.")
    np.testing.assert_allclose(remote_code.encode(items), expected, atol=1e-6)
    native = SentenceTransformer(str(tmp_path / "final"), device="cpu")
    assert type(native[0].model) is LlavaModel
    np.testing.assert_allclose(native.encode(items), expected, atol=1e-5)


def test_a_trained_adapter_is_saved_loaded_and_merged_without_changing_embeddings(
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    peft_config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)
    args = ContrastiveConfig(str(tmp_path), **options | {"learning_rate": 1e-2})
    trainer = ContrastiveTrainer(
        make_model(), args, train_dataset=rows, processing_class=processor, peft_config=peft_config
    )
    trainer.train()
    trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()

    items = [row["query"] for row in rows]
    trained = trainer.model.get_base_model().encode(items, processor)
    loaded = load_adapter(make_model(), tmp_path)
    np.testing.assert_allclose(loaded.get_base_model().encode(items, processor), trained, atol=1e-6)
    np.testing.assert_allclose(merge_adapter(loaded).encode(items, processor), trained, atol=1e-5)
    assert np.abs(make_model().encode(items, processor) - trained).max() > 1e-3


def test_activation_checkpointing_and_bf16_can_be_used_for_training(
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    losses = []
    for extra in ({}, {"bf16": True, "gradient_checkpointing": True}):
        args = ContrastiveConfig(str(tmp_path), **options | extra)
        trainer = ContrastiveTrainer(make_model(), args, train_dataset=rows, processing_class=processor)
        losses.append(trainer.train().training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_dataset_with_missing_columns_is_refused(
    make_model: Callable, processor: ProcessorMixin, options: dict[str, Any], tmp_path: Path
):
    rows = Dataset.from_dict({"sentence": ["a"], "positive": ["b"]})
    with pytest.raises(
        ValueError,
        match=r"train_dataset, row 0: it has no 'query' \(or 'anchor'\); its columns are sentence, .*: rename them",
    ):
        args = ContrastiveConfig(str(tmp_path), **options)
        ContrastiveTrainer(make_model(), args, train_dataset=rows, processing_class=processor)


def test_a_transform_may_provide_the_columns(
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    def render(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        return {name: [rows[index][name] for index in batch["index"]] for name in rows[0]}

    lazy = Dataset.from_dict({"index": list(range(24))}).with_transform(render)
    args = ContrastiveConfig(str(tmp_path), **options | {"max_steps": 1})
    ContrastiveTrainer(make_model(), args, train_dataset=lazy, processing_class=processor).train()


def test_a_dataset_smaller_than_a_batch_is_refused(
    make_model: Callable,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    tmp_path: Path,
):
    args = ContrastiveConfig(str(tmp_path), **options)
    with pytest.raises(ValueError, match="train_dataset has 5 rows, fewer than one batch of 12"):
        ContrastiveTrainer(make_model(), args, train_dataset=rows[:5], processing_class=processor)
    with pytest.raises(ValueError, match="train_dataset is empty"):
        ContrastiveTrainer(make_model(), args, train_dataset=[], processing_class=processor)


def test_a_trainer_without_a_processor_is_refused(
    make_model: Callable, rows: list[dict[str, Any]], options: dict[str, Any], tmp_path: Path
):
    with pytest.raises(ValueError, match="needs processing_class"):
        ContrastiveTrainer(make_model(), ContrastiveConfig(str(tmp_path), **options), train_dataset=rows)


def test_arguments_come_from_yaml_and_the_command_line_and_unknown_ones_are_errors(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "output_dir: out\nuse_cpu: true\nfalse_negative_margin: null\nnum_hard_negatives: null\ntemperature: 0.05\n"
    )
    (args,) = TrlParser([ContrastiveConfig]).parse_args_and_config(
        ["--config", str(recipe), "--temperature", "0.1", "--pad_negatives", "repeat"]
    )
    assert (args.false_negative_margin, args.num_hard_negatives, args.temperature, args.pad_negatives) == (
        None,
        None,
        0.1,
        "repeat",
    )
    (args,) = TrlParser([DistillationConfig]).parse_args_and_config(["--output_dir", "out", "--use_cpu", "true"])
    assert args.student_temperature == args.teacher_temperature == 0.1
    recipe.write_text("output_dir: out\nhard_negatives: 8\n")
    with pytest.raises((ValueError, SystemExit)):
        TrlParser([ContrastiveConfig]).parse_args_and_config(["--config", str(recipe)])
