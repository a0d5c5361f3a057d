"""Speed of `encode`: ours against sentence-transformers, plain transformers batches and the published snippet.

    python benchmarks/encode.py                       # two cores
    python benchmarks/encode.py --device cuda

Every way embeds the same items with the same weights in float32, in turn. Texts have 4 to 400 tokens, most of them
few. A figure says how many times as fast ours is: the median over the rounds of the ratio of the two times of a round.
The largest difference is that between an entry of a peer's vectors and of ours.
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
from interleaved_timing import alternate
from items import INSTRUCTION, Items, mixed, images, texts, with_repetitions
from models import FAMILIES, TINY, checkpoint
from peers import ways_to_embed
from result_files import table, write
from trl import TrlParser


OURS, STRONGEST = "unime", "sentence-transformers"
WARM_UP = 8  # items


@dataclass
class ScriptArguments:
    """What to measure."""

    models: list[str] = field(
        default_factory=lambda: [TINY, *FAMILIES], metadata={"help": f"Of {TINY}, {', '.join(FAMILIES)}."}
    )
    items: int = field(default=600, metadata={"help": f"Items of a workload for {TINY}."})
    tiny_model_items: int = field(default=192, metadata={"help": "Items of a workload for the large tiny models."})
    rounds: int = field(default=3, metadata={"help": "Times that each way is measured."})
    device: str = field(default="cpu", metadata={"help": "Where all of them compute."})
    threads: int = field(default=2, metadata={"help": "Threads of torch."})
    output: str = field(default="benchmarks/results/encode.json", metadata={"help": "Where ratios are written."})


def workloads(number: int) -> Iterator[tuple[str, Items, str | None]]:
    """Name, items, and the instruction that they share."""
    yield "texts", texts(number), None
    yield "texts, 30 % repeated", with_repetitions(texts(number)), None
    yield "texts, one instruction", texts(number), INSTRUCTION
    yield "images", images(number), None
    yield "mixed", mixed(number), None


def measure(folder: Path, number: int, script: ScriptArguments) -> Iterator[dict[str, Any]]:
    """Compare ours with the strongest peer on every workload, and with all peers on the mixed one."""
    ways = ways_to_embed(folder, script.device)
    for name, items, instruction in workloads(number):
        compared = ways if name == "mixed" else {way: ways[way] for way in (OURS, STRONGEST)}
        for encode in compared.values():
            encode(items[:WARM_UP], instruction)
        found = alternate(
            {way: partial(encode, items, instruction) for way, encode in compared.items()}, script.rounds
        )
        seconds = ", ".join(f"{way} {found.median(way):.2f} s" for way in compared)
        print(f"{folder.name}, {name}: {seconds}", file=sys.stderr, flush=True)
        for peer in list(compared)[1:]:
            yield {
                "model": folder.name,
                "items": name,
                "number": number,
                "peer": peer,
                "times as fast": round(found.ratio(peer, OURS), 3),
                "largest difference": float(np.abs(found.results[peer] - found.results[OURS]).max()),
            }


def main(script: ScriptArguments) -> None:
    torch.set_num_threads(script.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in script.models:
            number = script.items if name == TINY else script.tiny_model_items
            rows += measure(checkpoint(name, Path(folder)), number, script)
    settings = asdict(script)
    write(settings.pop("output"), settings, rows)
    print(table(rows))


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
