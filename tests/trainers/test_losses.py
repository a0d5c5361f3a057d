import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.profiler import ProfilerActivity, profile

from unime.trainers import contrastive_loss, distillation_kl, losses, soft_label_loss


# The candidates are the unit vectors of the axes, so a query's coordinates are its cosines.
COSINES = torch.tensor(
    [
        [0.6, 0.5, 0.65, 0.72],  # threshold 0.7: the last is a false negative; the hardest remaining are 0.65 and 0.5
        [0.1, 0.3, 0.2, 0.35],  # threshold 0.4: nothing is dropped; the hardest are 0.35 and 0.2
        [0.9, 0.8, 0.5, 0.4],  # threshold 0.6: two are dropped, only 0.4 remains
        [0.7, 0.8, 0.9, 0.5],  # threshold 0.6: all are dropped
    ]
)
AXES = torch.eye(4)
DIAGONAL = torch.arange(4)
NO_EXCLUSIONS = torch.zeros(4, 4, dtype=torch.bool)


def minus_log_share(positive: float, *negatives: float) -> float:
    return math.log(sum(math.exp(value - positive) for value in (positive, *negatives)))


def test_the_contrastive_loss_of_identical_embeddings_is_the_log_of_the_batch_size():
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


def test_the_filter_and_the_two_hardest_negatives_match_a_hand_calculation():
    loss, statistics = contrastive_loss(
        COSINES, AXES, DIAGONAL, NO_EXCLUSIONS, temperature=1.0, false_negative_margin=0.1, num_hard_negatives=2
    )
    rows = [
        minus_log_share(0.6, 0.65, 0.5),
        minus_log_share(0.3, 0.35, 0.2),
        minus_log_share(0.5, 0.4),
        0.0,  # no negative remains
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


def test_the_easiest_negatives_match_a_hand_calculation():
    loss, _ = contrastive_loss(
        COSINES,
        AXES,
        DIAGONAL,
        NO_EXCLUSIONS,
        temperature=1.0,
        false_negative_margin=0.1,
        num_hard_negatives=1,
        negative_sampling="easiest",
    )
    rows = [minus_log_share(0.6, 0.5), minus_log_share(0.3, 0.1), minus_log_share(0.5, 0.4), 0.0]
    assert loss.item() == pytest.approx(sum(rows) / 4, abs=1e-6)


def test_random_negatives_are_any_candidates_that_pass_the_filter():
    seen = set()
    for seed in range(30):
        loss, _ = contrastive_loss(
            COSINES,
            AXES,
            DIAGONAL,
            NO_EXCLUSIONS,
            temperature=1.0,
            false_negative_margin=0.1,
            num_hard_negatives=1,
            negative_sampling="random",
            sampling_seed=seed,
        )
        seen.add(round(4 * loss.item() - minus_log_share(0.5, 0.4), 4))  # one negative remains in row 2, none in row 3
    firsts = [minus_log_share(0.6, negative) for negative in (0.5, 0.65)]
    seconds = [minus_log_share(0.3, negative) for negative in (0.1, 0.2, 0.35)]
    assert seen == {round(first + second, 4) for first in firsts for second in seconds}


def test_missing_negatives_are_repeated_hardest_first_on_request():
    loss, _ = contrastive_loss(
        COSINES,
        AXES,
        DIAGONAL,
        NO_EXCLUSIONS,
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


def test_repeating_can_fill_more_slots_than_there_are_candidates():
    loss, _ = contrastive_loss(
        COSINES[2:3],
        AXES,
        DIAGONAL[2:3],
        NO_EXCLUSIONS[2:3],
        temperature=1.0,
        num_hard_negatives=6,
        pad_negatives="repeat",
    )
    assert loss.item() == pytest.approx(minus_log_share(0.5, *[0.4] * 6), abs=1e-6)


def test_every_query_can_have_its_own_temperature():
    queries, candidates = torch.eye(2), torch.eye(2)
    positive, excluded = torch.arange(2), torch.zeros(2, 2, dtype=torch.bool)
    # The cosines of each query are 1 with its positive and 0 with the other candidate.
    loss, _ = contrastive_loss(queries, candidates, positive, excluded, temperature=torch.tensor([1.0, 0.5]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2, abs=1e-6)

    indices, scores = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.8, 0.6], [0.8, 0.6]])
    options = {"label_temperature": 0.2, "divergence": "label_student"}
    both = soft_label_loss(queries, candidates, indices, scores, temperature=torch.tensor([1.0, 0.5]), **options)
    each = [soft_label_loss(queries[:1], candidates, indices[:1], scores[:1], temperature=1.0, **options)]
    each.append(soft_label_loss(queries[1:], candidates, indices[1:], scores[1:], temperature=0.5, **options))
    assert both.item() == pytest.approx(sum(each).item() / 2, abs=1e-6)
    # KL of (e, 1) / (e + 1), the labels of both, with themselves is 0.
    assert each[0].item() == pytest.approx(0, abs=1e-6)


