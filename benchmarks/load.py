"""Many clients at a time: each sends a request, waits for the answer and sends the next."""

import asyncio
import random
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil


@dataclass
class Load:
    """What was measured once the server was warm.

    Args:
        seconds (`list[float]`): Of each good request; every answer was checked.
        hostile (`int`): Requests that were broken, too large or hung up.
        warm_mb, mb (`float`): Most resident memory of the server until it was warm, and after.
    """

    seconds: list[float] = field(default_factory=list)
    hostile: int = 0
    warm_mb: float = 0.0
    mb: float = 0.0

    def row(self) -> dict[str, Any]:
        """For the results: times in milliseconds, memory in MB."""
        p50, p95, p99 = np.percentile(self.seconds, [50, 95, 99]) * 1000
        return {
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "answers_checked": len(self.seconds),
            "hostile_refused": self.hostile,
            "memory_warm_mb": self.warm_mb,
            "memory_mb": self.mb,
        }


async def put_load(
    process: subprocess.Popen,
    ask: Callable[[random.Random], Awaitable[None]],
    misbehave: Callable[[random.Random], Awaitable[None]],
    clients: int,
    hostile: float,
    warm: float,
    seconds: float,
) -> Load:
    """Put load on a server.

    Args:
        process (`subprocess.Popen`): The server, whose memory is watched.
        ask (`Callable`): Sends a good request, and fails unless its answer is right.
        misbehave (`Callable`): Sends a hostile request, and fails if the server takes it for a good one.
        clients (`int`): Clients at a time.
        hostile (`float`): Share of hostile requests.
        warm (`float`), seconds (`float`): How long to warm the server, then how long to measure.

    Raises:
        ValueError: No request was answered in time, or the server ended.
    """
    load = Load()
    begin = time.perf_counter() + warm
    end = begin + seconds

    async def client(number: int) -> None:
        own = random.Random(number)
        while (started := time.perf_counter()) < end:
            bad = own.random() < hostile
            await (misbehave if bad else ask)(own)
            if started >= begin:
                if bad:
                    load.hostile += 1
                else:
                    load.seconds.append(time.perf_counter() - started)

    async def watch() -> None:
        server = psutil.Process(process.pid)
        while (now := time.perf_counter()) < end:
            if process.poll() is not None:
                raise ValueError(f"the server ended with status {process.returncode}: see its log")
            mb = server.memory_info().rss / 1e6
            if now < begin:
                load.warm_mb = max(load.warm_mb, mb)
            else:
                load.mb = max(load.mb, mb)
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        for number in range(clients):
            group.create_task(client(number))
    if not load.seconds:
        raise ValueError(f"no request was answered within {seconds} seconds: raise --seconds")
    return load
