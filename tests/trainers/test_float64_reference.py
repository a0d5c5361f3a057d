"""Losses and gradients of random batches against naive float64 loops over the rows, written from the equations.

The loops share no code with the package. They know a row only by its items, task and label.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import ProcessorMixin

from unime.data.rows import content_hash
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, DistillationConfig, DistillationTrainer


WORDS = [f"word {number}" for number in range(12)]
TOLERANCE = {"atol": 1e-9, "rtol": 1e-9}


# Stage 2, section 3.3 of the paper


def item(draw: random.Random) -> dict[str, str]:
    instruction = draw.choice([None, None, "Find it:", "Show it:"])
    return {"text": draw.choice(WORDS)} | ({} if instruction is None else {"instruction": instruction})


def random_rows(draw: random.Random) -> list[dict[str, Any]]:
    """Return rows with few different words, so that queries, positives and negatives often coincide."""
    rows = []
    for _ in range(draw.randint(3, 9)):
        repeat = rows and draw.random() < 0.3
        rows.append(
            {
                "query": draw.choice(rows)["query"] if repeat else item(draw),
                "positive": item(draw),
                "negatives": [item(draw) for _ in range(draw.choice([0, 0, 1, 3]))],
                "task": draw.choice(["names", "names", "crops"]),
                "label": draw.choice([None, None, "a", "b"]),
            }
        )
        if draw.random() < 0.3:
            rows[-1]["positives"] = [rows[-1].pop("positive"), item(draw)]
        if draw.random() < 0.4:
            scores = [draw.random() for _ in positives_of(rows[-1])]
            rows[-1]["scores"] = scores + [draw.choice([None, draw.random()]) for _ in rows[-1]["negatives"]]
    return rows


def positives_of(row: dict[str, Any]) -> list[dict[str, str]]:
    return row["positives"] if "positives" in row else [row["positive"]]


def one_positive_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"positive": positive} for row in rows for positive in positives_of(row)]


def random_settings(draw: random.Random) -> dict[str, Any]:
    return {
        "temperature": draw.choice([0.02, 0.1, 1.0]),
        "false_negative_margin": draw.choice([None, -0.1, 0.0, 0.1]),
        "num_hard_negatives": draw.choice([None, 1, 2, 8]),
        "pad_negatives": draw.choice(["mask", "repeat"]),
        "hardness_strength": draw.choice([0.0, 0.0, 9.0]),
        "negative_sampling": draw.choice(["hardest", "hardest", "easiest"]),
        "exclude_same_label": draw.choice([True, True, False]),
        "symmetric": draw.choice([True, False]),
        "query_to_query": draw.choice([True, False]),
        "candidate_to_candidate": draw.choice([True, False]),
        "contrastive_weight": draw.choice([1.0, 0.5]),
        "soft_label_weight": draw.choice([0.0, 1.0, 2.0]),
        "soft_label_temperature": draw.choice([0.02, 0.2]),
        "soft_label_divergence": draw.choice(["symmetric_kl", "label_student", "student_label", "js"]),
    }


def name_of(item: dict[str, str]) -> tuple[str, str | None]:
    return item["text"], item.get("instruction")


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return sum(x * y for x, y in zip(first, second, strict=True)) / (
        sum(x * x for x in first).sqrt() * sum(y * y for y in second).sqrt()
    )


def is_right(candidate: tuple[str, str | None], query: dict[str, Any], rows: list[dict], exclude_same_label: bool):
    """Return whether a candidate is a right answer to the query of a row, or shows what the query shows."""
    equal = [r for r in rows if r["query"]["text"] == query["query"]["text"] and r["task"] == query["task"]]
    if candidate[0] == query["query"]["text"] or candidate[0] in [row["positive"]["text"] for row in equal]:
        return True
    labels = [(row["task"], row["label"]) for row in equal if row["label"] is not None]
    its_labels = [(row["task"], row["label"]) for row in rows if name_of(row["positive"]) == candidate]
    return exclude_same_label and any(label in labels for label in its_labels)


def info_nce(positive: Tensor, others: list[Tensor], settings: dict[str, Any]) -> Tensor:
    """Return the loss of one anchor: equations 3 and 4 on the cosines with its positive and the other candidates."""
    margin, k = settings["false_negative_margin"], settings["num_hard_negatives"]
    negatives = [other for other in others if margin is None or other.item() <= positive.item() + margin]
    negatives.sort(key=lambda other: other.item(), reverse=settings["negative_sampling"] == "hardest")
    negatives = negatives[:k]
    if settings["pad_negatives"] == "repeat" and k is not None and negatives:
        negatives = [negatives[slot % len(negatives)] for slot in range(k)]
    top = torch.exp(positive / settings["temperature"])
    bottom = top
    for negative in negatives:
        weight = math.exp(settings["hardness_strength"] * negative.item())
        bottom = bottom + weight * torch.exp(negative / settings["temperature"])
    return -torch.log(top / bottom)


def reference_contrastive(
    rows: list[dict], vectors: dict[tuple[str, str | None], Tensor], settings: dict[str, Any]
) -> Tensor | None:
    """Return the loss of a batch, or `None` if no query has a negative before the filter."""
    keep_labels = settings["exclude_same_label"]
    positives = [name_of(row["positive"]) for row in rows]
    candidates = set(positives) | {name_of(negative) for row in rows for negative in row["negatives"]}
    queries = {name_of(row["query"]) for row in rows}
    losses, reverse_losses, any_negative = [], [], False
    for row, positive in zip(rows, positives, strict=True):
        query = vectors[name_of(row["query"])]
        others = [c for c in sorted(candidates, key=str) if not is_right(c, row, rows, keep_labels)]
        to_positive = cosine(query, vectors[positive])
        to_others = [cosine(query, vectors[other]) for other in others]
        if settings["query_to_query"]:
            to_others += [
                cosine(query, vectors[name_of(other["query"])])
                for other in {name_of(other["query"]): other for other in rows}.values()
                if other["query"]["text"] not in (row["query"]["text"], row["positive"]["text"])
                and not any(
                    is_right(name_of(asking["positive"]), row, rows, keep_labels)
                    for asking in rows
                    if asking["query"] == other["query"]
                )
            ]
        if settings["candidate_to_candidate"]:
            to_others += [cosine(vectors[positive], vectors[other]) for other in others]
        any_negative |= bool(to_others)
        losses.append(info_nce(to_positive, to_others, settings))
        other_queries = [
            other
            for other in sorted(queries, key=str)
            if not any(
                is_right(positive, asking, rows, keep_labels) for asking in rows if name_of(asking["query"]) == other
            )
        ]
        to_queries = [cosine(vectors[positive], vectors[other]) for other in other_queries]
        reverse_losses.append(info_nce(to_positive, to_queries, settings))
    if not any_negative:
        return None
    loss = sum(losses) / len(rows)
    return (loss + sum(reverse_losses) / len(rows)) / 2 if settings["symmetric"] else loss


# The soft labels of UniME-V2, with the 1e-8 of the released code


def reference_soft_labels(
    rows: list[dict], vectors: dict[tuple[str, str | None], Tensor], settings: dict[str, Any]
) -> Tensor | float:
    def softmax(values: list[Tensor]) -> list[Tensor]:
        return [torch.exp(value) / sum(torch.exp(other) for other in values) for value in values]

    def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
        return sum(x * (torch.log(x) - torch.log(y + 1e-8)) for x, y in zip(p, q, strict=True))

    losses = []
    for row in rows:
        if "scores" not in row:
            continue
        pairs = zip([*positives_of(row), *row["negatives"]], row["scores"], strict=True)
        judged = [(candidate, score) for candidate, score in pairs if score is not None]
        query = vectors[name_of(row["query"])]
        student = softmax([cosine(query, vectors[name_of(c)]) / settings["temperature"] for c, _ in judged])
        scores = [torch.tensor(score, dtype=torch.float32).double() for _, score in judged]  # stored in float32
        label = softmax([score / settings["soft_label_temperature"] for score in scores])
        middle = [(x + y) / 2 for x, y in zip(label, student, strict=True)]
        losses.append(
            {
                "symmetric_kl": (kl(label, student) + kl(student, label)) / 2,
                "label_student": kl(label, student),
                "student_label": kl(student, label),
                "js": (kl(label, middle) + kl(student, middle)) / 2,
            }[settings["soft_label_divergence"]]
        )
    return sum(losses) / len(losses) if losses else 0.0


# Stage 1, equation 2 of the paper


def reference_distillation(student: list[Tensor], teacher: list[Tensor], settings: dict[str, Any]) -> Tensor:
    def distribution(vectors: list[Tensor], row: int, temperature: float) -> list[Tensor]:
        terms = [torch.exp(cosine(vectors[row], other) / temperature) for other in vectors]
        return [term / sum(terms) for term in terms]

    losses = []
    for row in range(len(student)):
        p = distribution(teacher, row, settings["teacher_temperature"])
        q = distribution(student, row, settings["student_temperature"])
        if settings["kl_direction"] == "student_teacher":
            p, q = q, p
        losses.append(sum(x * torch.log(x / y) for x, y in zip(p, q, strict=True)))
    return sum(losses) / len(losses)


# Both stages


@pytest.fixture(scope="module")
def trainers(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoConfig

    from unime import UniMEModel, processor_from_backbone

    processor: ProcessorMixin = processor_from_backbone(str(tiny_model("llava")))
    model = UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))
    rows = {
        ContrastiveTrainer: [{"query": "a", "positive": "b", "negatives": [], "task": "t", "label": None}],
        DistillationTrainer: [{"text": "a", "teacher": [1.0]}],
    }
    options = {"per_device_train_batch_size": 1, "use_cpu": True, "report_to": "none"}
    return {
        trainer.__name__: trainer(
            model,
            config(str(tmp_path_factory.mktemp("out")), **options),
            train_dataset=rows[trainer],
            processing_class=processor,
        )
        for trainer, config in ((ContrastiveTrainer, ContrastiveConfig), (DistillationTrainer, DistillationConfig))
    }


def compare(trainer: Any, batch: dict, vectors: Tensor, settings: dict, reference: Callable[[Tensor], Tensor]):
    """Compare loss and gradient of vectors, full and truncated to the Matryoshka dimensions, with a reference."""
    for name, value in settings.items():
        setattr(trainer.args, name, value)
    embeddings = normalize(vectors, dim=1)
    parts = [embeddings, *trainer._matryoshka_embeddings(embeddings)]
    loss = torch.stack([trainer.batch_loss(part, batch)[0] for part in parts]).mean()
    dims = [vectors.shape[1], *(settings["matryoshka_dims"] or [])]
    expected = sum(reference(vectors[:, :size]) for size in dims) / len(dims)
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(value, vectors) for value in (loss, expected))
    torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE)


@pytest.mark.parametrize("seed", range(45))
def test_the_contrastive_loss_equals_the_reference(seed: int, trainers: dict[str, Any]):
    trainer = trainers["ContrastiveTrainer"]
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    while True:
        rows, settings = random_rows(draw), random_settings(draw)
        settings["matryoshka_dims"] = draw.choice([None, None, [4, 3]])
        batch = trainer.data_collator(rows)
        size = (len(batch["identity"]), 8)
        vectors = torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        positions = {identity: index for index, identity in enumerate(batch["identity"].tolist())}
        items = [each for row in rows for each in (row["query"], *positives_of(row), *row["negatives"])]

        def reference(
            vectors: Tensor,
            rows: list = rows,
            settings: dict = settings,
            items: list = items,
            positions: dict = positions,
        ) -> Tensor | None:
            by_name = {name_of(each): vectors[positions[content_hash(each)]] for each in items}
            loss = reference_contrastive(one_positive_each(rows), by_name, settings)
            if loss is None:
                return None
            soft = reference_soft_labels(rows, by_name, settings)
            return settings["contrastive_weight"] * loss + settings["soft_label_weight"] * soft

        if reference(vectors) is not None:
            break
    compare(trainer, batch, vectors, settings, reference)


@pytest.mark.parametrize("seed", range(15))
def test_the_distillation_loss_equals_the_reference(seed: int, trainers: dict[str, Any]):
    trainer = trainers["DistillationTrainer"]
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    texts = [draw.choice(WORDS) for _ in range(draw.randint(2, 9))]
    teacher = torch.randn(len(texts), 5, generator=generator)
    batch = trainer.data_collator(
        [{"text": text, "teacher": values} for text, values in zip(texts, teacher.tolist(), strict=True)]
    )
    distinct = list(dict.fromkeys(texts))
    vectors = torch.randn(len(distinct), 8, generator=generator, dtype=torch.float64).requires_grad_()
    settings = {
        "student_temperature": draw.choice([0.02, 0.1, 1.0]),
        "teacher_temperature": draw.choice([0.02, 0.1, 1.0]),
        "kl_direction": draw.choice(["teacher_student", "student_teacher"]),
        "matryoshka_dims": draw.choice([None, [4, 2]]),
    }

    def reference(vectors: Tensor) -> Tensor:
        student = [vectors[distinct.index(text)] for text in texts]
        return reference_distillation(student, list(teacher.double()), settings)

    compare(trainer, batch, vectors, settings, reference)
