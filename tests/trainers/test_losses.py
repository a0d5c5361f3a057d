import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.profiler import ProfilerActivity, profile

from unime.trainers import contrastive_loss, distillation_kl, losses


# With the unit vectors of the axes as candidates, a query's coordinates are its cosines.
COSINES = torch.tensor(
    [
        [0.6, 0.5, 0.65, 0.72],  # alpha = 0.7: the last is a false negative, the hardest left is 0.65, then 0.5
        [0.1, 0.3, 0.2, 0.35],  # alpha = 0.4: nothing is dropped; hardest 0.35, then 0.2
        [0.9, 0.8, 0.5, 0.4],  # alpha = 0.6: two are dropped, only 0.4 is left
        [0.7, 0.8, 0.9, 0.5],  # alpha = 0.6: all are dropped
    ]
)
AXES = torch.eye(4)
OWN = torch.arange(4)
NONE = torch.zeros(4, 4, dtype=torch.bool)


def minus_log_share(positive: float, *negatives: float) -> float:
    return math.log(sum(math.exp(value - positive) for value in (positive, *negatives)))


def test_contrastive_loss_of_identical_embeddings_is_log_batch_size():
    same = normalize(torch.ones(6, 3), dim=1)
    loss, _ = contrastive_loss(
        same,
        same,
        torch.arange(6),
        torch.zeros(6, 6, dtype=torch.bool),
        false_negative_margin=None,
        num_hard_negatives=None,
    )
    assert loss.item() == pytest.approx(math.log(6), abs=1e-6)


def test_the_filter_and_the_hardest_two_are_those_worked_by_hand():
    loss, statistics = contrastive_loss(
        COSINES, AXES, OWN, NONE, temperature=1.0, false_negative_margin=0.1, num_hard_negatives=2
    )
    rows = [
        minus_log_share(0.6, 0.65, 0.5),
        minus_log_share(0.3, 0.35, 0.2),
        minus_log_share(0.5, 0.4),
        0.0,  # no negative is left
    ]
    assert loss.item() == pytest.approx(sum(rows) / 4, abs=1e-6)
    expected = {
        "filtered": 3 / 4,
        "hardness": (0.65 + 0.5 + 0.35 + 0.2 + 0.4) / 5,
        "positive_similarity": (0.6 + 0.3 + 0.5 + 0.5) / 4,
        "negative_similarity": (0.5 + 0.65 + 0.72 + 0.1 + 0.2 + 0.35 + 0.9 + 0.8 + 0.4 + 0.7 + 0.8 + 0.9) / 12,
        "accuracy": 0.0,
    }
    assert {name: value.item() for name, value in statistics.items()} == pytest.approx(expected, abs=1e-6)


def test_the_easiest_are_those_worked_by_hand():
    loss, _ = contrastive_loss(
        COSINES,
        AXES,
        OWN,
        NONE,
        temperature=1.0,
        false_negative_margin=0.1,
        num_hard_negatives=1,
        negative_sampling="easiest",
    )
    rows = [minus_log_share(0.6, 0.5), minus_log_share(0.3, 0.1), minus_log_share(0.5, 0.4), 0.0]
    assert loss.item() == pytest.approx(sum(rows) / 4, abs=1e-6)


def test_random_negatives_are_any_that_pass_the_filter():
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        loss, _ = contrastive_loss(
            COSINES,
            AXES,
            OWN,
            NONE,
            temperature=1.0,
            false_negative_margin=0.1,
            num_hard_negatives=1,
            negative_sampling="random",
        )
        seen.add(round(4 * loss.item() - minus_log_share(0.5, 0.4), 4))  # row 2 has one left, row 3 none
    firsts = [minus_log_share(0.6, other) for other in (0.5, 0.65)]
    seconds = [minus_log_share(0.3, other) for other in (0.1, 0.2, 0.35)]
    assert seen == {round(first + second, 4) for first in firsts for second in seconds}


