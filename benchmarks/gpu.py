"""Speed and memory on one GPU at real model sizes: `encode` and steps of stage 2, beside sentence-transformers.

    python benchmarks/gpu.py                                     # at most 8 minutes on a card of 80 GB
    python benchmarks/gpu.py --models qwen2-vl-2b --minutes 4
    python benchmarks/gpu.py --models unime-tiny --device cpu    # what the tests run

The weights are random and nothing is downloaded; a 7B model takes 16 GB of the folder for temporary files (`TMPDIR`).

- *encode*: texts, images (336 x 336 pixels), and both in turn. The time includes the preparation of the items.
- *step*: forward, loss, backward and AdamW step of a batch of captions and images, LoRA as in the recipes, over bf16
  or 4-bit weights; without the preparation of the batch. sentence-transformers' `CachedMultipleNegativesRankingLoss`
  embeds 32 items at a time.
- *gradients*: difference between the gradients of gradient caching and of one graph of the whole batch, in float32.
- *TFLOP/s* counts the useful operations of linear layers: no padding, no attention scores, no second forward pass.
  *utilization* divides it by the card's dense bf16 rate.
- *difference*: the largest one of embeddings from those of sentence-transformers, the one of the loss, or the one of
  the gradients, relative to their norm.

A case that fails gets a row with the reason. Writes benchmarks/results/gpu-CARD.json.
"""

import re
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_cases import BASELINE, OURS, Case, Sizes, measure
from isolated_cases import run_cases
from models import TINY
from result_files import table, write
from trl import TrlParser


ROOT = Path(__file__).resolve().parents[1]
FLASH = "flash_attention_2"
LIBRARIES = ("peft", "accelerate", "bitsandbytes")
COLUMNS = ("model", "work", "library", "weights", "attention", "settings", "items/s", "tokens/s", "TFLOP/s")
COLUMNS += ("utilization", "peak, GB", "speedup", "difference", "reason")
# Dense bf16 tensor-core rates with float32 accumulation, in TFLOP/s, from NVIDIA's data sheets.
BF16_TFLOPS = {
    "A10": 125,
    "A100": 312,
    "A10G": 70,
    "A40": 150,
    "B200": 2250,
    "H100": 989,
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "H200": 989,
    "L4": 121,
    "L40S": 362,
    "RTX 3090": 71,
    "RTX 4090": 165,
    "RTX A6000": 155,
}


@dataclass
class ScriptArguments(Sizes):
    """Settings of the benchmark."""

    models: list[str] = field(
        default_factory=lambda: ["qwen2-vl-2b", "qwen2-vl-7b"],
        metadata={"help": f"Random models of a real size, or {TINY}."},
    )
    case_seconds: float = field(default=90, metadata={"help": "Time limit of a case."})
    minutes: float = field(default=8, metadata={"help": "Time limit of all cases; the last ones may not run."})
    output: str | None = field(default=None, metadata={"help": "Output file. By default named after the card."})


def cases_of(script: ScriptArguments) -> list[Case]:
    """Return the cases, the most important ones first."""
    cases = [Case(script.models[0], "gradients", "float32")]
    checkpointing, packed = {"activation_checkpointing": True}, {"packed": True}
    for model in script.models:
        cases += [
            Case(model, "encode", beside_baseline=True),
            Case(model, "step", "4-bit", settings=checkpointing, beside_baseline=True),
            Case(model, "step", settings=checkpointing, beside_baseline=True),
        ]
    for model in script.models:
        cases += [Case(model, "encode", attention=FLASH, settings=layout) for layout in (packed, {})]
        for weights in ("4-bit", "bf16"):
            cached = {"graph_cache_gb": script.graph_cache_gb}
            cases += [
                Case(model, "step", weights, settings=checkpointing | cached),
                Case(model, "step", weights),
                Case(model, "step", weights, settings=cached),
                Case(model, "step", weights, FLASH, checkpointing | packed),
                Case(model, "step", weights, FLASH, checkpointing),
            ]
    return cases


def add_ratios(rows: list[dict[str, Any]], tflops: float | None) -> None:
    """Add to each row its utilization, and its speedup over the fastest comparable row of sentence-transformers."""
    for row in rows:
        if row.get("TFLOP/s") and tflops:
            row["utilization"] = row["TFLOP/s"] / tflops
        rates = [
            other["items/s"]
            for other in rows
            if other["library"] == BASELINE
            and "items/s" in other
            and all(other[name] == row[name] for name in ("model", "work", "weights"))
        ]
        if rates and row["library"] == OURS and "items/s" in row:
            row["speedup"] = row["items/s"] / max(rates)


def bf16_tflops(card: str) -> float | None:
    """Return the bf16 rate of a card in TFLOP/s, or None if it is not in the table."""
    words = set(card.replace("-", " ").split())
    names = [name for name in BF16_TFLOPS if set(name.split()) <= words]
    return BF16_TFLOPS[max(names, key=len)] if names else None


def main(script: ScriptArguments) -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = run_cases(partial(measure, script, folder), cases_of(script), script.case_seconds, 60 * script.minutes)
        for case, measured, reason in run:
            rows += measured
            if reason:
                rows.append(case.row(reason=reason))
            for row in rows[-len(measured) - bool(reason) :]:
                print(row, file=sys.stderr, flush=True)
    card = torch.cuda.get_device_name() if script.device == "cuda" else "CPU"
    tflops = bf16_tflops(card)
    add_ratios(rows, tflops)
    settings = asdict(script) | {"card": card, "bf16 TFLOP/s of the card": tflops}
    name = re.sub(r"[^a-z0-9]+", "-", card.lower())
    write(settings.pop("output") or ROOT / "benchmarks" / "results" / f"gpu-{name}.json", settings, rows, *LIBRARIES)
    print(table([{column: row.get(column, "") for column in COLUMNS} for row in rows]))


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
