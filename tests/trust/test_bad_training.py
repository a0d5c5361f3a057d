"""Unusual batches and settings end in a one-sentence error, or in a loss known in advance."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from transformers import AutoConfig, ProcessorMixin

from unime import UniMEModel, processor_from_backbone
from unime.data.mining import mine_hard_negatives, with_mined_negatives
from unime.data.mmeb_train import mmeb_train
from unime.data.rejected_rows import without_rejected
from unime.openmoji.dataset import openmoji_rows
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, DistillationConfig, DistillationTrainer


ErrorMessage = Callable[..., str]
Row = dict[str, Any]

NO_NEGATIVE = (
    "no query has a negative among the {} candidate(s) of this batch of {}: raise per_device_train_batch_size"
)


@pytest.fixture(scope="module")
def processor(tiny_model: Callable[[str], Path]) -> ProcessorMixin:
    return processor_from_backbone(str(tiny_model("llava")))


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> UniMEModel:
    torch.manual_seed(0)
    return UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))


@pytest.fixture
def trainer(model: UniMEModel, processor: ProcessorMixin, tmp_path: Path) -> Callable[..., ContrastiveTrainer]:
    """Return a function that makes a stage-2 trainer with all rows in one batch."""

    def make(rows: Any, batch: int | None = None, **more: Any) -> ContrastiveTrainer:
        settings = {"use_cpu": True, "max_steps": 1, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        size = len(rows) if batch is None else batch
        args = ContrastiveConfig(str(tmp_path), per_device_train_batch_size=size, **settings | more)
        return ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor)

    return make


@pytest.fixture
def loss(trainer: Callable[..., ContrastiveTrainer]) -> Callable[..., float]:
    """Return a function that computes the loss of rows without training on them."""

    def compute(rows: list[Row], **more: Any) -> float:
        contrastive = trainer(rows, **more)
        with torch.no_grad():
            return contrastive.compute_loss(contrastive.model.eval(), contrastive.data_collator(rows)).item()

    return compute


def row(number: int, *negatives: Any, label: str | None = None, positive: Any = None) -> Row:
    item = {"text": f"answer {number}"} if positive is None else positive
    items = {"query": {"text": f"question {number}"}, "positive": item, "negatives": list(negatives)}
    return items | {"task": "names", "label": label}


ROWS = [row(number) for number in range(6)]
IMAGE = {"image": Image.new("RGB", (24, 24), "red")}


@pytest.mark.parametrize(
    ("rows", "pool"),
    [
        (ROWS[:1], 1),
        ([row(0, label="cat")], 1),
        ([row(0, {"text": "answer 0"})], 1),
        ([row(0, {"text": "answer 0"}, {"text": "answer 0"})] * 3, 1),
        ([ROWS[0]] * 4, 1),
        ([row(0, positive=IMAGE)] * 4, 1),
        ([row(number, positive={"text": "yes"}) for number in range(4)], 1),
        ([row(number, label="cat") for number in range(4)], 4),
    ],
    ids=[
        "one row", "one row with a label", "one row with its positive as a negative", "only positives as negatives",
        "identical rows", "identical rows of images", "one answer to all", "one label for all",
    ],
)  # fmt: skip
def test_a_batch_without_any_negative_is_refused(
    rows: list[Row], pool: int, trainer: Callable, error_message: ErrorMessage
):
    message = error_message(lambda: trainer(rows).train())
    assert message.startswith(NO_NEGATIVE.format(pool, len(rows)))
    assert message.endswith("add negatives to the rows, or check that not all rows share one answer")


@pytest.mark.parametrize(
    ("redundant", "plain"),
    [
        ([*ROWS[:5], row(5, {"text": "answer 5"})], ROWS),
        ([*ROWS[:5], row(5, {"text": "answer 0"})], ROWS),
        ([*ROWS[:5], row(5, {"text": "no"}, {"text": "no"})], [*ROWS[:5], row(5, {"text": "no"})]),
        ([row(0, {"text": "no"}), row(1, {"text": "no"})], [row(0, {"text": "no"}), row(1)]),
        ([row(number, label=f"answer {number}") for number in range(6)], ROWS),
        ([row(0, label="once"), *ROWS[1:]], ROWS),
        ([row(0, label=""), *ROWS[1:]], ROWS),
        ([*ROWS, *ROWS], ROWS),
        ([row | {"where": "pairs.jsonl, row 0"} for row in ROWS], ROWS),
    ],
    ids=[
        "negative that is the positive", "negative that is another's positive", "negative twice",
        "negative of two rows", "labels that differ", "label that occurs once", "empty label", "every row twice",
        "the same provenance for all",
    ],
)  # fmt: skip
def test_redundant_information_does_not_change_the_loss(redundant: list[Row], plain: list[Row], loss: Callable):
    assert loss(redundant) == pytest.approx(loss(plain), abs=1e-6)


@pytest.mark.parametrize("num_hard_negatives", [5, 6, 1000])
def test_as_many_hard_negatives_as_candidates_or_more_use_all(num_hard_negatives: int, loss: Callable):
    assert loss(ROWS, num_hard_negatives=num_hard_negatives, false_negative_margin=None) == pytest.approx(
        loss(ROWS, num_hard_negatives=None, false_negative_margin=None), abs=1e-6
    )


def test_more_hard_negatives_than_candidates_repeat_them_on_request(loss: Callable):
    # Two rows with one negative each, used three times: log(1 + 3 e^d) instead of log(1 + e^d).
    once, thrice = (
        loss(
            ROWS[:2],
            num_hard_negatives=num_hard_negatives,
            false_negative_margin=None,
            temperature=1e6,
            pad_negatives="repeat",
        )
        for num_hard_negatives in (1, 3)
    )
    assert once == pytest.approx(np.log(2), abs=1e-4) and thrice == pytest.approx(np.log(4), abs=1e-4)


@pytest.mark.parametrize("size", [0, 3], ids=["none", "three"])
def test_a_stream_shorter_than_a_batch_is_refused(size: int, trainer: Callable, error_message: ErrorMessage):
    stream = IterableDataset.from_generator(lambda: iter(ROWS[:size]))
    message = error_message(lambda: trainer(stream, batch=4).train())
    assert message == (
        "train_dataset ended before one batch of 4 rows: lower the batch size" if size else "train_dataset is empty"
    )


def test_the_short_last_batch_of_a_stream_is_dropped(trainer: Callable):
    stream = IterableDataset.from_generator(lambda: iter(ROWS[:5]))  # the fifth alone would have no negative
    batches = islice(trainer(stream, batch=2).get_train_dataloader(), 4)
    assert [len(batch["query"]) for batch in batches] == [2, 2, 2, 2]
    batches = islice(trainer(stream, batch=2, dataloader_drop_last=False).get_train_dataloader(), 4)
    assert [len(batch["query"]) for batch in batches] == [2, 2, 1, 2]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "train_dataset is empty"),
        (ROWS[:3], "train_dataset has 3 rows, fewer than one batch of 4: lower the batch size"),
        (
            [{"query": {"text": "a"}}] * 4,
            "train_dataset, row 0: it has no 'positive' (or 'positives'); its columns are query",
        ),
        (Dataset.from_dict({"query": []}), "train_dataset is empty"),
    ],
    ids=["list without rows", "fewer than a batch", "columns missing", "table without rows"],
)
def test_a_dataset_without_a_full_batch_is_refused(
    rows: Any, reason: str, trainer: Callable, error_message: ErrorMessage
):
    assert error_message(lambda: trainer(rows, batch=4)).startswith(reason)


@pytest.mark.parametrize(
    ("teachers", "reason"),
    [
        ([[1.0, 0.0], [1.0]], "the text 'b': its teacher embedding has 1 dimensions, but the text 'a' has 2: compute"),
        ([[1.0, 0.0], None], "the text 'b': its teacher embedding is not a list of finite numbers: compute it again"),
        ([[1.0, float("nan")], [1.0, 0.0]], "the text 'a': its teacher embedding is not a list of finite numbers"),
        ([[1.0, 0.0]], "distillation compares the texts of a batch with each other, but this is a batch of one"),
    ],
    ids=["another length", "missing", "NaN", "batch of one"],
)
def test_the_error_names_the_text_with_a_bad_teacher_embedding(
    teachers: list,
    reason: str,
    model: UniMEModel,
    processor: ProcessorMixin,
    tmp_path: Path,
    error_message: ErrorMessage,
):
    texts = Dataset.from_dict({"text": ["a", "b"][: len(teachers)], "teacher": teachers})
    args = DistillationConfig(str(tmp_path), use_cpu=True, per_device_train_batch_size=len(teachers), report_to="none")
    assert reason in error_message(lambda: DistillationTrainer(model, args, texts, processing_class=processor).train())


def test_identical_texts_in_stage_1_have_a_loss_of_zero(model: UniMEModel, processor: ProcessorMixin, tmp_path: Path):
    # All similarities are 1 for teacher and student: the divergence of two uniform distributions is 0.
    texts = Dataset.from_dict({"text": ["a"] * 4, "teacher": [[1.0, 0.0]] * 4})
    args = DistillationConfig(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=4, max_steps=1, report_to="none"
    )
    trainer = DistillationTrainer(model, args, texts, processing_class=processor)
    assert trainer.train().training_loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["[]"], "holds negatives for 1 rows, but the dataset has 2"),
        (["[]", "nonsense"], "line 2 is not a list of numbers of the 2 rows: mine again"),
        (["[]", "[2]"], "line 2 is not a list of numbers of the 2 rows: mine again"),
        (["[-1]", "[]"], "line 1 is not a list of numbers of the 2 rows: mine again"),
        (['["0"]', "[]"], "line 1 is not a list of numbers of the 2 rows: mine again"),
        (["3", "[]"], "line 1 is not a list of numbers of the 2 rows: mine again"),
        (None, "there is no file {path} of mined negatives: create it with recipes/mine.py"),
    ],
    ids=["other dataset", "no JSON", "row beyond", "row before", "row a string", "no list", "absent"],
)
def test_a_wrong_file_of_mined_negatives_is_refused(
    lines: list[str] | None, reason: str, tmp_path: Path, error_message: ErrorMessage
):
    path = tmp_path / "negatives.jsonl"
    if lines is not None:
        path.write_text("\n".join(lines))
    message = error_message(
        lambda: with_mined_negatives(openmoji_rows("train", 2), path), ValueError if lines else FileNotFoundError
    )
    assert reason.format(path=path) in message


@pytest.mark.parametrize(
    ("candidates", "positive", "expected"),
    [(1, [0], [[]]), (2, [0, 1], [[1], [0]]), (3, [0, 0, 0], [[1, 2], [1, 2], [1, 2]])],
    ids=["one candidate", "more negatives than candidates", "one answer to all"],
)
def test_mining_uses_all_negatives_if_there_are_few(candidates: int, positive: list[int], expected: list[list[int]]):
    queries = np.tile(np.float32([1, 0]), (len(positive), 1))
    pool = np.float32([[1, 0], [0.9, 0.1], [0.8, 0.2]])[:candidates]
    rows = len(positive)
    contents = (100 + np.arange(rows), np.arange(candidates))  # of distinct queries and candidates
    positives = [[index] for index in positive]
    mined, report = mine_hard_negatives(queries, pool, positives, np.full(rows, -1), *contents, num_negatives=10)
    assert mined == expected and report["queries with fewer than num_negatives"] == len(positive)


@pytest.mark.parametrize(
    ("open_it", "reason"),
    [
        (lambda: openmoji_rows("train", 2, tasks=["flying"]), "the OpenMoji data has no task 'flying': choose from "),
        (lambda: openmoji_rows("dev", 2), "split"),
        (lambda: mmeb_train(subsets=["CIFAR-100"]), "unknown subset 'CIFAR-100' of MMEB-train: choose from ImageNet"),
        (
            lambda: mmeb_train(subset_weights={"CIFAR-100": 2}),
            "unknown subset 'CIFAR-100' of MMEB-train: choose from",
        ),
    ],
    ids=["OpenMoji task", "OpenMoji split", "subset", "subset with a weight"],
)
def test_the_error_for_an_unknown_name_lists_the_known_names(
    open_it: Callable, reason: str, error_message: ErrorMessage
):
    assert reason in error_message(open_it)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["nonsense"], "line 1 does not name a row: give a file written by `unime check-data`"),
        (["[1]"], "line 1 does not name a row: give a file written by `unime check-data`"),
        (
            ['{"row": 0, "reason": "bad"}', "{}"],
            "line 2 does not name a row: give a file written by `unime check-data`",
        ),
        (
            ['{"row": 5, "reason": "bad"}'],
            "line 1 rejects row 5, but the dataset has 2: open it with the settings that",
        ),
        (['{"row": -1, "reason": "bad"}'], "line 1 rejects row -1, but the dataset has 2: open it with the settings"),
        (None, "there is no file {path} of rejected rows: create it with `unime check-data`"),
    ],
    ids=["no JSON", "a list", "no row", "another dataset", "before the first", "absent"],
)
def test_a_wrong_list_of_rejected_rows_is_refused(
    lines: list[str] | None, reason: str, tmp_path: Path, error_message: ErrorMessage
):
    path = tmp_path / "rejected.jsonl"
    if lines is not None:
        path.write_text("\n".join(lines))
    message = error_message(
        lambda: without_rejected(openmoji_rows("train", 2), path), ValueError if lines else FileNotFoundError
    )
    assert reason.format(path=path) in message