def test_missing_negatives_are_repeated_hardest_first_when_asked():
    loss, _ = contrastive_loss(
        COSINES,
        AXES,
        OWN,
        NONE,
        temperature=1.0,
        false_negative_margin=0.1,
        num_hard_negatives=3,
        pad_negatives="repeat",
    )
    rows = [
        minus_log_share(0.6, 0.65, 0.5, 0.65),
        minus_log_share(0.3, 0.35, 0.2, 0.1),
        minus_log_share(0.5, 0.4, 0.4, 0.4),
        0.0,
    ]
    assert loss.item() == pytest.approx(sum(rows) / 4, abs=1e-6)


def test_repeating_fills_more_places_than_there_are_candidates():
    loss, _ = contrastive_loss(
        COSINES[2:3], AXES, OWN[2:3], NONE[2:3], temperature=1.0, num_hard_negatives=6, pad_negatives="repeat"
    )
    assert loss.item() == pytest.approx(minus_log_share(0.5, *[0.4] * 6), abs=1e-6)


def test_hardness_weighs_each_negative_by_its_cosine_and_sends_no_gradient():
    cosines = COSINES[1:2].clone().requires_grad_()  # positive 0.3, negatives 0.1, 0.2 and 0.35
    settings = {
        "temperature": 0.5,
        "false_negative_margin": None,
        "num_hard_negatives": None,
        "hardness_strength": 9.0,
    }
    loss, _ = contrastive_loss(cosines, AXES, OWN[1:2], NONE[1:2], **settings)
    terms = [math.exp(9 * value) * math.exp(value / 0.5) for value in (0.1, 0.2, 0.35)]
    total = math.exp(0.3 / 0.5) + sum(terms)
    assert loss.item() == pytest.approx(-math.log(math.exp(0.3 / 0.5) / total), abs=1e-6)
    loss.backward()
    shares = [terms[0] / total, -sum(terms) / total, terms[1] / total, terms[2] / total]
    # Only the cosine over the temperature carries a gradient: the share of a negative, not that times 9.
    torch.testing.assert_close(cosines.grad, torch.tensor([shares]) / 0.5)


def test_the_filter_without_k_is_the_mask_of_qwen3_vl_embedding():
    excluded = NONE.clone()
    excluded[0, 1] = True  # the same document as row 0's positive
    loss, _ = contrastive_loss(
        COSINES, AXES, OWN, excluded, temperature=1.0, false_negative_margin=0.1, num_hard_negatives=None
    )
    rows = [minus_log_share(0.6, 0.65), minus_log_share(0.3, 0.1, 0.2, 0.35), minus_log_share(0.5, 0.4), 0.0]
    assert loss.item() == pytest.approx(sum(rows) / 4, abs=1e-6)


def test_k_larger_than_the_pool_takes_all_that_are_left():
    many, _ = contrastive_loss(COSINES, AXES, OWN, NONE, num_hard_negatives=64)
    all_of_them, _ = contrastive_loss(COSINES, AXES, OWN, NONE, num_hard_negatives=None)
    assert torch.equal(many, all_of_them)


def test_without_filter_and_k_it_is_in_batch_info_nce():
    loss, statistics = contrastive_loss(
        COSINES, AXES, OWN, NONE, temperature=0.5, false_negative_margin=None, num_hard_negatives=None
    )
    torch.testing.assert_close(loss, cross_entropy(COSINES / 0.5, OWN))
    assert statistics["filtered"] == 0


def test_excluded_candidates_do_not_come_back():
    excluded = torch.tensor([[False, False, True, False]]).expand(4, 4)
    loss, _ = contrastive_loss(
        COSINES, AXES, OWN, excluded, temperature=1.0, false_negative_margin=0.1, num_hard_negatives=2
    )
    rows = [
        minus_log_share(0.6, 0.5),
        minus_log_share(0.3, 0.35, 0.1),
        minus_log_share(0.5, 0.4),
        0.0,
    ]
    assert loss.item() == pytest.approx(sum(rows) / 4, abs=1e-6)


def test_a_tie_with_the_positive_counts_as_wrong():
    cosines = torch.tensor([[0.5, 0.5], [0.2, 0.5]])
    _, statistics = contrastive_loss(cosines, torch.eye(2), torch.arange(2), torch.zeros(2, 2, dtype=torch.bool))
    assert statistics["accuracy"] == 0.5


