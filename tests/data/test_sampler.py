from itertools import chain

import pytest

from unime.data.sampler import EvaluationSampler, EvaluationStream, TaskSampler


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
