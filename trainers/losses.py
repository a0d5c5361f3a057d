"""The losses of both stages as pure functions of embeddings (UniME, arXiv 2504.17432), always computed in float32."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, normalize
from torch.utils.checkpoint import checkpoint


MOST_ELEMENTS = 2**18  # of a matrix of similarities at once: more rows follow each other


def contrastive_loss(
    queries: Tensor,
    candidates: Tensor,
    positive: Tensor,
    excluded: Tensor,
    *,
    temperature: float = 0.02,
    false_negative_margin: float | None = 0.1,
    num_hard_negatives: int | None = 8,
    pad_negatives: Literal["mask", "repeat"] = "mask",
    negative_sampling: Literal["hardest", "random", "easiest"] = "hardest",
    hardness_strength: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """InfoNCE over the positive and the k hardest negatives that pass the false-negative filter (§3.3, Eq. 3 and 4).

    A negative whose cosine with the query exceeds `cos(query, positive) + beta` is taken for a false negative and
    dropped; of those left over the whole pool the `num_hard_negatives` most similar to the query are kept.

    Special cases: `false_negative_margin=None, k=None` is plain in-batch InfoNCE, the loss of VLM2Vec; `false_negative_margin=0.1, k=None` with the
    positive's own document excluded is the mask of Qwen3-VL-Embedding; `false_negative_margin=None, k=None, hardness_strength=9` is the
    loss of LLaVE.

    Args:
        queries (`Tensor` of shape `(batch, dimensions)`): Unit vectors.
        candidates (`Tensor` of shape `(pool, dimensions)`): Unit vectors.
        positive (`Tensor` of shape `(batch,)`, long): Index of each query's positive in `candidates`.
        excluded (`Tensor` of shape `(batch, pool)`, bool): True where a candidate must not be a negative of a query.
        temperature (`float`, *optional*, defaults to `0.02`): Divides the cosines.
        beta (`float`, *optional*, defaults to `0.1`): Margin of the filter, as a cosine; `None` switches it off.
        k (`int`, *optional*, defaults to `8`): Negatives per query; `None`, or more than there are, takes all.
        fewer (`str`, *optional*, defaults to `"mask"`):
            What fills the places of a query with fewer than `num_hard_negatives` negatives: `"mask"` leaves them empty, `"repeat"`
            takes its negatives again, hardest first, as the paper does (§3.3.2).
        choose (`str`, *optional*, defaults to `"hardest"`):
            Which of the negatives that pass are the `num_hard_negatives`; `"random"` and `"easiest"` are for comparison (Figure 5).
        hardness_strength (`float`, *optional*, defaults to `0.0`):
            Weighs each negative by `exp(hardness_strength * cosine)`, a constant to the gradient (LLaVE,
            arXiv 2503.04812): the harder a negative, the more it pushes.

    Returns:
        `tuple[Tensor, dict[str, Tensor]]`: The mean loss, and detached scalars: `filtered` (share of queries that
        lost a negative to the filter), `hardness` (mean cosine of the chosen negatives), `positive_similarity` and
        `negative_similarity` (mean cosines), `accuracy` (share of queries whose positive beats every allowed
        candidate; a tie is a loss).

    Raises:
        ValueError: No query has any negative, as in a batch of one.
    """

    settings = (
        temperature,
        false_negative_margin,
        num_hard_negatives,
        pad_negatives,
        negative_sampling,
        hardness_strength,
    )

    def of_rows(rows: slice) -> Tensor:
        return _contrast(queries[rows], candidates, positive[rows], excluded[rows], *settings)

    sums = _sum_by_rows(of_rows, len(queries), len(candidates))
    loss, (filtered, hardness, chosen, of_positive, of_allowed, allowed, won) = sums[0], sums[1:].detach()
    if allowed == 0:
        raise ValueError(
            f"no query has a negative among the {len(candidates)} candidate(s) of this batch of {len(queries)}: raise "
            "per_device_train_batch_size, give the rows negatives, or check that not all rows share one answer"
        )
    statistics = {
        "filtered": filtered / len(queries),
        "hardness": hardness / chosen.clamp(min=1),
        "positive_similarity": of_positive / len(queries),
        "negative_similarity": of_allowed / allowed,
        "accuracy": won / len(queries),
    }
    return loss / len(queries), statistics


def _contrast(
    queries: Tensor,
    candidates: Tensor,
    positive: Tensor,
    excluded: Tensor,
    temperature: float,
    false_negative_margin: float | None,
    num_hard_negatives: int | None,
    pad_negatives: str,
    negative_sampling: str,
    hardness_strength: float,
) -> Tensor:
    """Return the loss of each query, and what the statistics are made of, summed over the queries: shape `(8,)`."""
    with torch.autocast(queries.device.type, enabled=False):
        cosines = queries.float() @ candidates.float().T  # (batch, pool)
    rows = torch.arange(len(queries), device=queries.device)
    allowed = ~excluded
    allowed[rows, positive] = False

    detached = cosines.detach()
    of_positive = detached[rows, positive]  # (batch,)
    dropped = (
        torch.zeros_like(allowed)
        if false_negative_margin is None
        else allowed & (detached > of_positive[:, None] + false_negative_margin)
    )
    left = allowed & ~dropped
    rank = (
        detached
        if negative_sampling == "hardest"
        else -detached
        if negative_sampling == "easiest"
        else torch.rand_like(detached)
    )
    ranked = rank.masked_fill(~left, -torch.inf)
    slots = len(candidates) if num_hard_negatives is None else min(num_hard_negatives, len(candidates))
    chosen = ranked.topk(slots, dim=1).indices  # (batch, slots), hardest first
    count = left.sum(1, keepdim=True)  # (batch, 1)
    if pad_negatives == "repeat" and num_hard_negatives is not None:
        again = torch.arange(num_hard_negatives, device=queries.device) % count.clamp(min=1, max=slots)
        chosen, filled = chosen.gather(1, again), (count > 0).expand(-1, num_hard_negatives)
    else:
        filled = torch.arange(slots, device=queries.device) < count

    # A place without a negative adds exp(-inf) = 0 to the denominator: nothing that was dropped comes back.
    of_chosen = cosines.gather(1, chosen).masked_fill(~filled, -torch.inf)
    weighted = of_chosen / temperature + hardness_strength * detached.gather(1, chosen)
    logits = torch.cat([cosines[rows, positive][:, None] / temperature, weighted], dim=1)
    return torch.stack(
        [
            -log_softmax(logits, dim=1)[:, 0].sum(),
            dropped.any(1).sum(),
            of_chosen.detach().masked_fill(~filled, 0).sum(),
            filled.sum(),
            of_positive.sum(),
            detached.masked_fill(~allowed, 0).sum(),
            allowed.sum(),
            (detached.masked_fill(~allowed, -torch.inf).amax(1) < of_positive).sum(),
        ]
    )


def distillation_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    kl_direction: Literal["teacher_student", "student_teacher"] = "teacher_student",
) -> Tensor:
    """KL divergence between the teacher's and the student's similarities within a batch of texts (§3.2.1, Eq. 2).

    Each row of the N x N cosine matrix, the similarity of a text with itself included as the paper prints it, is a
    distribution over the batch. Only these matrices meet, so the two dimensions need not agree. The paper writes the
    sum over the rows; this is their mean, so that the learning rate does not depend on the batch size.

    Args:
        student (`Tensor` of shape `(batch, student_dimensions)`): Embeddings; normalised here.
        teacher (`Tensor` of shape `(batch, teacher_dimensions)`): Embeddings of the same texts; normalised here.
        student_temperature (`float`): Divides the student's cosines.
        teacher_temperature (`float`): Divides the teacher's cosines.
        direction (`str`, *optional*, defaults to `"teacher_student"`):
            `"teacher_student"` is KL(teacher || student), `"student_teacher"` is KL(student || teacher): the printed
            equation leaves open which is meant.

    Raises:
        ValueError: There are fewer than two texts, or not one teacher embedding per text.
    """
    if len(student) != len(teacher):
        raise ValueError(f"expected one teacher embedding per text, got {len(teacher)} for {len(student)} texts")
    if len(student) < 2:
        raise ValueError(
            "distillation compares the texts of a batch with each other, and a batch of one has none to compare: "
            "raise per_device_train_batch_size"
        )
    student, teacher = (normalize(embeddings.float(), dim=-1) for embeddings in (student, teacher))

    def of_rows(rows: slice) -> Tensor:
        of_student = _log_similarities(student[rows], student, student_temperature)
        of_teacher = _log_similarities(teacher[rows], teacher, teacher_temperature)
        first, second = (of_teacher, of_student) if kl_direction == "teacher_student" else (of_student, of_teacher)
        return kl_div(second, first, log_target=True, reduction="sum")  # KL(first || second)

    return _sum_by_rows(of_rows, len(student), len(student)) / len(student)


def _log_similarities(rows: Tensor, embeddings: Tensor, temperature: float) -> Tensor:
    with torch.autocast(embeddings.device.type, enabled=False):
        return log_softmax(rows @ embeddings.T / temperature, dim=1)


def _sum_by_rows(of_rows: Callable[[slice], Tensor], rows: int, columns: int) -> Tensor:
    """Sum what a function gives for slices of the rows of a matrix, of which the memory holds one slice at a time.

    The backward pass computes each slice again: beside the model's passes, these products are nothing.
    """
    size = max(1, MOST_ELEMENTS // columns)
    if size >= rows:
        return of_rows(slice(rows))
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    return sum(checkpoint(of_rows, part, use_reentrant=False) for part in parts)
