"""Request batching: items of concurrent requests share one call of the model, which runs in one thread."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Submission(Generic[Item]):
    items: list[Item]
    future: asyncio.Future
    since: float


class Batcher(Generic[Item, Result]):
    """A queue of submissions that are passed to `run` in batches; `async with` starts it, and drains it at the end.

    A batch starts when the model is free and either the first submission has waited `max_wait` or the batch is full.
    Submissions gather while the model computes, so a busy server forms large batches without waiting.

    Args:
        run (`Callable`): Maps a list of items to a list of results in the same order; an exception in place of a
            result concerns that item only.
        max_items (`int`): Maximum number of items per batch; a single larger submission is still one batch. 1 disables
            batching.
        max_wait (`float`): Maximum number of seconds that the first submission waits for others while the model is
            idle. 0 to 0.01 are common.
    """

    def __init__(self, run: Callable[[list[Item]], list[Result | Exception]], max_items: int, max_wait: float):
        self.run = run
        self.max_items = max_items
        self.max_wait = max_wait
        self._queue: deque[_Submission[Item]] = deque()
        self._changed = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def __aenter__(self) -> "Batcher[Item, Result]":
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._closing = True
        self._changed.set()
        await self._worker
        self._thread.shutdown()

    @property
    def waiting(self) -> int:
        """Return the number of items that are not in a batch yet."""
        return sum(len(submission.items) for submission in self._queue)

    async def submit(self, items: list[Item]) -> list[Result | Exception]:
        """Return the results of items; if the caller is cancelled before the batch starts, they are not computed.

        Raises:
            RuntimeError: The batcher is closed.
        """
        if self._closing:
            raise RuntimeError("the batcher is closed")
        loop = asyncio.get_running_loop()
        submission = _Submission(items, loop.create_future(), loop.time())
        self._queue.append(submission)
        self._changed.set()
        return await submission.future

    async def _work(self) -> None:
        while batch := await self._next_batch():
            items = [item for submission in batch for item in submission.items]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self.run, items)
            except Exception as error:
                results = [error] * len(items)
            for submission in batch:
                count = len(submission.items)
                batch_results, results = results[:count], results[count:]
                if not submission.future.done():  # its client may have disconnected
                    submission.future.set_result(batch_results)

    async def _next_batch(self) -> list[_Submission[Item]]:
        """Wait for a batch; an empty one means that the batcher is closed and the queue is empty."""
        batch: list[_Submission[Item]] = []
        while not batch and (self._queue or not self._closing):
            await self._wait_for_items()
            num_items = 0
            while self._queue and (not batch or num_items + len(self._queue[0].items) <= self.max_items):
                submission = self._queue.popleft()
                if not submission.future.done():
                    batch.append(submission)
                    num_items += len(submission.items)
        return batch

    async def _wait_for_items(self) -> None:
        """Wait until the next batch should start."""
        while not self._queue and not self._closing:
            await self._next_change()
        try:
            async with asyncio.timeout_at(self._queue[0].since + self.max_wait if self._queue else None):
                while self.waiting < self.max_items and not self._closing:
                    await self._next_change()
        except TimeoutError:
            pass

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
