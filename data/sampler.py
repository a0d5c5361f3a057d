"""Which rows form a batch: blocks of a task, balanced parts or a stream to train on, equal batches to evaluate on."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import count
from typing import Any, TypeAlias

import datasets
import torch
from torch.utils.data import IterableDataset, Sampler, get_worker_info
from transformers.trainer_pt_utils import BatchRebalanceSampler

from .rows import TransformedStream, rows_of_columns


Stream: TypeAlias = datasets.IterableDataset | TransformedStream


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


class BalancedSampler(BatchRebalanceSampler):
    """Batch sampler that divides a joined batch into parts of about equal length, perhaps of unequal numbers of rows.

    The base class assumes that a process pads all of its rows to the longest one, but micro-batches have rows of
    similar lengths, so the cost of a part is the sum of its lengths. The longest rows are placed first, each in the
    part that is the shortest so far.
    """

    def _assign(self, indices: list[int], lengths: list[float]) -> list[list[list[int]]]:
        parts: list[list[int]] = [[] for _ in range(self.dp_size)]
        totals = [0.0] * self.dp_size
        for index, length in sorted(zip(indices, lengths, strict=True), key=lambda row: row[1], reverse=True):
            shortest = min(range(self.dp_size), key=lambda part: (totals[part], len(parts[part])))
            parts[shortest].append(index)
            totals[shortest] += length
        return [[part] for part in parts]


def part_of_process(rows: Sequence, num_processes: int, process_index: int) -> list:
    """Return the rows of a joined batch that one process embeds; none if there are more processes than rows."""
    return list(rows[len(rows) * process_index // num_processes : len(rows) * (process_index + 1) // num_processes])


class EvaluationSampler(Sampler[list[int]]):
    """Batch sampler that reads every evaluation row once, in joined batches that differ by one row at most.

    A joined batch is what the loss compares: the parts of all processes. A short last batch would have few negatives,
    or none. Batch i of k has the rows i, i + k, i + 2k, ...: consecutive rows often share a class or a task.

    Args:
        num_rows (`int`): Rows of the evaluation set.
        batch_size (`int`): Maximum number of rows of a joined batch.
        num_processes (`int`, *optional*, defaults to 1): Processes that evaluate together.
        process_index (`int`, *optional*, defaults to 0): This process, whose rows the sampler yields. A list is empty
            if the joined batch has fewer rows than there are processes.
    """

    def __init__(self, num_rows: int, batch_size: int, num_processes: int = 1, process_index: int = 0):
        self.num_rows, self.num_batches = num_rows, -(-num_rows // batch_size)
        self.num_processes, self.process_index = num_processes, process_index

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for first_row in range(self.num_batches):
            rows = range(first_row, self.num_rows, self.num_batches)
            yield part_of_process(rows, self.num_processes, self.process_index)


def stored_rows(rows: Stream) -> datasets.IterableDataset:
    """Return the stored rows of a stream, whose images are not read yet."""
    return rows.stored if isinstance(rows, TransformedStream) else rows


def transformed_rows(rows: Stream, used: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Transform those of the stored rows of a stream that are used."""
    if not used or not isinstance(rows, TransformedStream):
        return used
    return rows_of_columns(rows.transform({name: [row[name] for row in used] for name in used[0]}))


class EvaluationStream(IterableDataset):
    """The batches of an evaluation stream: every row once, with the last two batches of nearly equal size.

    The length of a stream is unknown, so batches have consecutive rows. All processes read all rows as they are
    stored; a row is transformed, which reads its images, only where it is used.

    Args:
        rows (`datasets.IterableDataset` or [`TransformedStream`]): The stream.
        batch_size (`int`): Rows of a joined batch; the last two may have fewer.
        num_processes (`int`, *optional*, defaults to 1): Processes that evaluate together.
        process_index (`int`, *optional*, defaults to 0): This process, whose rows are yielded as lists.
    """

    def __init__(self, rows: Stream, batch_size: int, num_processes: int = 1, process_index: int = 0):
        self.rows, self.batch_size = rows, batch_size
        self.num_processes, self.process_index = num_processes, process_index

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self._joined_batches():
            yield transformed_rows(self.rows, part_of_process(batch, self.num_processes, self.process_index))

    def _joined_batches(self) -> Iterator[list[Any]]:
        waiting: list[Any] = []
        for row in stored_rows(self.rows):
            waiting.append(row)
            if len(waiting) == 2 * self.batch_size:
                yield waiting[: self.batch_size]
                waiting = waiting[self.batch_size :]
        if len(waiting) > self.batch_size:
            yield waiting[: len(waiting) // 2]
            waiting = waiting[len(waiting) // 2 :]
        if waiting:
            yield waiting


class TrainingStream(IterableDataset):
    """The batches of a training stream, pass after pass without an end.

    A joined batch, which the loss compares, has consecutive rows, and each process embeds its part of them. All
    processes read all rows as they are stored; a row is transformed, which reads its images, only where it is used.

    Args:
        rows (`datasets.IterableDataset` or [`TransformedStream`]): The stream.
        batch_size (`int`): Rows of a joined batch.
        num_processes (`int`, *optional*, defaults to 1): Processes that train together.
        process_index (`int`, *optional*, defaults to 0): This process, whose rows are yielded as lists.
        drop_last (`bool`, *optional*, defaults to `True`): Whether to leave out the last batch of a pass if it is
            short. Otherwise several processes fill it with the first rows of the pass.

    Attributes:
        num_seen_batches (`int`): Batches that a resumed training has seen. `None` is yielded in place of each.

    Raises:
        ValueError: While iterating: a pass has no batch.
    """

    def __init__(
        self,
        rows: Stream,
        batch_size: int,
        num_processes: int = 1,
        process_index: int = 0,
        drop_last: bool = True,
    ):
        self.rows, self.batch_size, self.drop_last = rows, batch_size, drop_last
        self.num_processes, self.process_index = num_processes, process_index
        self.num_seen_batches = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]] | None]:
        worker = get_worker_info()  # the loader takes one batch of each worker in turn
        worker_index, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, batch in enumerate(self._joined_batches(copy_stream=num_workers > 1)):
            if number % num_workers != worker_index:
                continue
            if number < self.num_seen_batches:
                yield None
                continue
            yield transformed_rows(self.rows, part_of_process(batch, self.num_processes, self.process_index))

    def _joined_batches(self, copy_stream: bool) -> Iterator[list[dict[str, Any]]]:
        stream = stored_rows(self.rows)
        # The workers of a loader share the memory that holds a stream's epoch, but one may be an epoch ahead.
        stream = deepcopy(stream) if copy_stream else stream
        for epoch in count():
            stream.set_epoch(epoch)
            first: list[dict[str, Any]] = []
            for columns in stream.iter(self.batch_size):
                batch = rows_of_columns(columns)
                first = first or batch
                if len(batch) < self.batch_size and self.drop_last:
                    break
                while len(batch) < self.batch_size and self.num_processes > 1:
                    batch = (batch + first)[: self.batch_size]
                yield batch
            if len(first) < self.batch_size and (self.drop_last or not first):
                raise ValueError(
                    f"train_dataset ended before one batch of {self.batch_size} rows: lower the batch size"
                )
