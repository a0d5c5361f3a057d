"""The losses of both stages as pure functions of embeddings (UniME, arXiv 2504.17432).

They are computed in float32, or in float64 if the embeddings are, also under autocast.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, normalize
from torch.utils.checkpoint import checkpoint


_LOG_EPSILON = 1e-8  # of UniME-V2's released code
MAX_SIMILARITIES = 2**18  # elements of the similarity matrix in memory at once


def contrastive_loss(
    queries: Tensor,
    candidates: Tensor,
    positive: Tensor,
    excluded: Tensor,
    *,
    temperature: float | Tensor = 0.02,
    false_negative_margin: float | None = 0.1,
    num_hard_negatives: int | None = 8,
    pad_negatives: Literal["mask", "repeat"] = "mask",
    negative_sampling: Literal["hardest", "random", "easiest"] = "hardest",
    hardness_strength: float = 0.0,
    sampling_seed: int = 0,
    further: Sequence[tuple[Tensor, Tensor, Tensor]] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute InfoNCE over each query's positive and its hardest negatives (UniME, §3.3, Eq. 3 and 4).

    A candidate whose cosine with the query exceeds `cos(query, positive) + false_negative_margin` counts as a false
    negative and is dropped. Of the remaining candidates of the whole pool, the `num_hard_negatives` most similar to
    the query are its negatives.

    Special cases:

    - `false_negative_margin=None, num_hard_negatives=None` is plain in-batch InfoNCE, the loss of VLM2Vec.
    - `false_negative_margin=0.1, num_hard_negatives=None`, with the positive's own document excluded, is the masked
      loss of Qwen3-VL-Embedding, whose `further` negatives are those of GTE.
    - `false_negative_margin=None, num_hard_negatives=None, hardness_strength=9` is the loss of LLaVE.

    Args:
        queries (`Tensor` of shape `(batch, dimensions)`): Query embeddings of unit length.
        candidates (`Tensor` of shape `(pool, dimensions)`): Candidate embeddings of unit length.
        positive (`Tensor` of shape `(batch,)`, long): Index of each query's positive in `candidates`.
        excluded (`Tensor` of shape `(batch, pool)`, bool): True where a candidate must not be a negative of a query.
        temperature (`float` or `Tensor` of shape `(batch,)`, *optional*, defaults to `0.02`): Softmax temperature, of
            all queries or of each; lower values concentrate the loss on the hardest negatives. 0.01 to 0.1 are common.
        false_negative_margin (`float`, *optional*, defaults to `0.1`): Margin of the false-negative filter, as a
            difference of cosines (beta in the paper); `None` disables the filter.
        num_hard_negatives (`int`, *optional*, defaults to `8`): Negatives per query (k in the paper); `None`, or more
            than there are, uses all.
        pad_negatives (`str`, *optional*, defaults to `"mask"`): What to do for a query with fewer than
            `num_hard_negatives` negatives: `"mask"` uses fewer, `"repeat"` repeats them, hardest first, as the paper
            does (§3.3.2).
        negative_sampling (`str`, *optional*, defaults to `"hardest"`): Which of the negatives that pass the filter to
            use; `"random"` and `"easiest"` are for comparison (Figure 5).
        hardness_strength (`float`, *optional*, defaults to `0.0`): Multiplies each negative's term by
            `exp(hardness_strength * cosine)`, without a gradient, so that harder negatives count more (LLaVE,
            arXiv 2503.04812, which uses 9).
        sampling_seed (`int`, *optional*, defaults to `0`): Seed of the `"random"` negatives. Give all processes the
            same one, as they compute the same loss, and every step another one.
        further (`Sequence[tuple[Tensor, Tensor, Tensor]]`, *optional*): Further cosines in the same softmax, each as
            `(first, second, excluded)` of shapes `(batch, dimensions)`, `(others, dimensions)` and `(batch, others)`:
            those of queries with other queries, and of positives with other candidates, are GTE's (arXiv 2308.03281,
            Eq. 3). The filter, the choice of negatives and the weights apply to all of them together.

    Returns:
        `tuple[Tensor, dict[str, Tensor]]`: The mean loss, and detached scalars: `filtered` (share of queries that
        lost a negative to the filter), `hardness` (mean cosine of the chosen negatives), `positive_similarity` and
        `negative_similarity` (mean cosines), `accuracy` (share of queries whose positive is more similar than every
        allowed candidate; a tie counts as wrong). `accuracy` ignores `further`.

    Raises:
        ValueError: No query has a negative, for example in a batch of one.
    """
    queries, candidates = _at_least_float32(queries, candidates)
    further = [(first.to(queries.dtype), second.to(queries.dtype), mask) for first, second, mask in further]
    temperatures = torch.as_tensor(temperature, dtype=queries.dtype, device=queries.device).expand(len(queries))
    settings = (
        false_negative_margin,
        num_hard_negatives,
        pad_negatives,
        negative_sampling,
        hardness_strength,
        sampling_seed,
    )

    def sums_of_slice(rows: slice) -> Tensor:
        pairs = [(queries[rows], candidates, excluded[rows])]
        pairs += [(first[rows], second, mask[rows]) for first, second, mask in further]
        return _contrastive_sums(pairs, positive[rows], rows.start or 0, temperatures[rows, None], *settings)

    num_columns = len(candidates) + sum(len(second) for _, second, _ in further)
    sums = _sum_over_slices(sums_of_slice, len(queries), num_columns)
    loss = sums[0]
    filtered, hardness, num_chosen, positive_sum, allowed_sum, num_allowed, num_correct = sums[1:].detach()
    if num_allowed == 0:
        raise ValueError(
            f"no query has a negative among the {len(candidates)} candidate(s) of this batch of {len(queries)}: raise "
            "per_device_train_batch_size (per_device_eval_batch_size in evaluation), add negatives to the rows, or "
            "check that not all rows share one answer"
        )
    statistics = {
        "filtered": filtered / len(queries),
        "hardness": hardness / num_chosen.clamp(min=1),
        "positive_similarity": positive_sum / len(queries),
        "negative_similarity": allowed_sum / num_allowed,
        "accuracy": num_correct / len(queries),
    }
    return loss / len(queries), statistics


