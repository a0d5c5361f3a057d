"""Order of the training rows: blocks of one task, so that in-batch negatives come from the query's own task."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class TaskSampler(Sampler[int]):
    """Sampler that shuffles rows into blocks of one task.

    A class name is not a hard negative for a question: the smaller a task's share of a batch, the less its rows learn
    from each other. VLM2Vec-V2 (arXiv 2507.04590) interleaves sub-batches of one dataset for this reason.

    Every row occurs once per epoch. Rows that do not fill a block of their task form mixed blocks.

    Args:
        tasks (`Sequence[str]`): Task of each row.
        block_size (`int`): Rows per block. Use a divisor of the batch size, so that no block crosses two batches.
        seed (`int`, *optional*, defaults to 0): Seed of the first epoch's order; `set_epoch` changes the order.
    """

    def __init__(self, tasks: Sequence[str], block_size: int, seed: int = 0):
        self.rows: dict[str, list[int]] = {}
        for row, task in enumerate(tasks):
            self.rows.setdefault(task, []).append(row)
        self.num_rows, self.block_size, self.seed, self.epoch = len(tasks), block_size, seed, 0

    def __len__(self) -> int:
        return self.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)

        def shuffled(values: list) -> list:
            return [values[index] for index in torch.randperm(len(values), generator=generator).tolist()]

        def blocks_of(rows: list[int]) -> list[list[int]]:
            return [rows[start : start + self.block_size] for start in range(0, len(rows), self.block_size)]

        blocks, remainder = [], []
        for rows in self.rows.values():
            rows = shuffled(rows)
            full = len(rows) // self.block_size * self.block_size
            blocks += blocks_of(rows[:full])
            remainder += rows[full:]
        remainder = shuffled(remainder)
        blocks = shuffled(blocks + blocks_of(remainder))
        # A short block anywhere but at the end would shift the blocks after it across batch boundaries.
        blocks.sort(key=len, reverse=True)
        return iter([row for rows in blocks for row in rows])
