"""Peak memory of a stage-2 step by batch size and by the budget for kept graphs.

    python benchmarks/memory.py --batch_sizes 128 512 2048 --budgets 0 0.25 1

Each figure is that of a process of its own, which takes the same rows in one batch or in several: the peak of its
resident memory, and how far it rose in the steps above what it was before. The model and the tensors of all batches,
pixels included, are there before; gradients, graphs, embeddings, and the matrix of the loss come in the steps. So
does what the allocator cannot give back between micro-batches of unlike shapes, which grows with their number: hence
equal rows. Writes benchmarks/results/memory.json. Linux only.
"""

import ctypes
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import result_files
import torch
from trl import TrlParser

from unime import load_model
from unime.openmoji.dataset import openmoji_rows
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


ROOT = Path(__file__).resolve().parents[1]


@dataclass
class ScriptArguments:
    """What to measure."""

    model: str = field(default=str(ROOT / "checkpoints/unime-tiny"), metadata={"help": "Checkpoint or backbone."})
    batch_sizes: list[int] = field(default_factory=lambda: [128, 512, 2048], metadata={"help": "Rows of a batch."})
    rows: int = field(default=2048, metadata={"help": "Rows that all together are taken, in steps of a batch each."})
    budgets: list[float] = field(default_factory=lambda: [0, 0.25, 1], metadata={"help": "Gigabytes for kept graphs."})
    micro_batch_tokens: int = field(default=1024, metadata={"help": "Token budget of one forward pass."})
    output: str = field(default=str(ROOT / "benchmarks/results/memory.json"), metadata={"help": "Where to write."})
    only: bool = field(default=False, metadata={"help": "Measure the one batch size and budget in this process."})


def peak(script: ScriptArguments, batch_size: int, budget: float) -> dict[str, float]:
    """Return the peak of resident memory, its rise in the steps, and what of a batch is in memory before, in MB."""
    torch.set_num_threads(1)
    model, processor = load_model(script.model, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        args = ContrastiveConfig(
            folder,
            per_device_train_batch_size=batch_size,
            micro_batch_tokens=script.micro_batch_tokens,
            graph_cache_gb=budget,
            max_steps=1,
            optim="sgd",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        dataset = openmoji_rows("validation", script.rows)
        trainer = ContrastiveTrainer(model, args, train_dataset=dataset, processing_class=processor)
        starts = range(0, script.rows, batch_size)
        batches = [trainer.data_collator(list(dataset.select(range(start, start + batch_size)))) for start in starts]
        # Give back what preparing the batch took, else the step would seem to need nothing while it uses that up.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
        before = psutil.Process().memory_info().rss
        for batch in batches:
            trainer.compute_loss(model.train(), batch).backward()
            model.zero_grad(set_to_none=False)
    status = Path("/proc/self/status").read_text().splitlines()
    highest = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    tensors = [tensor for tensors in batches[0]["micro_batches"] for tensor in tensors.values()]
    held = sum(tensor.nbytes for tensor in tensors)
    return {"peak": highest / 1e6, "rise": (highest - before) / 1e6, "batch": held / 1e6}


def in_a_process_of_its_own(script: ScriptArguments, batch_size: int, budget: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--model", script.model, "--only", "true"]
    command += ["--batch_sizes", str(batch_size), "--budgets", str(budget)]
    command += ["--micro_batch_tokens", str(script.micro_batch_tokens), "--rows", str(script.rows)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"batch {batch_size} with {budget} GB failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(script: ScriptArguments) -> None:
    if script.only:
        print(json.dumps(peak(script, script.batch_sizes[0], script.budgets[0])))
        return
    found: list[dict[str, Any]] = []
    for budget in script.budgets:
        smallest: dict[str, float] = {}
        for batch_size in script.batch_sizes:
            measured = in_a_process_of_its_own(script, batch_size, budget)
            smallest = smallest or measured
            found.append(
                {
                    "budget, GB": budget,
                    "batch": batch_size,
                    "peak, MB": round(measured["peak"]),
                    "of that of the smallest batch": round(measured["peak"] / smallest["peak"], 3),
                    "rise in the steps, MB": round(measured["rise"]),
                    "of that rise": round(measured["rise"] / smallest["rise"], 3),
                    "tensors of the batch, MB": round(measured["batch"]),
                }
            )
    print(result_files.table(found))
    settings = {"model": Path(script.model).name, "rows": script.rows, "dtype": "float32"}
    settings["micro-batch tokens"] = script.micro_batch_tokens
    result_files.write(script.output, settings, found)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
