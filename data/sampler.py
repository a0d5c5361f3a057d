"""The order of training rows: blocks of one task, so that the negatives of a batch are of the query's own kind."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class TaskSampler(Sampler[int]):
    """Shuffle rows so that they come in blocks of one task.

    A name is no hard negative for a question: the smaller the share of a batch that a task has, the less its rows
    learn from each other. VLM2Vec-V2 (arXiv 2507.04590) interleaves sub-batches of one dataset for this reason.

    Every row comes once. What is left of each task when its blocks are full makes mixed blocks.

    Args:
        tasks (`Sequence[str]`): The task of each row.
        block (`int`): Rows of a block; a batch size that is a multiple of it keeps blocks whole.
        seed (`int`, *optional*, defaults to 0): Order of the first epoch; `set_epoch` changes it.
    """

    def __init__(self, tasks: Sequence[str], block: int, seed: int = 0):
        self.rows: dict[str, list[int]] = {}
        for row, task in enumerate(tasks):
            self.rows.setdefault(task, []).append(row)
        self.size, self.block, self.seed, self.epoch = len(tasks), block, seed, 0

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)

        def shuffled(values: list) -> list:
            return [values[index] for index in torch.randperm(len(values), generator=generator).tolist()]

        blocks, left = [], []
        for rows in self.rows.values():
            rows = shuffled(rows)
            whole = len(rows) // self.block * self.block
            blocks += [rows[start : start + self.block] for start in range(0, whole, self.block)]
            left += rows[whole:]
        left = shuffled(left)
        blocks = shuffled(blocks + [left[start : start + self.block] for start in range(0, len(left), self.block)])
        # The one block that may be short would shift all after it across the edges of the batches.
        blocks.sort(key=len, reverse=True)
        return iter([row for rows in blocks for row in rows])
