"""Scaling of time with the number of items: `encode` in one and two processes, and the losses.

    python benchmarks/scaling.py                       # two cores
    python benchmarks/scaling.py --device cuda --processes 1

The exponent is the least-squares slope of log time over log number of items: 1 means linear. The losses compare all
pairs of rows, so their exponent tends to 2; they are measured on given embeddings, forward and backward.
"""

import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from interleaved_timing import InterleavedTimings, time_interleaved
from items import texts
from result_files import table, write
from torch.nn.functional import normalize
from trl import TrlParser

from unime import load_model
from unime.trainers.losses import contrastive_loss, distillation_kl


DIMENSIONS = 192
WARM_UP_ITEMS = 64
Work = Callable[[int], Any]  # takes the number of items


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Checkpoint to embed with."})
    sizes: list[int] = field(
        default_factory=lambda: [1000, 2000, 4000, 8000, 16000, 32000], metadata={"help": "Numbers of texts to embed."}
    )
    batches: list[int] = field(
        default_factory=lambda: [1024, 2048, 4096, 8192], metadata={"help": "Numbers of rows in a loss."}
    )
    processes: list[int] = field(
        default_factory=lambda: [1, 2], metadata={"help": "Numbers of processes that share the texts."}
    )
    rounds: int = field(default=1, metadata={"help": "Number of timing rounds."})
    device: str = field(default="cpu", metadata={"help": "Device of all computations."})
    threads: int = field(default=2, metadata={"help": "Number of torch threads, shared by the processes."})
    output: str = field(default="benchmarks/results/scaling.json", metadata={"help": "Output file."})


def load(model: str, device: str, threads: int) -> None:
    """Load the model of this process for [`embed`]."""
    global network, processor
    torch.set_num_threads(threads)
    network, processor = load_model(model, dtype="float32")
    network.to(device)
    embed(texts(WARM_UP_ITEMS))


def embed(batch: Sequence[str]) -> np.ndarray:
    """Embed texts with the model of this process: `(texts, dimensions)`."""
    return network.encode(batch, processor)


@contextmanager
def encoding(processes: int, script: ScriptArguments) -> Iterator[Work]:
    """Yield a function that embeds a number of texts, in this process or in several others."""
    sentences = texts(max(script.sizes))
    if processes == 1:
        load(script.model, script.device, script.threads)
        yield lambda size: embed(sentences[:size])
        return
    arguments = (script.model, script.device, max(1, script.threads // processes))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=load, initargs=arguments) as pool:

        def work(size: int) -> np.ndarray:
            # Strided shards take equal time, because their texts have the same average length.
            shards = [sentences[shard:size:processes] for shard in range(processes)]
            return np.concatenate(list(pool.map(embed, shards)))

        list(pool.map(embed, [sentences[:WARM_UP_ITEMS]] * processes * 2))
        yield work


def contrastive(size: int, device: str) -> None:
    """Compute the loss of stage 2 with its defaults, and its gradient."""
    queries, candidates = unit_vectors(size, device), unit_vectors(size, device)
    excluded = torch.zeros(size, size, dtype=torch.bool, device=device)
    loss, _ = contrastive_loss(queries, candidates, torch.arange(size, device=device), excluded)
    loss.backward()


def distillation(size: int, device: str) -> None:
    """Compute the loss of stage 1, and its gradient."""
    loss = distillation_kl(
        unit_vectors(size, device),
        unit_vectors(size, device).detach(),
        student_temperature=0.05,
        teacher_temperature=0.05,
    )
    loss.backward()


def unit_vectors(size: int, device: str) -> torch.Tensor:
    """Return random embeddings with a gradient, `(size, dimensions)`."""
    return normalize(torch.randn(size, DIMENSIONS, device=device), dim=-1).requires_grad_()


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return `p` of time = constant * size ** p, fitted in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(name: str, work: Work, sizes: Sequence[int], rounds: int) -> tuple[dict[str, Any], InterleavedTimings]:
    """Measure one kind of work at all sizes; return its row of the table and the timings."""
    timings = time_interleaved({str(size): partial(work, size) for size in sizes}, rounds)
    seconds = [timings.median(str(size)) for size in sizes]
    print(f"{name}: " + ", ".join(f"{n}: {s:.2f} s" for n, s in zip(sizes, seconds, strict=True)), file=sys.stderr)
    first = seconds[0] / sizes[0]
    row = {
        "work": name,
        "sizes": f"{sizes[0]} to {sizes[-1]}",
        "exponent": round(exponent(sizes, seconds), 3) if len(sizes) > 1 else math.nan,
        "time per item relative to the first": " ".join(
            f"{s / n / first:.2f}" for n, s in zip(sizes, seconds, strict=True)
        ),
    }
    return row, timings


def main(script: ScriptArguments) -> None:
    rows, first = [], None
    for processes in script.processes:
        with encoding(processes, script) as work:
            name = f"encode, {processes} process" + ("es" if processes > 1 else "")
            row, timings = measure(name, work, script.sizes, script.rounds)
        first = first or timings
        rows.append(row | {f"speedup over {script.processes[0]} process": round(_speedup(first, timings), 3)})
    for name, loss in (("contrastive loss", contrastive), ("distillation loss", distillation)):
        loss(script.batches[0], script.device)
        rows.append(measure(name, partial(loss, device=script.device), script.batches, script.rounds)[0])
    settings = asdict(script)
    write(settings.pop("output"), settings, rows)
    print(table(rows))


def _speedup(slow: InterleavedTimings, fast: InterleavedTimings) -> float:
    """Return the speedup at the largest size."""
    largest = list(fast.seconds)[-1]
    return slow.median(largest) / fast.median(largest)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
