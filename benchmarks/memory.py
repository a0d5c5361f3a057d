"""Peak memory of a stage-2 step by batch size: with gradient caching, and with all graphs in memory.

    python benchmarks/memory.py --batch_sizes 64 256 1024

Each figure is that of a process of its own: what its resident memory reached above what the loaded model took.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

import psutil
import torch
from trl import TrlParser

from unime import load_model
from unime.data.world import rows
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


@dataclass
class ScriptArguments:
    """What to measure."""

    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Checkpoint or backbone."})
    batch_sizes: list[int] = field(default_factory=lambda: [64, 256, 1024], metadata={"help": "Rows of a batch."})
    micro_batch_tokens: int = field(default=1024, metadata={"help": "Token budget of one forward pass."})
    only: str | None = field(default=None, metadata={"help": "'BATCH,KEPT_GRAPHS': measure this in this process."})


def peak(model_name: str, batch_size: int, kept_graphs: int, micro_batch_tokens: int) -> float:
    """Take one step and return the growth of the peak resident memory, in MB."""
    torch.set_num_threads(1)
    model, processor = load_model(model_name, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        args = ContrastiveConfig(
            folder,
            per_device_train_batch_size=batch_size,
            micro_batch_tokens=micro_batch_tokens,
            kept_graphs=kept_graphs,
            max_steps=1,
            optim="sgd",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        dataset = rows("validation", batch_size)
        trainer = ContrastiveTrainer(model, args, train_dataset=dataset, processing_class=processor)
        batch = trainer.data_collator([dataset[number] for number in range(batch_size)])  # its pixels do not count
        before = psutil.Process().memory_info().rss
        trainer.compute_loss(model.train(), batch).backward()
    # Linux keeps the highest resident size of a process, in kB.
    with open("/proc/self/status") as status:
        highest = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return highest / 1e3 - before / 1e6


def main(script: ScriptArguments) -> None:
    if script.only is not None:
        print(json.dumps(peak(script.model, *map(int, script.only.split(",")), script.micro_batch_tokens)))
        return
    print("| batch | with gradient caching, MB | all graphs in memory, MB |\n|---|---|---|")
    for batch_size in script.batch_sizes:
        found = []
        for kept_graphs in (1, 10**6):
            command = [sys.executable, __file__, "--model", script.model, "--only", f"{batch_size},{kept_graphs}"]
            command += ["--micro_batch_tokens", str(script.micro_batch_tokens)]
            done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"| {batch_size} | {found[0]:.0f} | {found[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