def test_the_hardness_weight_depends_on_the_cosine_and_has_no_gradient():
    cosines = COSINES[1:2].clone().requires_grad_()  # positive 0.3, negatives 0.1, 0.2 and 0.35
    settings = {
        "temperature": 0.5,
        "false_negative_margin": None,
        "num_hard_negatives": None,
        "hardness_strength": 9.0,
    }
    loss, _ = contrastive_loss(cosines, AXES, DIAGONAL[1:2], NO_EXCLUSIONS[1:2], **settings)
    terms = [math.exp(9 * value) * math.exp(value / 0.5) for value in (0.1, 0.2, 0.35)]
    total = math.exp(0.3 / 0.5) + sum(terms)
    assert loss.item() == pytest.approx(-math.log(math.exp(0.3 / 0.5) / total), abs=1e-6)
    loss.backward()
    shares = [terms[0] / total, -sum(terms) / total, terms[1] / total, terms[2] / total]
    # The gradient is the softmax share of a negative over the temperature, without a factor 9 for the hardness weight.
    torch.testing.assert_close(cosines.grad, torch.tensor([shares]) / 0.5)


def test_the_filter_with_all_negatives_is_the_mask_of_qwen3_vl_embedding():
    excluded = NO_EXCLUSIONS.clone()
    excluded[0, 1] = True  # the same document as the positive of row 0
    loss, _ = contrastive_loss(
        COSINES, AXES, DIAGONAL, excluded, temperature=1.0, false_negative_margin=0.1, num_hard_negatives=None
    )
    rows = [minus_log_share(0.6, 0.65), minus_log_share(0.3, 0.1, 0.2, 0.35), minus_log_share(0.5, 0.4), 0.0]
    assert loss.item() == pytest.approx(sum(rows) / 4, abs=1e-6)


def test_more_hard_negatives_than_candidates_use_all_that_pass_the_filter():
    many, _ = contrastive_loss(COSINES, AXES, DIAGONAL, NO_EXCLUSIONS, num_hard_negatives=64)
    all_of_them, _ = contrastive_loss(COSINES, AXES, DIAGONAL, NO_EXCLUSIONS, num_hard_negatives=None)
    assert torch.equal(many, all_of_them)


def test_without_filter_and_limit_the_loss_is_in_batch_info_nce():
    loss, statistics = contrastive_loss(
        COSINES, AXES, DIAGONAL, NO_EXCLUSIONS, temperature=0.5, false_negative_margin=None, num_hard_negatives=None
    )
    torch.testing.assert_close(loss, cross_entropy(COSINES / 0.5, DIAGONAL))
    assert statistics["filtered"] == 0