def _contrastive_sums(
    pairs: Sequence[tuple[Tensor, Tensor, Tensor]],
    positive: Tensor,
    first_row: int,
    temperature: Tensor,
    false_negative_margin: float | None,
    num_hard_negatives: int | None,
    pad_negatives: str,
    negative_sampling: str,
    hardness_strength: float,
    sampling_seed: int,
) -> Tensor:
    """Return the loss and the terms of the statistics, each summed over the queries: shape `(8,)`.

    The first of the pairs are the queries, the candidates and what is excluded; the others are `further`.
    """
    device, num_candidates = positive.device, len(pairs[0][1])
    with torch.autocast(device.type, enabled=False):
        cosines = torch.cat([first @ second.T for first, second, _ in pairs], dim=1)  # (batch, pool + others)
    rows = torch.arange(len(positive), device=device)
    allowed = ~torch.cat([excluded for _, _, excluded in pairs], dim=1)
    allowed[rows, positive] = False

    detached = cosines.detach()
    positive_cosines = detached[rows, positive]  # (batch,)
    if false_negative_margin is None:
        dropped = torch.zeros_like(allowed)
    else:
        dropped = allowed & (detached > positive_cosines[:, None] + false_negative_margin)
    remaining = allowed & ~dropped

    if negative_sampling == "hardest":
        priority = detached
    elif negative_sampling == "easiest":
        priority = -detached
    else:
        # Seeded here, so that the backward pass, which computes this slice again, draws the same negatives.
        generator = torch.Generator(device).manual_seed(sampling_seed + first_row)
        priority = torch.rand(detached.shape, generator=generator, device=device)
    num_columns = cosines.shape[1]
    slots = num_columns if num_hard_negatives is None else min(num_hard_negatives, num_columns)
    chosen = priority.masked_fill(~remaining, -torch.inf).topk(slots, dim=1).indices  # (batch, slots)
    num_remaining = remaining.sum(1, keepdim=True)  # (batch, 1)
    if pad_negatives == "repeat" and num_hard_negatives is not None:
        repeated = torch.arange(num_hard_negatives, device=device) % num_remaining.clamp(min=1, max=slots)
        chosen, filled = chosen.gather(1, repeated), (num_remaining > 0).expand(-1, num_hard_negatives)
    else:
        filled = torch.arange(slots, device=device) < num_remaining

    # An empty slot adds exp(-inf) = 0 to the denominator, so no dropped candidate gets in.
    chosen_cosines = cosines.gather(1, chosen).masked_fill(~filled, -torch.inf)
    negative_logits = chosen_cosines / temperature + hardness_strength * detached.gather(1, chosen)
    logits = torch.cat([cosines[rows, positive, None] / temperature, negative_logits], dim=1)
    best = detached.masked_fill(~allowed, -torch.inf)[:, :num_candidates].amax(1)
    return torch.stack(
        [
            -log_softmax(logits, dim=1)[:, 0].sum(),
            dropped.any(1).sum(),
            chosen_cosines.detach().masked_fill(~filled, 0).sum(),
            filled.sum(),
            positive_cosines.sum(),
            detached.masked_fill(~allowed, 0).sum(),
            allowed.sum(),
            (best < positive_cosines).sum(),
        ]
    )


