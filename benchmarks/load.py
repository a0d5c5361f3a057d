"""Load generator: concurrent clients that send a request, wait for the answer and send the next one."""

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
    """Measurements of a warm server.

    Args:
        seconds (`list[float]`): Latency of each valid request; every answer was checked.
        hostile (`int`): Number of requests that were broken, too large or hung up.
        warm_mb (`float`): Peak resident memory of the server during the warm-up, in MB.
        mb (`float`): Peak resident memory after the warm-up, in MB.
    """

    seconds: list[float] = field(default_factory=list)
    hostile: int = 0
    warm_mb: float = 0.0
    mb: float = 0.0

    def row(self) -> dict[str, Any]:
        """Return the results: latencies in milliseconds, memory in MB."""
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


async def measure_load(
    process: subprocess.Popen,
    ask: Callable[[random.Random], Awaitable[None]],
    misbehave: Callable[[random.Random], Awaitable[None]],
    clients: int,
    hostile: float,
    warm: float,
    seconds: float,
) -> Load:
    """Measure a server under load.

    Args:
        process (`subprocess.Popen`): Process of the server, to monitor its memory.
        ask (`Callable`): Sends a valid request and fails unless its answer is correct.
        misbehave (`Callable`): Sends a hostile request and fails if the server accepts it.
        clients (`int`): Number of concurrent clients.
        hostile (`float`): Share of hostile requests, 0 to 1.
        warm (`float`): Duration of the warm-up in seconds.
        seconds (`float`): Duration of the measurement in seconds.

    Raises:
        ValueError: No request was answered in time, or the server exited.
    """
    load = Load()
    begin = time.perf_counter() + warm
    end = begin + seconds

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        while (started := time.perf_counter()) < end:
            is_hostile = rng.random() < hostile
            await (misbehave if is_hostile else ask)(rng)
            if started >= begin:
                if is_hostile:
                    load.hostile += 1
                else:
                    load.seconds.append(time.perf_counter() - started)

    async def monitor_memory() -> None:
        server = psutil.Process(process.pid)
        while (now := time.perf_counter()) < end:
            if process.poll() is not None:
                raise ValueError(f"the server exited with status {process.returncode}: see its log")
            mb = server.memory_info().rss / 1e6
            if now < begin:
                load.warm_mb = max(load.warm_mb, mb)
            else:
                load.mb = max(load.mb, mb)
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        group.create_task(monitor_memory())
        for seed in range(clients):
            group.create_task(client(seed))
    if not load.seconds:
        raise ValueError(f"no request was answered within {seconds} seconds: raise --seconds")
    return load
