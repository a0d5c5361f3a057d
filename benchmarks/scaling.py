"""How time grows with the number of items: of `encode` in one and in two processes, and of the losses.

    python benchmarks/scaling.py                       # two cores
    python benchmarks/scaling.py --device cuda --processes 1

The exponent is the slope of log time over log number, by least squares: 1 is a line. Losses compare each row with each
other, so theirs tends to 2; they are measured on embeddings that are there already, forward and backward.
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
from interleaved_timing import Alternation, alternate
from items import texts
from result_files import table, write
from torch.nn.functional import normalize
from trl import TrlParser

from unime import load_model
from unime.trainers.losses import contrastive_loss, distillation_kl


DIMENSIONS = 192
WARM_UP = 64  # items
Work = Callable[[int], Any]  # takes the number of items


@dataclass
class ScriptArguments:
    """What to measure."""

    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Checkpoint."})
    numbers: list[int] = field(
        default_factory=lambda: [1000, 2000, 4000, 8000, 16000, 32000], metadata={"help": "Texts to embed."}
    )
    batches: list[int] = field(
        default_factory=lambda: [1024, 2048, 4096, 8192], metadata={"help": "Rows that a loss compares."}
    )
    processes: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Processes that share the texts."})
    rounds: int = field(default=1, metadata={"help": "Times that each number is measured."})
    device: str = field(default="cpu", metadata={"help": "Where all of them compute."})
    threads: int = field(default=2, metadata={"help": "Threads of torch, which processes share."})
    output: str = field(default="benchmarks/results/scaling.json", metadata={"help": "Where ratios are written."})


def load(model: str, device: str, threads: int) -> None:
    """Prepare this process for [`embed`]."""
    global network, processor
    torch.set_num_threads(threads)
    network, processor = load_model(model, dtype="float32")
    network.to(device)
    embed(texts(WARM_UP))


def embed(some: Sequence[str]) -> np.ndarray:
    """Embed texts with the model of this process: `(texts, dimensions)`."""
    return network.encode(some, processor)


@contextmanager
def encoding(processes: int, script: ScriptArguments) -> Iterator[Work]:
    """Give what embeds a number of texts: in this process alone, or shared by several others."""
    said = texts(max(script.numbers))
    if processes == 1:
        load(script.model, script.device, script.threads)
        yield lambda number: embed(said[:number])
        return
    arguments = (script.model, script.device, max(1, script.threads // processes))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=load, initargs=arguments) as pool:

        def work(number: int) -> np.ndarray:
            # The parts are alike, as every n-th text is as long as any other on average.
            return np.concatenate(list(pool.map(embed, [said[part:number:processes] for part in range(processes)])))

        list(pool.map(embed, [said[:WARM_UP]] * processes * 2))
        yield work


def contrastive(number: int, device: str) -> None:
    """The loss of stage 2 with its defaults, and its gradient."""
    queries, candidates = unit_vectors(number, device), unit_vectors(number, device)
    excluded = torch.zeros(number, number, dtype=torch.bool, device=device)
    loss, _ = contrastive_loss(queries, candidates, torch.arange(number, device=device), excluded)
    loss.backward()


def distillation(number: int, device: str) -> None:
    """The loss of stage 1, and its gradient."""
    loss = distillation_kl(
        unit_vectors(number, device),
        unit_vectors(number, device).detach(),
        student_temperature=0.05,
        teacher_temperature=0.05,
    )
    loss.backward()


def unit_vectors(number: int, device: str) -> torch.Tensor:
    """Random embeddings that want a gradient: `(number, dimensions)`."""
    return normalize(torch.randn(number, DIMENSIONS, device=device), dim=-1).requires_grad_()


def exponent(numbers: Sequence[int], seconds: Sequence[float]) -> float:
    """The `p` of time = constant * number ** p, fitted in logarithms."""
    return float(np.polyfit(np.log(numbers), np.log(seconds), 1)[0])


def grown(name: str, work: Work, numbers: Sequence[int], rounds: int) -> tuple[dict[str, Any], Alternation]:
    """Measure one kind of work at all numbers; its row of the table, and the times."""
    found = alternate({str(number): partial(work, number) for number in numbers}, rounds)
    seconds = [found.median(str(number)) for number in numbers]
    print(f"{name}: " + ", ".join(f"{n}: {s:.2f} s" for n, s in zip(numbers, seconds, strict=True)), file=sys.stderr)
    first = seconds[0] / numbers[0]
    row = {
        "work": name,
        "numbers": f"{numbers[0]} to {numbers[-1]}",
        "exponent": round(exponent(numbers, seconds), 3) if len(numbers) > 1 else math.nan,
        "time per item, first = 1": " ".join(f"{s / n / first:.2f}" for n, s in zip(numbers, seconds, strict=True)),
    }
    return row, found


def main(script: ScriptArguments) -> None:
    rows, alone = [], None
    for processes in script.processes:
        with encoding(processes, script) as work:
            name = f"encode, {processes} process" + ("es" if processes > 1 else "")
            row, found = grown(name, work, script.numbers, script.rounds)
        alone = alone or found
        rows.append(row | {f"times as fast as {script.processes[0]}": round(_faster(alone, found), 3)})
    for name, loss in (("contrastive loss", contrastive), ("distillation loss", distillation)):
        loss(script.batches[0], script.device)
        rows.append(grown(name, partial(loss, device=script.device), script.batches, script.rounds)[0])
    settings = asdict(script)
    write(settings.pop("output"), settings, rows)
    print(table(rows))


def _faster(slow: Alternation, fast: Alternation) -> float:
    """How many times as fast at the largest number."""
    largest = list(fast.seconds)[-1]
    return slow.median(largest) / fast.median(largest)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