def naive_negatives(
    cosines: list[float],
    positive: int,
    excluded: list[bool],
    false_negative_margin: float | None,
    num_hard_negatives: int | None,
) -> list[int]:
    alpha = math.inf if false_negative_margin is None else cosines[positive] + false_negative_margin
    left = [j for j in range(len(cosines)) if j != positive and not excluded[j] and cosines[j] <= alpha]
    return sorted(left, key=lambda j: -cosines[j])[:num_hard_negatives]


@pytest.mark.parametrize("pad_negatives", ["mask", "repeat"])
def test_only_the_chosen_negatives_ever_receive_a_gradient(pad_negatives: str):
    chance = random.Random(0)
    for trial in range(200):
        generator = torch.Generator().manual_seed(trial)
        batch, pool = chance.randint(2, 6), chance.randint(6, 12)
        false_negative_margin, num_hard_negatives = (
            chance.choice([None, -0.2, 0.0, 0.1]),
            chance.choice([None, 1, 3, 20]),
        )
        cosines = (torch.rand(batch, pool, generator=generator, dtype=torch.float64) * 2 - 1).requires_grad_()
        positive = torch.randint(pool, (batch,), generator=generator)
        excluded = torch.rand(batch, pool, generator=generator) < 0.4
        if excluded.scatter(1, positive[:, None], True).all():
            continue
        loss, _ = contrastive_loss(
            cosines,
            torch.eye(pool),
            positive,
            excluded,
            temperature=1.0,
            false_negative_margin=false_negative_margin,
            num_hard_negatives=num_hard_negatives,
            pad_negatives=pad_negatives,
        )
        loss.backward()
        expected_loss = 0.0
        for row, own, taboo, gradient in zip(
            cosines.tolist(), positive.tolist(), excluded.tolist(), cosines.grad, strict=True
        ):
            negatives = naive_negatives(row, own, taboo, false_negative_margin, num_hard_negatives)
            touched = set(gradient.nonzero().flatten().tolist())
            assert touched == ({own, *negatives} if negatives else set())
            if pad_negatives == "repeat" and num_hard_negatives is not None and negatives:
                negatives = [negatives[place % len(negatives)] for place in range(num_hard_negatives)]
            expected_loss += minus_log_share(row[own], *(row[j] for j in negatives)) / batch
        assert loss.item() == pytest.approx(expected_loss, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_pool_without_any_negative_is_an_error(rows: int):
    same = torch.ones(rows, rows, dtype=torch.bool)
    with pytest.raises(ValueError, match="no query has a negative.*raise per_device_train_batch_size"):
        contrastive_loss(torch.eye(rows), torch.eye(rows), torch.arange(rows), same)


def test_contrastive_loss_is_computed_in_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = contrastive_loss(COSINES, AXES, OWN, NONE)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(COSINES, AXES, OWN, NONE)[0])


def distillation(student: Tensor, teacher: Tensor, **options: object) -> float:
    options = {"student_temperature": 1.0, "teacher_temperature": 1.0} | options
    return distillation_kl(student, teacher, **options).item()


def test_distillation_of_identical_similarities_is_zero():
    student = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    wider = torch.cat([2 * student @ rotation, torch.zeros(5, 2)], dim=1)  # other dimension, same cosines
    assert distillation(student, wider) == pytest.approx(0, abs=1e-6)


# Student: two orthogonal texts, rows softmax(1, 0) = (e, 1) / (e + 1). Teacher: two equal texts, rows (1/2, 1/2).
ORTHOGONAL, EQUAL = torch.eye(2), torch.ones(2, 1)
SELF, OTHER = math.e / (math.e + 1), 1 / (math.e + 1)


