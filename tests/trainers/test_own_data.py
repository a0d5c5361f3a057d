"""Training on datasets as people have them, and the ranks over a whole evaluation set."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from PIL import Image
from torch.nn.functional import normalize
from transformers import ProcessorMixin

from unime.data.collator import ContrastiveCollator
from unime.data.row_conversion import as_rows
from unime.eval.metrics import pessimistic_ranks
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, DistillationConfig, DistillationTrainer
from unime.trainers.evaluation_ranks import EvaluatedBatch, retrieval_metrics


@pytest.fixture
def folder(tmp_path: Path, make_image: Callable[[int], Image.Image], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write eight images with captions, as an image folder, and make it the working folder."""
    for number in range(8):
        make_image(number).save(tmp_path / f"{number}.png")
    lines = [{"file_name": f"{number}.png", "caption": f"image number {number}"} for number in range(8)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pairs(image: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [{"query": f"image number {number}", "positive": image(number)} for number in range(8)]


DATASETS: dict[str, Callable[[Path], Any]] = {
    "relative paths": lambda folder: Dataset.from_list(pairs(lambda number: f"{number}.png")),
    "absolute paths": lambda folder: pairs(lambda number: str(folder / f"{number}.png")),
    "opened images": lambda folder: pairs(lambda number: Image.open(folder / f"{number}.png")),
    "imagefolder": lambda folder: load_dataset("imagefolder", data_dir=str(folder), split="train"),
    "pairs of texts": lambda folder: [{"anchor": f"number {n}", "positive": f"{n} or more"} for n in range(8)],
}


@pytest.fixture
def train(make_model: Callable, processor: ProcessorMixin, tmp_path: Path) -> Callable[[Any], dict[str, float]]:
    def run(dataset: Any) -> dict[str, float]:
        args = ContrastiveConfig(
            str(tmp_path / "run"),
            per_device_train_batch_size=8,
            per_device_eval_batch_size=4,
            max_steps=2,
            learning_rate=1e-2,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = ContrastiveTrainer(
            make_model(),
            args,
            train_dataset=dataset,
            eval_dataset=dataset,
            processing_class=processor,
            peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        )
        loss = trainer.train().training_loss
        return {"train_loss": loss} | trainer.evaluate()

    return run


def test_five_natural_datasets_train_unchanged(train: Callable, folder: Path):
    metrics = {name: train(make(folder)) for name, make in DATASETS.items()}
    for name in ("absolute paths", "opened images", "imagefolder"):
        for key in ("train_loss", "eval_loss", "eval_hit@1", "eval_mrr"):
            assert metrics[name][key] == pytest.approx(metrics["relative paths"][key], rel=1e-5), (name, key)
    assert math.isfinite(metrics["pairs of texts"]["train_loss"])
    assert metrics["pairs of texts"]["train_loss"] != pytest.approx(metrics["relative paths"]["train_loss"], rel=1e-3)


def test_stage_1_trains_on_a_list_of_texts(make_model: Callable, processor: ProcessorMixin, tmp_path: Path):
    texts = [f"text number {number}" for number in range(8)]

    def loss_on(dataset: Any) -> float:
        args = DistillationConfig(
            str(tmp_path), per_device_train_batch_size=8, max_steps=1, report_to="none", use_cpu=True
        )
        teacher = lambda batch: np.eye(8)[[texts.index(text) for text in batch]]  # noqa: E731
        trainer = DistillationTrainer(
            make_model(), args, train_dataset=dataset, teacher=teacher, processing_class=processor
        )
        return trainer.train().training_loss

    assert loss_on(texts) == loss_on(Dataset.from_dict({"text": texts}))
    with pytest.raises(ValueError, match="train_dataset, row 1: 'text' must be a string, got int"):
        loss_on(["a", 1])


def evaluated(rows: list[dict[str, Any]], vectors: dict[str, list[float]]) -> EvaluatedBatch:
    """Return a batch of rows of texts with given embeddings."""
    texts: list[str] = []

    def prepare(items: list[dict[str, Any]]) -> list[tuple[list[int], dict]]:
        texts.extend(item["text"] for item in items)
        return [(list(range(len(items))), {})]

    batch = ContrastiveCollator(prepare)(list(as_rows(rows, "rows")))
    embeddings = normalize(torch.tensor([vectors[text] for text in texts]), dim=-1)
    return EvaluatedBatch(embeddings, *(batch[name] for name in EvaluatedBatch._fields[1:]))


def angle(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


# The nearest candidate of a at 0 degrees is A, that of b at 20 is A too, and that of c at 90 is C.
ANGLES = {"a": 0, "b": 20, "c": 90, "A": 5, "B": 40, "C": 80, "n": 2}
VECTORS = {text: angle(degrees) for text, degrees in ANGLES.items()}
ROWS = [{"query": query, "positive": query.upper()} for query in "abc"]


def test_ranks_on_numbers_worked_by_hand():
    assert retrieval_metrics([evaluated(ROWS, VECTORS)]) == pytest.approx({"hit@1": 2 / 3, "mrr": (1 + 1 / 2 + 1) / 3})


def test_candidates_of_all_batches_are_ranked():
    batches = [evaluated([row], VECTORS) for row in ROWS]
    assert retrieval_metrics(batches) == retrieval_metrics([evaluated(ROWS, VECTORS)])
    assert retrieval_metrics(batches[:1])["hit@1"] == 1


@pytest.mark.parametrize(
    ("more", "hits", "queries"),
    [
        ([{"query": "b", "positive": "A"}], 3, 3),  # another positive of the same query: A is right for b
        ([{"query": "b", "positive": "A", "task": "other"}], 3, 4),  # in another task it is another query
        ([{"query": "A", "positive": "a"}], 3, 4),  # the query's own content is no candidate: of A it is a
        ([{"query": "a", "positive": "A", "negatives": ["n"]}], 1, 3),  # a negative that is nearest to a and b
    ],
)
def test_right_answers_of_the_whole_set_count(more: list[dict[str, Any]], hits: int, queries: int):
    metrics = retrieval_metrics([evaluated(ROWS, VECTORS), evaluated(more, VECTORS)])
    assert metrics["hit@1"] == pytest.approx(hits / queries)


def test_labels_make_right_answers():
    rows = [row | {"label": label} for row, label in zip(ROWS, ["x", "x", "y"], strict=True)]
    assert retrieval_metrics([evaluated(rows, VECTORS)])["hit@1"] == 1


def test_a_tie_counts_as_wrong():
    constant = dict.fromkeys(VECTORS, angle(0))
    assert retrieval_metrics([evaluated(ROWS, constant)]) == pytest.approx({"hit@1": 0, "mrr": 1 / 3})


def test_ranks_equal_those_of_the_evaluation():
    generator = torch.Generator().manual_seed(0)
    vectors = {
        f"{kind}{number}": torch.randn(8, generator=generator).tolist() for kind in "qp" for number in range(700)
    }
    rows = [{"query": f"q{number // 2}", "positive": f"p{number}"} for number in range(700)]
    embeddings = normalize(torch.tensor([*vectors.values()]), dim=-1).numpy()
    scores = embeddings[:350] @ embeddings[700:].T
    ranks = pessimistic_ranks(scores, [[2 * query, 2 * query + 1] for query in range(350)])
    metrics = retrieval_metrics([evaluated(rows[start : start + 100], vectors) for start in range(0, 700, 100)])
    assert metrics == pytest.approx({"hit@1": np.mean(ranks == 0), "mrr": np.mean(1 / (ranks + 1))})
    assert 0 < metrics["hit@1"] < 1


def test_truncated_embeddings_are_ranked_by_themselves(
    make_model: Callable, processor: ProcessorMixin, rows: list[dict[str, Any]], tmp_path: Path
):
    def evaluate(model: Any, **options: Any) -> dict[str, float]:
        args = ContrastiveConfig(
            str(tmp_path), per_device_eval_batch_size=6, report_to="none", use_cpu=True, disable_tqdm=True, **options
        )
        trainer = ContrastiveTrainer(model, args, eval_dataset=rows, processing_class=processor)
        return trainer.evaluate()

    plain, truncated = evaluate(make_model()), evaluate(make_model(), matryoshka_dims=[8, 4])
    for metric in ("hit@1", "mrr"):
        assert truncated[f"eval_{metric}"] == plain[f"eval_{metric}"]
    assert {f"eval_mrr_{dims}" for dims in (8, 4)} <= truncated.keys() and "eval_mrr_8" not in plain
    assert truncated["eval_mrr_4"] != truncated["eval_mrr"]
