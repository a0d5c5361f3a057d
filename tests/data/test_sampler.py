import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import IterableDataset
from PIL import Image
from torch.utils.data import DataLoader

from unime.data import rows as rows_module
from unime.data.sampler import BalancedSampler, EvaluationSampler, EvaluationStream, TaskSampler, TrainingStream
from unime.data.sources import DataArguments, open_rows


TASKS = ["names"] * 10 + ["scenes"] * 7 + ["crops"] * 3


def blocks(sampler: TaskSampler) -> list[list[int]]:
    order = list(sampler)
    return [order[start : start + sampler.block_size] for start in range(0, len(order), sampler.block_size)]


def test_every_row_occurs_once():
    sampler = TaskSampler(TASKS, block_size=4)
    assert sorted(sampler) == list(range(20))
    assert len(sampler) == 20


def test_blocks_hold_one_task_except_for_the_remainder():
    # Two full blocks of names and one of scenes; the remaining 2 + 3 + 3 rows make two mixed blocks.
    tasks = [{TASKS[row] for row in block} for block in blocks(TaskSampler(TASKS, block_size=4))]
    assert sorted(map(sorted, (names for names in tasks if len(names) == 1))) == [["names"], ["names"], ["scenes"]]
    assert sum(len(names) > 1 for names in tasks) == 2


def test_a_short_block_comes_last_and_does_not_shift_the_others():
    tasks = ["names"] * 9 + ["scenes"] * 8
    for seed in range(10):
        *full, last = blocks(TaskSampler(tasks, block_size=4, seed=seed))
        assert len(last) == 1
        assert all(len({tasks[row] for row in block}) == 1 for block in full)