def test_distillation_of_two_texts_is_the_kl_worked_by_hand():
    forward = 0.5 * math.log(0.5 / SELF) + 0.5 * math.log(0.5 / OTHER)
    backward = SELF * math.log(SELF / 0.5) + OTHER * math.log(OTHER / 0.5)
    assert distillation(ORTHOGONAL, EQUAL) == pytest.approx(forward, abs=1e-6)
    assert distillation(ORTHOGONAL, EQUAL, kl_direction="student_teacher") == pytest.approx(backward, abs=1e-6)
    assert forward != pytest.approx(backward, abs=1e-3)


def test_each_side_has_its_own_temperature():
    share = math.exp(2) / (math.exp(2) + 1)
    expected = 0.5 * math.log(0.5 / share) + 0.5 * math.log(0.5 / (1 - share))
    assert distillation(ORTHOGONAL, EQUAL, student_temperature=0.5) == pytest.approx(expected, abs=1e-6)
    assert distillation(ORTHOGONAL, EQUAL, teacher_temperature=0.1) == pytest.approx(
        distillation(ORTHOGONAL, EQUAL), abs=1e-6
    )


def test_distillation_of_one_text_is_an_error():
    with pytest.raises(ValueError, match="batch of one.*raise per_device_train_batch_size"):
        distillation(torch.ones(1, 2), torch.ones(1, 2))


def test_distillation_needs_one_teacher_embedding_per_text():
    with pytest.raises(ValueError, match="got 3 for 2 texts"):
        distillation(torch.eye(2), torch.eye(3))


def by_slices(
    loss_of: Callable[[Tensor, Tensor], list[Tensor]], most_elements: int, monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """The loss of the two tensors below, and its gradients, with a matrix of so many elements at once."""
    monkeypatch.setattr(losses, "MOST_ELEMENTS", most_elements)
    generator = torch.Generator().manual_seed(0)
    first, second = (
        normalize(torch.randn(rows, 8, generator=generator), dim=-1).requires_grad_() for rows in (13, 31)
    )
    loss, *others = loss_of(first, second)
    loss.backward()
    return [loss.detach(), first.grad, *([] if second.grad is None else [second.grad]), *others]


@pytest.mark.parametrize("most_elements", [1, 4 * 31, 7 * 31 + 5])  # slices of 1, of 4 and of 7 rows, the last shorter
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"false_negative_margin": None, "num_hard_negatives": None},
        {"num_hard_negatives": 40, "pad_negatives": "repeat"},
        {"false_negative_margin": -0.2, "hardness_strength": 9.0},
    ],
)
def test_the_loss_in_slices_is_the_loss_at_once(
    options: dict, most_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    excluded = torch.rand(13, 31, generator=torch.Generator().manual_seed(1)) < 0.3
    excluded[2] = True  # a query without any negative

    def loss_of(queries: Tensor, candidates: Tensor) -> list[Tensor]:
        loss, statistics = contrastive_loss(queries, candidates, torch.arange(13), excluded, **options)
        return [loss, *statistics.values()]

    whole = by_slices(loss_of, 13 * 31, monkeypatch)
    for ours, wanted in zip(by_slices(loss_of, most_elements, monkeypatch), whole, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kl_direction", ["teacher_student", "student_teacher"])
def test_distillation_in_slices_is_distillation_at_once(kl_direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss_of(student: Tensor, others: Tensor) -> list[Tensor]:
        teacher = others[:13].detach()
        settings = {"student_temperature": 0.1, "teacher_temperature": 0.05, "kl_direction": kl_direction}
        return [distillation_kl(student, teacher, **settings)]

    whole = by_slices(loss_of, 13 * 13, monkeypatch)
    for ours, wanted in zip(by_slices(loss_of, 4 * 13, monkeypatch), whole, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_a_large_batch_holds_no_whole_matrix_of_similarities() -> None:
    queries = normalize(torch.randn(4096, 8), dim=-1).requires_grad_()
    excluded = torch.zeros(4096, 4096, dtype=torch.bool)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss, _ = contrastive_loss(queries, queries, torch.arange(4096), excluded)
        loss.backward()
    largest = max(event.self_cpu_memory_usage for event in profiler.events())
    assert largest < 4096 * 4096 * 4 / 4  # bytes: a quarter of the matrix in float32
