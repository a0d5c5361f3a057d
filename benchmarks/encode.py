"""Speed of `encode`, compared with sentence-transformers, plain transformers batches and the published snippet.

    python benchmarks/encode.py                       # two cores
    python benchmarks/encode.py --device cuda

All functions embed the same items with the same weights in float32, in turn. Texts have 4 to 400 tokens, and most are
short. The speedup is the median over the rounds of the ratio of the two times in a round. The largest difference is
the largest absolute difference between an embedding of a baseline and ours.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import encode_functions
from interleaved_timing import time_interleaved
from items import INSTRUCTION, Items, images, mixed, texts, with_repetitions
from models import FAMILIES, TINY, checkpoint
from result_files import table, write
from trl import TrlParser


OURS, MAIN_BASELINE = "unime", "sentence-transformers"
WARM_UP_ITEMS = 8


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    models: list[str] = field(
        default_factory=lambda: [TINY, *FAMILIES], metadata={"help": f"Some of {TINY}, {', '.join(FAMILIES)}."}
    )
    items: int = field(default=600, metadata={"help": f"Items per workload for {TINY}."})
    random_model_items: int = field(default=192, metadata={"help": "Items per workload for the random models."})
    rounds: int = field(default=3, metadata={"help": "Number of timing rounds."})
    device: str = field(default="cpu", metadata={"help": "Device of all computations."})
    threads: int = field(default=2, metadata={"help": "Number of torch threads."})
    output: str = field(default="benchmarks/results/encode.json", metadata={"help": "Output file."})


def workloads(size: int) -> Iterator[tuple[str, Items, str | None]]:
    """Yield the name, the items and their common instruction of each workload."""
    yield "texts", texts(size), None
    yield "texts, 30% repeated", with_repetitions(texts(size)), None
    yield "texts, one instruction", texts(size), INSTRUCTION
    yield "images", images(size), None
    yield "mixed", mixed(size), None


def measure(folder: Path, size: int, script: ScriptArguments) -> Iterator[dict[str, Any]]:
    """Compare with sentence-transformers on every workload, and with all baselines on the mixed one."""
    functions = encode_functions(folder, script.device)
    for name, items, instruction in workloads(size):
        compared = functions if name == "mixed" else {key: functions[key] for key in (OURS, MAIN_BASELINE)}
        for encode in compared.values():
            encode(items[:WARM_UP_ITEMS], instruction)
        timings = time_interleaved(
            {key: partial(encode, items, instruction) for key, encode in compared.items()}, script.rounds
        )
        seconds = ", ".join(f"{key} {timings.median(key):.2f} s" for key in compared)
        print(f"{folder.name}, {name}: {seconds}", file=sys.stderr, flush=True)
        for baseline in list(compared)[1:]:
            yield {
                "model": folder.name,
                "workload": name,
                "items": size,
                "baseline": baseline,
                "speedup": round(timings.speedup(baseline, OURS), 3),
                "largest difference": float(np.abs(timings.results[baseline] - timings.results[OURS]).max()),
            }


def main(script: ScriptArguments) -> None:
    torch.set_num_threads(script.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in script.models:
            size = script.items if name == TINY else script.random_model_items
            rows += measure(checkpoint(name, Path(folder)), size, script)
    settings = asdict(script)
    write(settings.pop("output"), settings, rows)
    print(table(rows))


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
