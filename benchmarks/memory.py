"""Peak memory of a stage-2 step by batch size and by the budget for kept graphs.

    python benchmarks/memory.py --batch_sizes 128 512 2048 --budgets 0 0.25 1

Each figure is that of a process of its own: what its resident memory reached in a step above what it was before. The
model and the tensors of the batch, pixels included, are there before; gradients, graphs, embeddings, and the matrix of
the loss come in the step. Writes benchmarks/results/memory.json. Linux only.
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
import record
import torch
from trl import TrlParser

from unime import load_model
from unime.data.world import rows
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


ROOT = Path(__file__).resolve().parents[1]


@dataclass
class ScriptArguments:
    """What to measure."""

    model: str = field(default=str(ROOT / "checkpoints/unime-tiny"), metadata={"help": "Checkpoint or backbone."})
    batch_sizes: list[int] = field(default_factory=lambda: [128, 512, 2048], metadata={"help": "Rows of a batch."})
    budgets: list[float] = field(default_factory=lambda: [0, 0.25, 1], metadata={"help": "Gigabytes for kept graphs."})
    micro_batch_tokens: int = field(default=1024, metadata={"help": "Token budget of one forward pass."})
    output: str = field(default=str(ROOT / "benchmarks/results/memory.json"), metadata={"help": "Where to write."})
    only: bool = field(default=False, metadata={"help": "Measure the one batch size and budget in this process."})


def peak(model_name: str, batch_size: int, budget: float, micro_batch_tokens: int) -> dict[str, float]:
    """Take one step and return the growth of the peak resident memory, and what is in memory before, in MB."""
    torch.set_num_threads(1)
    model, processor = load_model(model_name, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        args = ContrastiveConfig(
            folder,
            per_device_train_batch_size=batch_size,
            micro_batch_tokens=micro_batch_tokens,
            graph_memory=budget,
            max_steps=1,
            optim="sgd",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        dataset = rows("validation", batch_size)
        trainer = ContrastiveTrainer(model, args, train_dataset=dataset, processing_class=processor)
        batch = trainer.data_collator([dataset[number] for number in range(batch_size)])
        # Give back what preparing the batch took, else the step would seem to need nothing while it uses that up.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
        before = psutil.Process().memory_info().rss
        trainer.compute_loss(model.train(), batch).backward()
    status = Path("/proc/self/status").read_text().splitlines()
    highest = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    tensors = [tensor for tensors in batch["micro_batches"] for tensor in tensors.values()]
    return {"step": (highest - before) / 1e6, "batch": sum(tensor.nbytes for tensor in tensors) / 1e6}


def in_a_process_of_its_own(script: ScriptArguments, batch_size: int, budget: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--model", script.model, "--only", "true"]
    command += ["--batch_sizes", str(batch_size), "--budgets", str(budget)]
    command += ["--micro_batch_tokens", str(script.micro_batch_tokens)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"batch {batch_size} with {budget} GB failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(script: ScriptArguments) -> None:
    if script.only:
        print(json.dumps(peak(script.model, script.batch_sizes[0], script.budgets[0], script.micro_batch_tokens)))
        return
    found: list[dict[str, Any]] = []
    for budget in script.budgets:
        smallest = None
        for batch_size in script.batch_sizes:
            measured = in_a_process_of_its_own(script, batch_size, budget)
            smallest = smallest or measured["step"]
            found.append(
                {
                    "budget, GB": budget,
                    "batch": batch_size,
                    "peak of the step, MB": round(measured["step"]),
                    "of that of the smallest batch": round(measured["step"] / smallest, 3),
                    "tensors of the batch, MB": round(measured["batch"]),
                }
            )
    print(record.table(found))
    settings = {"model": Path(script.model).name, "micro-batch tokens": script.micro_batch_tokens, "dtype": "float32"}
    record.write(script.output, settings, found)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
