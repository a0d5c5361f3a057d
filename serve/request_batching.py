"""Request batching: items of concurrent requests share one run of the model, which has a thread of its own."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Generic, TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Submission(Generic[Item, Result]):
    items: list[Item]
    future: asyncio.Future
    since: float
    results: dict[int, Result | Exception] = field(default_factory=dict)


class Batcher(Generic[Item, Result]):
    """A queue of submissions that are passed to `run` in batches; `async with` starts it, and drains it at the end.

    A batch starts when the model is free and either the first submission has waited `max_wait` or the batch is full.
    Submissions gather while the model computes, so a busy server forms large batches without waiting. A submission is
    answered when its last item is computed, not at the end of the batch: while the model goes on, the client's answer
    is written and its next request is read.

    Args:
        run (`Callable`): Maps a list of items to results by the position of the item, some at a time, as soon as they
            are computed; an exception in place of a result concerns that item only.
        max_items (`int`): Maximum number of items per batch; a single larger submission is still one batch. 1 disables
            batching.
        max_wait (`float`): Maximum number of seconds that the first submission waits for others while the model is
            idle. 0 to 0.01 are common.
    """

    def __init__(
        self, run: Callable[[list[Item]], Iterable[Mapping[int, Result | Exception]]], max_items: int, max_wait: float
    ):
        self.run = run
        self.max_items = max_items
        self.max_wait = max_wait
        self._queue: deque[_Submission[Item, Result]] = deque()
        self._changed = Condition()
        self._closing = False

    async def __aenter__(self) -> "Batcher[Item, Result]":
        self._loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._work, name="model")
        self._thread.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    @property
    def waiting(self) -> int:
        """Return the number of items that are not in a batch yet."""
        with self._changed:
            return sum(len(submission.items) for submission in self._queue)

    async def submit(self, items: list[Item]) -> list[Result | Exception]:
        """Return the results of items; if the caller is cancelled before the batch starts, they are not computed.

        Raises:
            RuntimeError: The batcher is closed.
        """
        submission: _Submission[Item, Result] = _Submission(items, self._loop.create_future(), time.monotonic())
        with self._changed:
            if self._closing:
                raise RuntimeError("the batcher is closed")
            self._queue.append(submission)
            self._changed.notify()
        return await submission.future

    def _work(self) -> None:
        while batch := self._next_batch():
            places = [(submission, position) for submission in batch for position in range(len(submission.items))]
            computing = dict(enumerate(places))
            try:
                for results in self.run([submission.items[position] for submission, position in places]):
                    self._deliver([(*computing.pop(index), result) for index, result in results.items()])
            except Exception as error:
                self._deliver([(*place, error) for place in computing.values()])

    def _deliver(self, results: list[tuple[_Submission[Item, Result], int, Result | Exception]]) -> None:
        for submission, position, result in results:
            submission.results[position] = result
        submissions = {submission for submission, _, _ in results}
        complete = [submission for submission in submissions if len(submission.results) == len(submission.items)]
        self._loop.call_soon_threadsafe(_resolve, complete)

    def _next_batch(self) -> list[_Submission[Item, Result]]:
        """Wait for a batch; an empty one means that the batcher is closed and the queue is empty."""
        batch: list[_Submission[Item, Result]] = []
        with self._changed:
            while not batch and (self._queue or not self._closing):
                self._wait_for_items()
                num_items = 0
                while self._queue and (not batch or num_items + len(self._queue[0].items) <= self.max_items):
                    submission = self._queue.popleft()
                    if not submission.future.done():  # its client may have disconnected
                        batch.append(submission)
                        num_items += len(submission.items)
        return batch

    def _wait_for_items(self) -> None:
        """Wait until the next batch should start."""
        self._changed.wait_for(lambda: self._queue or self._closing)
        if self._queue:
            self._changed.wait_for(
                lambda: self.waiting >= self.max_items or self._closing,
                self._queue[0].since + self.max_wait - time.monotonic(),
            )


def _resolve(submissions: list[_Submission]) -> None:
    for submission in submissions:
        if not submission.future.done():
            submission.future.set_result([submission.results[position] for position in range(len(submission.items))])