def soft_label_loss(
    queries: Tensor,
    candidates: Tensor,
    indices: Tensor,
    scores: Tensor,
    *,
    temperature: float | Tensor = 0.02,
    label_temperature: float = 0.02,
    divergence: Literal["symmetric_kl", "label_student", "student_label", "js"] = "symmetric_kl",
) -> Tensor:
    """Compare the similarities of each query with a judge's scores of its candidates (UniME-V2, arXiv 2510.13515).

    With the label distribution Q, the softmax of the scores, and the student's distribution P, the softmax of the
    cosines, both over the judged candidates of a query, the loss is the mean over the queries of
    (KL(Q || P) + KL(P || Q)) / 2. As in the released code, 1e-8 is added inside the logarithm of the second
    distribution, which bounds a term at about 18.4.

    Args:
        queries (`Tensor` of shape `(batch, dimensions)`): Query embeddings of unit length.
        candidates (`Tensor` of shape `(pool, dimensions)`): Candidate embeddings of unit length.
        indices (`Tensor` of shape `(batch, judged)`, long): The judged candidates of each query: its positives and
            negatives, in any order. A repeated one counts every time, as in the released code.
        scores (`Tensor` of shape `(batch, judged)`): Their scores, `-inf` where a query has fewer than `judged`. Only
            differences count: a common shift of a query's scores changes nothing.
        temperature (`float` or `Tensor` of shape `(batch,)`, *optional*, defaults to `0.02`): Softmax temperature of
            the cosines, of all queries or of each.
        label_temperature (`float`, *optional*, defaults to `0.02`): Softmax temperature of the scores. The paper uses
            0.02 for both, which makes most of its published labels one-hot: a difference of 0.1 between two scores is
            a factor of 148. 0.02 to 0.5 are sensible.
        divergence (`str`, *optional*, defaults to `"symmetric_kl"`): `"label_student"` is KL(Q || P) alone,
            `"student_label"` KL(P || Q), and `"js"` the Jensen-Shannon divergence.

    Returns:
        `Tensor`: The scalar loss.
    """
    queries, candidates = _at_least_float32(queries, candidates)
    padding = scores.isneginf()
    temperatures = torch.as_tensor(temperature, dtype=queries.dtype, device=queries.device).expand(len(queries))
    label_log = log_softmax(scores.to(queries.dtype) / label_temperature, dim=1)

    def sum_of_slice(rows: slice) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            cosines = (queries[rows] @ candidates.T).gather(1, indices[rows])
        student_log = log_softmax((cosines / temperatures[rows, None]).masked_fill(padding[rows], -torch.inf), dim=1)

        def kl_to(p_log: Tensor, q: Tensor) -> Tensor:
            # Padding has p = 0; its logarithm, -inf, would make the product NaN.
            return (p_log.exp() * (p_log.masked_fill(padding[rows], 0) - torch.log(q + _LOG_EPSILON))).sum()

        label, student = label_log[rows].exp(), student_log.exp()
        if divergence == "label_student":
            return kl_to(label_log[rows], student)
        if divergence == "student_label":
            return kl_to(student_log, label)
        if divergence == "js":
            label = student = (label + student) / 2
        return (kl_to(label_log[rows], student) + kl_to(student_log, label)) / 2

    return _sum_over_slices(sum_of_slice, len(queries), len(candidates)) / len(queries)


