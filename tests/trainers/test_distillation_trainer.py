from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import ProcessorMixin

from unime import micro_batches
from unime.trainers import DistillationConfig, DistillationTrainer, distillation_kl


TEXTS = [f"text {i}" + " and so on" * (i % 5) for i in range(16)]
TEACHER = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make_trainer(
    make_model: Callable, processor: ProcessorMixin, tmp_path: Path
) -> Callable[..., DistillationTrainer]:
    def make(columns: dict[str, list[Any]], trainer_options: dict[str, Any], **options: Any) -> DistillationTrainer:
        defaults = {
            "per_device_train_batch_size": 16,
            "max_steps": 3,
            "micro_batch_tokens": 100,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        args = DistillationConfig(str(tmp_path), **defaults | options)
        rows = Dataset.from_dict(columns)
        return DistillationTrainer(make_model(), args, rows, processing_class=processor, **trainer_options)

    return make


PRECOMPUTED = {"text": TEXTS, "teacher": TEACHER.tolist()}


def encode(texts: list[str]) -> Any:
    return TEACHER[[TEXTS.index(text) for text in texts]].numpy()


def test_the_whole_language_model_changes_and_nothing_else(make_trainer: Callable):
    trainer = make_trainer(PRECOMPUTED, {})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    language_model = "backbone.language_model."
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith(language_model)), name


def test_adapters_are_attached_to_the_language_model_only(make_trainer: Callable):
    # The vision tower has a `q_proj` too.
    for target in (["q_proj", "fc1"], "all-linear", r".*\.(q_proj|v_proj)"):
        trainer = make_trainer(PRECOMPUTED, {"peft_config": LoraConfig(r=2, target_modules=target)}, max_steps=2)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        changed = {n for n, value in trainer.model.state_dict().items() if not torch.equal(value, before[n])}
        assert changed and all("lora_" in name and ".language_model." in name for name in changed)
        assert not any("lora_" in n and ".language_model." not in n for n, _ in trainer.model.named_parameters())


def test_adapters_keep_the_users_exclusions(make_trainer: Callable):
    for exclude in (["k_proj"], r".*\.k_proj"):
        peft_config = LoraConfig(r=2, target_modules=["q_proj", "k_proj"], exclude_modules=exclude)
        model = make_trainer(PRECOMPUTED, {"peft_config": peft_config}).model
        adapted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert adapted and all(".language_model." in name and "q_proj" in name for name in adapted)


def test_the_loss_is_the_kl_divergence_of_the_whole_batch(make_trainer: Callable, processor: ProcessorMixin):
    trainer = make_trainer(PRECOMPUTED, {}, student_temperature=0.2, teacher_temperature=0.3)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert len(batch["micro_batches"]) > 2
    loss = trainer.compute_loss(trainer.model.eval(), batch)
    student = torch.from_numpy(trainer.model.encode([{"text": text} for text in TEXTS], processor))
    expected = distillation_kl(student, TEACHER, student_temperature=0.2, teacher_temperature=0.3)
    torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("teacher", ["stored", "online"])
def test_repeated_texts_are_embedded_once_and_counted_every_time(
    teacher: str, make_trainer: Callable, processor: ProcessorMixin
):
    texts = [TEXTS[index] for index in (0, 1, 2, 0, 3, 0, 2, 4)]
    embeddings = encode(texts).tolist()
    columns, options = {"text": texts, "teacher": embeddings}, {}
    if teacher == "online":
        columns, options = {"text": texts}, {"teacher": encode}
    trainer = make_trainer(columns, options, per_device_train_batch_size=8)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert sum(len(tensors["input_ids"]) for tensors in batch["micro_batches"]) == 5
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    once = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}

    trainer.model.zero_grad()
    parts = [trainer.model(**tensors).embeddings for _, tensors in micro_batches(processor, texts, 1)]
    order = torch.tensor([index for indices, _ in micro_batches(processor, texts, 1) for index in indices])
    student = torch.cat(parts)[torch.argsort(order)]
    twice = distillation_kl(student, torch.tensor(embeddings), student_temperature=0.1, teacher_temperature=0.1)
    twice.backward()
    torch.testing.assert_close(loss, twice)
    assert len(once) > 10
    for name, gradient in once.items():
        torch.testing.assert_close(gradient, trainer.model.get_parameter(name).grad, atol=1e-6, rtol=1e-4)


def test_the_loss_falls(make_trainer: Callable):
    trainer = make_trainer(PRECOMPUTED, {}, max_steps=15, learning_rate=3e-3)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_an_online_teacher_trains_like_a_precomputed_one(make_trainer: Callable):
    logs = []
    for columns, options in ((PRECOMPUTED, {}), ({"text": TEXTS}, {"teacher": encode})):
        trainer = make_trainer(columns, options)
        trainer.train()
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logs[0] == pytest.approx(logs[1])


def test_an_online_teacher_embeds_each_batch_once(make_trainer: Callable):
    calls = []

    def counting(texts: list[str]) -> Any:
        calls.append(texts)
        return encode(texts)

    trainer = make_trainer({"text": TEXTS}, {"teacher": counting}, matryoshka_dims=[4, 8], max_steps=2)
    trainer.train()
    assert [len(texts) for texts in calls] == [16, 16]


def test_without_a_teacher_the_error_names_the_missing_column(make_trainer: Callable):
    with pytest.raises(
        ValueError, match=r"lacks the column\(s\) teacher.*needs text, teacher, but the rows have text"
    ):
        make_trainer({"text": TEXTS}, {})


def test_trained_weights_outside_the_language_model_are_refused(
    make_model: Callable, processor: ProcessorMixin, tmp_path: Path
):
    model = make_model()
    with pytest.raises(ValueError, match="vision_tower.*lies outside"):
        peft_config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["patch_embedding"])
        DistillationTrainer(
            model,
            DistillationConfig(str(tmp_path), use_cpu=True),
            Dataset.from_dict(PRECOMPUTED),
            processing_class=processor,
            peft_config=peft_config,
        )


def test_a_batch_of_one_is_refused(make_trainer: Callable):
    with pytest.raises(ValueError, match="batch of one"):
        make_trainer(PRECOMPUTED, {}, per_device_train_batch_size=1).train()


@pytest.mark.parametrize("options", [{"teacher_temperature": 0.0}, {"kl_direction": "both"}])
def test_invalid_arguments_are_refused(options: dict[str, Any], tmp_path: Path):
    with pytest.raises(ValueError, match=next(iter(options))):
        DistillationConfig(str(tmp_path), use_cpu=True, **options)
