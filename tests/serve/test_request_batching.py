"""Submissions are combined into batches, and each gets its own results back."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from unime.serve.request_batching import Batcher


class Doubling:
    """A function that doubles numbers, records its batches, and waits until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, items: list[int]) -> Iterator[dict[int, int | Exception]]:
        self.batches.append(items)
        self.threads.add(threading.current_thread().name)
        for index, item in sorted(enumerate(items), key=lambda pair: -pair[0]):  # in any order
            assert self.may_go.wait(5)
            if item < 0:
                raise RuntimeError("negative")
            yield {index: ValueError("odd") if item % 2 else 2 * item}


def test_submissions_share_a_batch_and_get_their_own_results():
    run = Doubling()

    async def main() -> list[list]:
        async with Batcher(run, max_items=6, max_wait=600) as batcher:
            return await asyncio.gather(batcher.submit([2, 4]), batcher.submit([6]), batcher.submit([8, 10, 12]))

    started = time.perf_counter()
    assert asyncio.run(main()) == [[4, 8], [12], [16, 20, 24]]
    assert run.batches == [[2, 4, 6, 8, 10, 12]]
    assert time.perf_counter() - started < 60  # a full batch does not wait
    assert run.threads == {"model"}


def test_a_batch_exceeds_the_budget_only_for_a_single_submission():
    run = Doubling()

    async def main() -> None:
        async with Batcher(run, max_items=3, max_wait=0.05) as batcher:
            await asyncio.gather(*(batcher.submit(items) for items in ([2, 2], [4, 4], [6], [8] * 5, [10])))

    asyncio.run(main())
    assert run.batches == [[2, 2], [4, 4, 6], [8] * 5, [10]]


def test_submissions_that_arrive_while_the_model_computes_form_the_next_batch():
    run = Doubling()

    async def main() -> None:
        async with Batcher(run, max_items=64, max_wait=0) as batcher:
            run.may_go.clear()
            first = asyncio.create_task(batcher.submit([2]))
            await asyncio.sleep(0.05)  # the model is computing it by now
            others = [asyncio.create_task(batcher.submit([item])) for item in (4, 6, 8)]
            await asyncio.sleep(0)
            assert batcher.waiting == 3
            run.may_go.set()
            assert await asyncio.gather(first, *others) == [[4], [8], [12], [16]]

    asyncio.run(main())
    assert run.batches == [[2], [4, 6, 8]]


def test_an_error_concerns_only_its_item_and_a_failed_batch_does_not_stop_the_next():
    run = Doubling()

    async def main() -> tuple[list, list, list]:
        async with Batcher(run, max_items=2, max_wait=5) as batcher:
            good, odd = await asyncio.gather(batcher.submit([2]), batcher.submit([3]))
            failed = await batcher.submit([-2, 2])
            assert await batcher.submit([4, 6]) == [8, 12]
        return good, odd, failed

    good, odd, failed = asyncio.run(main())
    assert good == [4]
    assert isinstance(odd[0], ValueError)
    assert failed[1] == 4 and str(failed[0]) == "negative"


def test_a_cancelled_submission_is_not_computed_and_does_not_disturb_others():
    run = Doubling()

    async def main() -> None:
        async with Batcher(run, max_items=64, max_wait=0) as batcher:
            run.may_go.clear()
            computing = asyncio.create_task(batcher.submit([2]))
            await asyncio.sleep(0.05)
            cancelled, kept = (asyncio.create_task(batcher.submit([item])) for item in (4, 6))
            await asyncio.sleep(0)
            computing.cancel()  # its batch has started, but nobody reads the result
            cancelled.cancel()
            await asyncio.sleep(0)
            run.may_go.set()
            assert await kept == [12]

    asyncio.run(main())
    assert run.batches == [[2], [6]]


def test_closing_finishes_accepted_submissions_and_accepts_no_more():
    run = Doubling()

    async def main() -> list:
        batcher = Batcher(run, max_items=2, max_wait=600)
        async with batcher:
            accepted = [asyncio.create_task(batcher.submit([item])) for item in (2, 4, 6)]
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="closed"):
            await batcher.submit([8])
        return await asyncio.gather(*accepted)

    started = time.perf_counter()
    assert asyncio.run(main()) == [[4], [8], [12]]
    assert time.perf_counter() - started < 60  # it does not wait for further submissions
    assert run.batches == [[2, 4], [6]]


def test_a_submission_is_answered_before_the_rest_of_its_batch_is_computed():
    may_go = threading.Event()

    def run(items: list[int]) -> Iterator[dict[int, int | Exception]]:
        yield {0: items[0], 2: items[2]}
        assert may_go.wait(5)
        yield {1: items[1]}

    async def main() -> None:
        async with Batcher(run, max_items=3, max_wait=600) as batcher:
            slow, quick = asyncio.create_task(batcher.submit([2, 4])), asyncio.create_task(batcher.submit([6]))
            assert await quick == [6] and not slow.done()
            may_go.set()
            assert await slow == [2, 4]

    asyncio.run(main())