def distillation_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    kl_direction: Literal["teacher_student", "student_teacher"] = "teacher_student",
) -> Tensor:
    """Compute the KL divergence between the teacher's and the student's similarities (UniME, §3.2.1, Eq. 2).

    Each row of the `(batch, batch)` matrix of cosines, softmaxed, is a distribution over the texts of the batch. The
    diagonal is included, as in the printed equation. Only these matrices are compared, so the two embeddings may have
    different dimensions. The paper writes the sum over the rows; this is their mean, so that the learning rate does
    not depend on the batch size.

    Args:
        student (`Tensor` of shape `(batch, student_dimensions)`): Embeddings; normalized here.
        teacher (`Tensor` of shape `(batch, teacher_dimensions)`): Embeddings of the same texts; normalized here.
        student_temperature (`float`): Softmax temperature of the student's cosines.
        teacher_temperature (`float`): Softmax temperature of the teacher's cosines.
        kl_direction (`str`, *optional*, defaults to `"teacher_student"`): `"teacher_student"` is KL(teacher ||
            student), `"student_teacher"` is KL(student || teacher). The printed equation does not say which is meant.

    Returns:
        `Tensor`: The scalar loss.

    Raises:
        ValueError: There are fewer than two texts, or not exactly one teacher embedding per text.
    """
    if len(student) != len(teacher):
        raise ValueError(f"expected one teacher embedding per text, got {len(teacher)} for {len(student)} texts")
    if len(student) < 2:
        raise ValueError(
            "distillation compares the texts of a batch with each other, but this is a batch of one: raise "
            "per_device_train_batch_size"
        )
    student, teacher = (normalize(embeddings, dim=-1) for embeddings in _at_least_float32(student, teacher))

    def kl_of_slice(rows: slice) -> Tensor:
        student_log = _log_similarities(student[rows], student, student_temperature)
        teacher_log = _log_similarities(teacher[rows], teacher, teacher_temperature)
        p, q = (teacher_log, student_log) if kl_direction == "teacher_student" else (student_log, teacher_log)
        return kl_div(q, p, log_target=True, reduction="sum")  # KL(p || q)

    return _sum_over_slices(kl_of_slice, len(student), len(student)) / len(student)


def _at_least_float32(*embeddings: Tensor) -> list[Tensor]:
    """Convert tensors to the widest of their types, at least float32."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in embeddings), torch.float32)
    return [tensor.to(dtype) for tensor in embeddings]


def _log_similarities(rows: Tensor, embeddings: Tensor, temperature: float) -> Tensor:
    with torch.autocast(embeddings.device.type, enabled=False):
        return log_softmax(rows @ embeddings.T / temperature, dim=1)


def _sum_over_slices(function: Callable[[slice], Tensor], num_rows: int, num_columns: int) -> Tensor:
    """Sum the results of a function of row slices of a similarity matrix, with one slice in memory at a time.

    The backward pass recomputes each slice, which costs next to nothing beside the model's passes.

    Args:
        function (`Callable`): Maps a slice of the rows to a tensor.
        num_rows (`int`): Rows of the matrix.
        num_columns (`int`): Columns of the matrix.
    """
    size = max(1, MAX_SIMILARITIES // num_columns)
    if size >= num_rows:
        return function(slice(num_rows))
    slices = [slice(start, start + size) for start in range(0, num_rows, size)]
    return reduce(torch.add, (checkpoint(function, rows, use_reentrant=False) for rows in slices))
