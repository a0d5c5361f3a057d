"""The soft-label loss of UniME-V2, on numbers of the released code and by hand, and in the trainer."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ProcessorMixin

from unime.trainers import ContrastiveConfig, ContrastiveTrainer, soft_label_loss


# Cosines of the positive and eight negatives of three queries, and a judge's scores: an example of the released code.
COSINES = torch.tensor(
    [
        [
            *(0.993279120121, 0.770435484796, 0.56304751686, 0.702934829735, 0.589599594945),
            *(0.693946860789, 0.627490370916, 0.677289815367, 0.62631107781),
        ],
        [
            *(0.866226746121, 0.890945921811, 0.910902046641, 0.603180185127, 0.643448177088),
            *(0.66659043716, 0.598106055704, 0.649579929214, 0.539016076627),
        ],
        [
            *(0.900493279559, 0.577761421046, 0.425919917924, 0.954860275496, 0.791791368996),
            *(0.308534336187, 0.564823892471, 0.065511525881, 0.83903864889),
        ],
    ],
    dtype=torch.float64,
)
SCORES = torch.tensor(
    [
        [0.98, 0.92, 0.9, 0.75, 0.6, 0.41, 0.2, 0.11, 0.05],
        [0.71, 0.7, 0.68, 0.66, 0.5, 0.3, 0.3, 0.1, 0.02],
        [1.0, 0.4, 0.35, 0.3, 0.22, 0.15, 0.1, 0.05, 0.01],
    ],
    dtype=torch.float64,
)


def loss_of(cosines: torch.Tensor, scores: torch.Tensor, temperature: float, **options: Any) -> torch.Tensor:
    """Return the loss of queries whose coordinates are their cosines, as the candidates are the axes."""
    indices = torch.arange(cosines.shape[1]).expand(len(cosines), -1)
    options = {"label_temperature": temperature} | options
    return soft_label_loss(cosines, torch.eye(cosines.shape[1]), indices, scores, temperature=temperature, **options)


@pytest.mark.parametrize(("temperature", "expected"), [(0.02, 3.8122313678454587), (0.5, 0.13698837109943357)])
def test_the_loss_equals_that_of_the_released_code(temperature: float, expected: float):
    assert loss_of(COSINES, SCORES, temperature).item() == pytest.approx(expected, abs=1e-8)
    assert loss_of(COSINES.float(), SCORES.float(), temperature).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("divergence", "rows"),
    [
        ("label_student", [0.560161530703, 1.442853995379, 2.785378159856]),
        ("student_label", [0.065759873304, 0.988719200351, 17.030515447481]),
    ],
)
def test_each_direction_equals_that_of_the_released_code(divergence: str, rows: list[float]):
    for row, expected in enumerate(rows):
        part = slice(row, row + 1)
        assert loss_of(COSINES[part], SCORES[part], 0.02, divergence=divergence).item() == pytest.approx(
            expected, abs=1e-8
        )


def test_the_gradient_equals_that_of_the_released_code():
    queries = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    candidates = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    indices, scores = torch.tensor([[0, 1, 2], [1, 0, 3]]), torch.tensor([[0.9, 0.7, 0.1], [0.8, 0.8, 0.3]]).double()
    loss = soft_label_loss(queries, candidates, indices, scores, temperature=0.1, label_temperature=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0.012008316458453606, abs=1e-7)
    expected = torch.tensor([[0.0, 0.0], [-0.080770408331, 0.06083068415]], dtype=torch.float64)
    torch.testing.assert_close(queries.grad, expected, atol=1e-6, rtol=0)


def test_the_jensen_shannon_divergence_matches_a_hand_calculation():
    # Labels (1/2, 1/2), similarities (3/4, 1/4), mean (5/8, 3/8).
    cosines, scores = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.3, 0.3]])
    expected = 0.5 * (
        0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375)
        + 0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375)
    )  # fmt: skip
    assert loss_of(cosines, scores, 1.0, divergence="js").item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("divergence", ["symmetric_kl", "label_student", "student_label", "js"])
def test_padding_changes_neither_loss_nor_gradient(divergence: str):
    short, long = COSINES[:1, :3], COSINES[1:2]
    padded = torch.cat([torch.nn.functional.pad(short, (0, 6), value=0.9), long]).requires_grad_()
    scores = torch.cat([torch.nn.functional.pad(SCORES[:1, :3], (0, 6), value=-math.inf), SCORES[1:2]])
    loss = loss_of(padded, scores, 0.1, divergence=divergence)
    parts = [part.clone().requires_grad_() for part in (short, long)]
    expected = sum(
        loss_of(part, part_scores, 0.1, divergence=divergence)
        for part, part_scores in zip(parts, (SCORES[:1, :3], SCORES[1:2]), strict=True)
    )
    torch.testing.assert_close(loss, expected / 2)
    loss.backward()
    (expected / 2).backward()
    torch.testing.assert_close(padded.grad[0, :3], parts[0].grad[0])
    torch.testing.assert_close(padded.grad[1], parts[1].grad[0])
    assert padded.grad[0, 3:].eq(0).all()


def row(query: str, *candidates: str, scores: list[float | None] | None = None) -> dict[str, Any]:
    return {
        "query": query,
        "positive": candidates[0],
        "negatives": list(candidates[1:]),
        "task": "t",
        "label": None,
        "scores": scores,
    }


ROWS = [
    row("red", "rouge", "vert", "rose", scores=[0.9, 0.1, 0.6]),
    row("green", "vert", "rouge"),
    row("blue", "bleu", "vert", "ciel", "vert", scores=[0.8, 0.2, None, 0.2]),
]


@pytest.fixture
def make_trainer(make_model: Callable, processor: ProcessorMixin, tmp_path: Path) -> Callable[..., ContrastiveTrainer]:
    def make(**options: Any) -> ContrastiveTrainer:
        options = {"per_device_train_batch_size": 3, "max_steps": 2, "temperature": 0.1, "logging_steps": 1} | options
        args = ContrastiveConfig(str(tmp_path), report_to="none", use_cpu=True, save_strategy="no", **options)
        return ContrastiveTrainer(make_model(), args, train_dataset=ROWS, processing_class=processor)

    return make


def test_the_trainer_weighs_both_losses_and_ignores_what_is_not_judged(make_trainer: Callable):
    batch = make_trainer().data_collator(ROWS)
    items = torch.nn.functional.normalize(
        torch.randn(len(batch["identity"]), 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1
    )
    names = ["red", "green", "blue", "rouge", "vert", "bleu", "rose", "ciel"]  # in the order of the collator
    vectors = dict(zip(names, items, strict=True))
    parts = []
    for query, judged, scores in (
        ("red", ("rouge", "vert", "rose"), (0.9, 0.1, 0.6)),
        ("blue", ("bleu", "vert", "vert"), (0.8, 0.2, 0.2)),
    ):
        cosines = torch.stack([vectors[query] @ vectors[name] for name in judged])
        parts.append(
            soft_label_loss(
                cosines[None],
                torch.eye(3),
                torch.arange(3)[None],
                torch.tensor([scores]),
                temperature=0.1,
                label_temperature=0.2,
            )
        )
    soft = sum(parts) / 2
    plain, _ = make_trainer().batch_loss(items, batch)
    for weights in ((1.0, 0.5), (0.0, 1.0)):
        options = dict(zip(("contrastive_weight", "soft_label_weight"), weights, strict=True))
        loss, statistics = make_trainer(soft_label_temperature=0.2, **options).batch_loss(items, batch)
        torch.testing.assert_close(loss, weights[0] * plain + weights[1] * soft)
        assert statistics["scored_rows"] == 2
        torch.testing.assert_close(statistics["soft_label_loss"], soft)


def test_rows_without_scores_contribute_the_contrastive_loss_only(make_trainer: Callable):
    trainer, plain = make_trainer(soft_label_weight=1.0), make_trainer()
    batch = plain.data_collator([each | {"scores": None} for each in ROWS])
    items = torch.eye(8)
    loss, statistics = trainer.batch_loss(items, batch)
    assert loss == plain.batch_loss(items, batch)[0]
    assert statistics["scored_rows"] == 0 and statistics["soft_label_loss"] == 0


def test_training_with_scores_alone_moves_the_similarities_to_the_labels(make_trainer: Callable):
    trainer = make_trainer(
        contrastive_weight=0.0, soft_label_weight=1.0, soft_label_temperature=0.5, max_steps=12, learning_rate=3e-3,
        warmup_steps=0, matryoshka_dims=[8], micro_batch_tokens=32,
    )  # fmt: skip
    trainer.train()
    log = [entry["soft_label_loss"] for entry in trainer.state.log_history if "soft_label_loss" in entry]
    assert len(log) == 12 and log[-1] < 0.5 * log[0]


def test_gradient_caching_gives_the_weights_of_a_single_pass(make_trainer: Callable):
    trained, before = [], None
    for micro_batch_tokens in (8192, 32):  # one micro-batch, which has an ordinary graph, and several
        trainer = make_trainer(
            contrastive_weight=0.0, soft_label_weight=1.0, soft_label_temperature=0.5, max_steps=1, optim="sgd",
            learning_rate=1.0, warmup_steps=0, max_grad_norm=0.0, micro_batch_tokens=micro_batch_tokens,
            lr_scheduler_type="constant", graph_cache_gb=0.0,
        )  # fmt: skip
        before = [weight.detach().clone() for weight in trainer.model.parameters()]
        trainer.train()
        trained.append([weight.detach() for weight in trainer.model.parameters()])
    single, several = trained
    assert any((new - old).abs().max() > 1e-3 for new, old in zip(single, before, strict=True))
    for first, second in zip(single, several, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
