from unime.data.sampler import TaskSampler


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