def test_excluded_candidates_are_never_negatives():
    excluded = torch.tensor([[False, False, True, False]]).expand(4, 4)
    loss, _ = contrastive_loss(
        COSINES, AXES, DIAGONAL, excluded, temperature=1.0, false_negative_margin=0.1, num_hard_negatives=2
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
    threshold = math.inf if false_negative_margin is None else cosines[positive] + false_negative_margin
    remaining = [j for j in range(len(cosines)) if j != positive and not excluded[j] and cosines[j] <= threshold]
    return sorted(remaining, key=lambda j: -cosines[j])[:num_hard_negatives]


def test_further_cosines_share_the_softmax_and_the_choice_of_negatives_by_hand():
    queries, candidates = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    excluded = torch.eye(2, dtype=torch.bool)
    settings = {"temperature": 0.5, "false_negative_margin": None, "further": [(queries, queries, excluded)]}
    loss, statistics = contrastive_loss(
        queries, candidates, torch.arange(2), excluded, num_hard_negatives=None, **settings
    )
    # Cosines: q0-c0 0.8, q0-c1 0, q1-c0 0.96, q1-c1 0.8, q0-q1 0.6.
    rows = [minus_log_share(1.6, 0.0, 1.2), minus_log_share(1.6, 1.92, 1.2)]
    assert loss.item() == pytest.approx(sum(rows) / 2, abs=1e-6)
    assert statistics["accuracy"] == 0.5 and statistics["negative_similarity"].item() == pytest.approx(2.16 / 4)
    hardest, _ = contrastive_loss(queries, candidates, torch.arange(2), excluded, num_hard_negatives=1, **settings)
    rows = [minus_log_share(1.6, 1.2), minus_log_share(1.6, 1.92)]
    assert hardest.item() == pytest.approx(sum(rows) / 2, abs=1e-6)


@pytest.mark.parametrize("pad_negatives", ["mask", "repeat"])
def test_only_the_chosen_negatives_receive_a_gradient(pad_negatives: str):
    sizes = random.Random(0)
    for trial in range(200):
        generator = torch.Generator().manual_seed(trial)
        batch, pool = sizes.randint(2, 6), sizes.randint(6, 12)
        false_negative_margin, num_hard_negatives = (
            sizes.choice([None, -0.2, 0.0, 0.1]),
            sizes.choice([None, 1, 3, 20]),
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
        for row, own_positive, own_excluded, gradient in zip(
            cosines.tolist(), positive.tolist(), excluded.tolist(), cosines.grad, strict=True
        ):
            negatives = naive_negatives(row, own_positive, own_excluded, false_negative_margin, num_hard_negatives)
            touched = set(gradient.nonzero().flatten().tolist())
            assert touched == ({own_positive, *negatives} if negatives else set())
            if pad_negatives == "repeat" and num_hard_negatives is not None and negatives:
                negatives = [negatives[slot % len(negatives)] for slot in range(num_hard_negatives)]
            expected_loss += minus_log_share(row[own_positive], *(row[j] for j in negatives)) / batch
        assert loss.item() == pytest.approx(expected_loss, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_pool_without_any_negative_is_an_error(rows: int):
    same = torch.ones(rows, rows, dtype=torch.bool)
    with pytest.raises(ValueError, match="no query has a negative.*raise per_device_train_batch_size"):
        contrastive_loss(torch.eye(rows), torch.eye(rows), torch.arange(rows), same)


def test_contrastive_loss_is_computed_in_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = contrastive_loss(COSINES, AXES, DIAGONAL, NO_EXCLUSIONS)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(COSINES, AXES, DIAGONAL, NO_EXCLUSIONS)[0])


def distillation(student: Tensor, teacher: Tensor, **options: object) -> float:
    options = {"student_temperature": 1.0, "teacher_temperature": 1.0} | options
    return distillation_kl(student, teacher, **options).item()


def test_the_distillation_loss_of_identical_similarities_is_zero():
    student = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    wider = torch.cat([2 * student @ rotation, torch.zeros(5, 2)], dim=1)  # a different dimension, the same cosines
    assert distillation(student, wider) == pytest.approx(0, abs=1e-6)


# Student: two orthogonal texts, rows softmax(1, 0) = (e, 1) / (e + 1). Teacher: two equal texts, rows (1/2, 1/2).
ORTHOGONAL, EQUAL = torch.eye(2), torch.ones(2, 1)
SELF, OTHER = math.e / (math.e + 1), 1 / (math.e + 1)


def test_the_distillation_loss_of_two_texts_matches_a_hand_calculation():
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


def loss_and_gradients(
    loss_of: Callable[[Tensor, Tensor], list[Tensor]], max_similarities: int, monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """Return the loss of two random tensors and its gradients, with a limited number of similarities in memory."""
    monkeypatch.setattr(losses, "MAX_SIMILARITIES", max_similarities)
    generator = torch.Generator().manual_seed(0)
    first, second = (
        normalize(torch.randn(rows, 8, generator=generator), dim=-1).requires_grad_() for rows in (13, 31)
    )
    loss, *statistics = loss_of(first, second)
    loss.backward()
    return [loss.detach(), first.grad, *([] if second.grad is None else [second.grad]), *statistics]


@pytest.mark.parametrize("max_similarities", [1, 4 * 31, 7 * 31 + 5])  # slices of 1, 4 and 7 rows
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"false_negative_margin": None, "num_hard_negatives": None},
        {"num_hard_negatives": 40, "pad_negatives": "repeat"},
        {"false_negative_margin": -0.2, "hardness_strength": 9.0},
        {"negative_sampling": "random", "num_hard_negatives": 40},  # all of them, in random order
        {"further": True},
    ],
)
def test_the_loss_computed_in_slices_equals_the_loss_at_once(
    options: dict, max_similarities: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    excluded = torch.rand(13, 31, generator=torch.Generator().manual_seed(1)) < 0.3
    excluded[2] = True  # a query without any negative

    def loss_of(queries: Tensor, candidates: Tensor) -> list[Tensor]:
        further = [(queries, queries, torch.eye(13, dtype=torch.bool)), (candidates[:13], candidates, excluded)]
        settings = options | {"further": further if "further" in options else ()}
        loss, statistics = contrastive_loss(queries, candidates, torch.arange(13), excluded, **settings)
        return [loss, *statistics.values()]

    whole = loss_and_gradients(loss_of, 13 * 75, monkeypatch)
    for value, expected in zip(loss_and_gradients(loss_of, max_similarities, monkeypatch), whole, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kl_direction", ["teacher_student", "student_teacher"])
def test_the_distillation_loss_computed_in_slices_equals_the_loss_at_once(
    kl_direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss_of(student: Tensor, candidates: Tensor) -> list[Tensor]:
        teacher = candidates[:13].detach()
        settings = {"student_temperature": 0.1, "teacher_temperature": 0.05, "kl_direction": kl_direction}
        return [distillation_kl(student, teacher, **settings)]

    whole = loss_and_gradients(loss_of, 13 * 13, monkeypatch)
    for value, expected in zip(loss_and_gradients(loss_of, 4 * 13, monkeypatch), whole, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_random_negatives_follow_from_the_seed_in_the_backward_pass_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "MAX_SIMILARITIES", 31)  # slices of one row, which the backward pass computes again
    generator = torch.Generator().manual_seed(0)
    queries, candidates = (
        torch.randn(rows, 2, generator=generator, dtype=torch.float64).requires_grad_() for rows in (13, 31)
    )

    def loss_of(queries: Tensor, candidates: Tensor, seed: int = 7) -> Tensor:
        torch.rand(1)  # an independent draw, as by dropout in one of several processes
        return contrastive_loss(
            queries,
            candidates,
            torch.arange(13),
            torch.zeros(13, 31, dtype=torch.bool),
            temperature=1.0,
            num_hard_negatives=2,
            negative_sampling="random",
            sampling_seed=seed,
            false_negative_margin=None,
        )[0]

    assert loss_of(queries, candidates) == loss_of(queries, candidates) != loss_of(queries, candidates, seed=8)
    assert torch.autograd.gradcheck(loss_of, (queries, candidates))


def test_losses_of_float64_embeddings_are_float64():
    queries, candidates = COSINES.double(), AXES.double()
    assert contrastive_loss(queries, candidates, DIAGONAL, NO_EXCLUSIONS)[0].dtype == torch.float64
    temperatures = {"student_temperature": 1.0, "teacher_temperature": 1.0}
    assert distillation_kl(queries, AXES, **temperatures).dtype == torch.float64
    assert distillation_kl(queries.bfloat16(), AXES.bfloat16(), **temperatures).dtype == torch.float32


def test_a_large_batch_never_holds_the_whole_similarity_matrix() -> None:
    queries = normalize(torch.randn(4096, 8), dim=-1).requires_grad_()
    excluded = torch.zeros(4096, 4096, dtype=torch.bool)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss, _ = contrastive_loss(queries, queries, torch.arange(4096), excluded)
        loss.backward()
    largest = max(event.self_cpu_memory_usage for event in profiler.events())
    assert largest < 4096 * 4096 * 4 / 4  # bytes: a quarter of the matrix in float32
