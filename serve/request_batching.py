"""Request batching: items of concurrent requests join in one call of the model, in one thread."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Waiting(Generic[Item]):
    items: list[Item]
    future: asyncio.Future
    since: float


class Batcher(Generic[Item, Result]):
    """Calls `run` on the items of as many waiting submissions as fit; `async with` starts and drains it.

    A batch begins when the model is free and its first submission has waited `max_wait`, or the batch is full. While
    the model computes, submissions gather, so a busy server batches well without any wait.

    Args:
        run (`Callable`): From items to as many results in their order; an exception as a result is that item's alone.
        max_items (`int`): Most items of a batch; one submission alone may exceed it. 1 answers one by one.
        max_wait (`float`): Most seconds that the first submission waits for others while the model is idle.
    """

    def __init__(self, run: Callable[[list[Item]], list[Result | Exception]], max_items: int, max_wait: float):
        self.run = run
        self.max_items = max_items
        self.max_wait = max_wait
        self._waiting: deque[_Waiting[Item]] = deque()
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
        """Items that no batch has taken yet."""
        return sum(len(one.items) for one in self._waiting)

    async def submit(self, items: list[Item]) -> list[Result | Exception]:
        """Have items embedded with those of others; cancelled before its batch begins, they are not computed."""
        if self._closing:
            raise RuntimeError("the batcher is closed")
        loop = asyncio.get_running_loop()
        one = _Waiting(items, loop.create_future(), loop.time())
        self._waiting.append(one)
        self._changed.set()
        return await one.future

    async def _work(self) -> None:
        while batch := await self._next_batch():
            items = [item for one in batch for item in one.items]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self.run, items)
            except Exception as error:
                results = [error] * len(items)
            for one in batch:
                own, results = results[: len(one.items)], results[len(one.items) :]
                if not one.future.done():  # its client may have gone
                    one.future.set_result(own)

    async def _next_batch(self) -> list[_Waiting[Item]]:
        """Wait for a batch; an empty one says that the batcher is closed and all is done."""
        batch: list[_Waiting[Item]] = []
        while not batch and (self._waiting or not self._closing):
            await self._filled()
            taken = 0
            while self._waiting and (not batch or taken + len(self._waiting[0].items) <= self.max_items):
                one = self._waiting.popleft()
                if not one.future.done():
                    batch.append(one)
                    taken += len(one.items)
        return batch

    async def _filled(self) -> None:
        while not self._waiting and not self._closing:
            await self._change()
        try:
            async with asyncio.timeout_at(self._waiting[0].since + self.max_wait if self._waiting else None):
                while self.waiting < self.max_items and not self._closing:
                    await self._change()
        except TimeoutError:
            pass

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