def test_the_order_depends_on_the_epoch_and_is_reproducible():
    sampler = TaskSampler(TASKS, block_size=4, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize(("rows", "batch_size", "sizes"), [(15, 8, [8, 7]), (9, 8, [5, 4]), (8, 8, [8]), (3, 8, [3])])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_batches_hold_every_row_once_and_differ_by_one_row_at_most(
    rows: int, batch_size: int, sizes: list[int], processes: int
):
    parts = [list(EvaluationSampler(rows, batch_size, processes, index)) for index in range(processes)]
    joined = [sorted(chain(*batch)) for batch in zip(*parts, strict=True)]
    assert [len(batch) for batch in joined] == sizes == [len(batch) for batch in EvaluationSampler(rows, batch_size)]
    assert joined == list(EvaluationSampler(rows, batch_size)) and sorted(chain(*joined)) == list(range(rows))
    assert all(max(map(len, batch)) - min(map(len, batch)) <= 1 for batch in zip(*parts, strict=True))


def test_evaluation_batches_of_sorted_rows_hold_all_classes():
    classes = ["cat"] * 12 + ["dog"] * 8 + ["fish"] * 4
    for batch in EvaluationSampler(len(classes), batch_size=6):
        assert [classes[row] for row in batch] == ["cat"] * 3 + ["dog"] * 2 + ["fish"]


@pytest.mark.parametrize(
    ("rows", "sizes"), [(3, [3]), (4, [4]), (5, [2, 3]), (8, [4, 4]), (9, [4, 2, 3]), (12, [4, 4, 4])]
)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_last_two_batches_of_an_evaluation_stream_share_the_remaining_rows(
    rows: int, sizes: list[int], processes: int
):
    parts = [list(EvaluationStream(iter(range(rows)), 4, processes, index)) for index in range(processes)]
    joined = [list(chain(*batch)) for batch in zip(*parts, strict=True)]
    assert [len(batch) for batch in joined] == sizes and list(chain(*joined)) == list(range(rows))


@pytest.fixture
def images_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the path of each image that is read."""
    paths, read_image = [], rows_module.read_image
    monkeypatch.setattr(
        rows_module, "read_image", lambda image, *args: paths.append(image) or read_image(image, *args)
    )
    return paths


@pytest.fixture
def streamed_file(tmp_path: Path) -> Path:
    """Return a JSONL file of ten rows with images."""
    for number in range(10):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    lines = [{"query": {"image": f"{number}.png"}, "positive": {"text": str(number)}} for number in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "rows.jsonl"


def numbers(batch: list[dict[str, Any]] | None) -> list[int] | None:
    return batch and [int(row["positives"][0]["text"]) for row in batch]


def stream_of(path: Path, *processes: int) -> TrainingStream:
    return TrainingStream(open_rows(DataArguments(str(path), streaming=True)), 4, *processes)


def test_each_row_of_a_training_stream_is_read_by_the_process_that_uses_it(
    streamed_file: Path, images_read: list[str]
):
    expected = [numbers(batch) for batch in islice(stream_of(streamed_file), 6)]
    first_pass, third_pass = chain(*expected[:2]), chain(*expected[4:])
    assert len(set(first_pass)) == 8 and expected[:2] != expected[4:] and len(set(third_pass)) == 8
    images_read.clear()
    parts = [[numbers(batch) for batch in islice(stream_of(streamed_file, 2, index), 6)] for index in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == expected
    assert sorted(images_read) == sorted(f"{number}.png" for number in chain(*expected))


def test_each_row_of_an_evaluation_stream_is_read_by_the_process_that_uses_it(
    streamed_file: Path, images_read: list[str]
):
    rows = open_rows(DataArguments(str(streamed_file), streaming=True))
    expected = [numbers(batch) for batch in EvaluationStream(rows, 4)]
    assert sorted(chain(*expected)) == list(range(10))
    images_read.clear()
    parts = [[numbers(batch) for batch in EvaluationStream(rows, 4, 2, index)] for index in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == expected
    assert sorted(images_read) == sorted(f"{number}.png" for number in range(10))


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_workers_change_neither_rows_nor_order_of_a_training_stream(streamed_file: Path, num_workers: int):
    expected = [numbers(batch) for batch in islice(stream_of(streamed_file), 11)]
    loader = DataLoader(stream_of(streamed_file), batch_size=None, num_workers=num_workers, collate_fn=numbers)
    assert list(islice(loader, 11)) == expected


def test_a_resumed_training_stream_does_not_read_the_rows_that_it_skips(streamed_file: Path, images_read: list[str]):
    expected = [numbers(batch) for batch in islice(stream_of(streamed_file), 6)]
    images_read.clear()
    resumed = stream_of(streamed_file)
    resumed.num_seen_batches = 3  # the second pass has begun
    assert [numbers(batch) for batch in islice(resumed, 6)] == [None, None, None, *expected[3:]]
    assert len(images_read) == 12


@pytest.mark.parametrize(
    ("processes", "drop_last", "sizes"), [(1, True, [4, 4]), (1, False, [4, 1, 4, 1]), (2, False, [4, 4, 4, 4])]
)
def test_the_short_last_batch_of_a_pass_is_dropped_kept_or_filled(processes: int, drop_last: bool, sizes: list[int]):
    def rows() -> Iterator[dict[str, int]]:
        yield from ({"number": number} for number in range(5))

    parts = [
        islice(TrainingStream(IterableDataset.from_generator(rows), 4, processes, index, drop_last), len(sizes))
        for index in range(processes)
    ]
    joined = [[row["number"] for row in chain(*batch)] for batch in zip(*parts, strict=True)]
    assert [len(batch) for batch in joined] == sizes
    assert joined[1] == {"True": [0, 1, 2, 3], "False": [4, 0, 1, 2][: sizes[1]]}[str(drop_last)]


def test_balanced_parts_of_a_batch_have_nearly_equal_lengths():
    lengths = torch.empty(4096).log_normal_(6, 1, generator=torch.Generator().manual_seed(0)).tolist()
    ranks = [BalancedSampler(lengths, 512, 8, 1, rank=rank) for rank in range(8)]
    for parts in zip(*ranks, strict=True):
        totals = [sum(lengths[row] for row in part) for part in parts]
        assert len({row for part in parts for row in part}) == sum(map(len, parts)) == 512
        assert max(totals) < 1.001 * sum(totals) / 8  # 1.28 on average with 64 rows each
    equal_rows = [sum(lengths[start : start + 64]) for start in range(0, 512, 64)]
    assert max(equal_rows) > 1.1 * sum(equal_rows) / 8
    assert all(part for part in BalancedSampler([0] * 8, 8, 4, 1)._assign(list(range(8)), [0] * 8))
