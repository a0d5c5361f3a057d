"""Peak memory of a stage-2 step by batch size and by size of the graph cache.

    python benchmarks/memory.py --batch_sizes 16 128 --graph_cache_gb 0 0.5

Each row of the table comes from its own process, which trains on the same rows in one batch or in several: the peak of
the resident memory, and its increase during the steps. A row has a caption and an image of `image_size` pixels. The
model and the tensors of all batches are in memory before. The steps add gradients, graphs, embeddings, the matrix of
the loss, and copies of the inputs, as if they went from host memory to a GPU. They also add memory that the allocator
cannot reuse between micro-batches of different shapes, which grows with their number; hence the number of rows is the
same in every process. Afterwards one more batch is trained on while the bytes of its tensors are counted, which the
allocator does not affect. Writes benchmarks/results/memory.json. Linux only.
"""

import ctypes
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import psutil
import result_files
import torch
from torch import Tensor
from trl import TrlParser

from unime import load_model
from unime.openmoji.dataset import openmoji_rows
from unime.trainers import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.automatic_graph_cache import HostMemory


ROOT = Path(__file__).resolve().parents[1]


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    model: str = field(default="qwen2-vl-3m", metadata={"help": "Random model, or unime-tiny."})
    image_size: list[int] = field(default_factory=lambda: [640, 480], metadata={"help": "Width and height in pixels."})
    batch_sizes: list[int] = field(default_factory=lambda: [16, 128], metadata={"help": "Rows per batch."})
    rows: int = field(default=128, metadata={"help": "Rows in total, in steps of one batch each."})
    graph_cache_gb: list[float] = field(
        default_factory=lambda: [0, 0.5], metadata={"help": "Sizes of the graph cache in GB."}
    )
    micro_batch_tokens: int = field(default=4096, metadata={"help": "Token budget of one forward pass."})
    output: str = field(default=str(ROOT / "benchmarks/results/memory.json"), metadata={"help": "Output file."})
    only: bool = field(
        default=False, metadata={"help": "Internal: measure one batch size and cache size in this process."}
    )


class HostTensor(Tensor):
    """A tensor that `to` copies, as it does from host memory to a GPU."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a copy."""
        return self.as_subclass(Tensor).clone()


def rows_with_images(count: int, width: int, height: int) -> list[dict[str, Any]]:
    """Return rows with a caption and an OpenMoji scene of a size."""

    def enlarged(row: dict[str, Any]) -> dict[str, Any]:
        image = row["positive"]["image"].resize((width, height))
        return row | {"positive": row["positive"] | {"image": image}, "negatives": []}

    return list(map(enlarged, openmoji_rows("validation", count, tasks=["scene_t2i"])))


def peak_memory(script: ScriptArguments, batch_size: int, graph_cache_gb: float) -> dict[str, float]:
    """Return the peak resident memory, its increase, the peak of the tensors of a step and those of a batch, in MB."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, processor = load_model(str(models.checkpoint(script.model, Path(folder))), dtype="float32")
        args = ContrastiveConfig(
            folder,
            per_device_train_batch_size=batch_size,
            micro_batch_tokens=script.micro_batch_tokens,
            graph_cache_gb=graph_cache_gb,
            max_steps=1,
            optim="sgd",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        dataset = rows_with_images(script.rows, *script.image_size)
        trainer = ContrastiveTrainer(model, args, train_dataset=dataset, processing_class=processor)
        starts = range(0, script.rows, batch_size)
        batches = [trainer.data_collator(dataset[start : start + batch_size]) for start in starts]
        for batch in batches:
            batch["micro_batches"] = [
                {name: tensor.as_subclass(HostTensor) for name, tensor in tensors.items()}
                for tensors in batch["micro_batches"]
            ]
        # Return freed memory to the kernel; otherwise the steps could use it without an increase.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak resident size
        before = psutil.Process().memory_info().rss
        for batch in batches:
            trainer.compute_loss(model.train(), batch).backward()
            model.zero_grad(set_to_none=False)
        status = Path("/proc/self/status").read_text().splitlines()
        with HostMemory() as counted:
            trainer.compute_loss(model.train(), batches[0]).backward()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    tensors = [tensor for tensors in batches[0]["micro_batches"] for tensor in tensors.values()]
    batch_bytes = sum(tensor.nbytes for tensor in tensors)
    sizes = {"peak": peak, "increase": peak - before, "counted": counted.peak(), "batch": batch_bytes}
    return {name: size / 1e6 for name, size in sizes.items()}


def measure_in_subprocess(script: ScriptArguments, batch_size: int, graph_cache_gb: float) -> dict[str, float]:
    """Run [`peak_memory`] in a new process."""
    command = [sys.executable, __file__, "--model", script.model, "--only", "true"]
    command += ["--batch_sizes", str(batch_size), "--graph_cache_gb", str(graph_cache_gb)]
    command += ["--micro_batch_tokens", str(script.micro_batch_tokens), "--rows", str(script.rows)]
    command += ["--image_size", *map(str, script.image_size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"batch size {batch_size} with a graph cache of {graph_cache_gb} GB failed:\n{done.stderr[-3000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(script: ScriptArguments) -> None:
    if script.only:
        print(json.dumps(peak_memory(script, script.batch_sizes[0], script.graph_cache_gb[0])))
        return
    rows: list[dict[str, Any]] = []
    for graph_cache_gb in script.graph_cache_gb:
        smallest: dict[str, float] = {}
        for batch_size in script.batch_sizes:
            measured = measure_in_subprocess(script, batch_size, graph_cache_gb)
            smallest = smallest or measured
            rows.append(
                {
                    "graph cache, GB": graph_cache_gb,
                    "batch": batch_size,
                    "peak, MB": round(measured["peak"]),
                    "peak relative to the smallest batch": round(measured["peak"] / smallest["peak"], 3),
                    "increase during the steps, MB": round(measured["increase"]),
                    "increase relative to the smallest batch": round(measured["increase"] / smallest["increase"], 3),
                    "tensors of a step, MB": round(measured["counted"]),
                    "batch tensors, MB": round(measured["batch"]),
                }
            )
    print(result_files.table(rows))
    settings = {"model": script.model, "rows": script.rows, "image": "x".join(map(str, script.image_size))}
    settings |= {"dtype": "float32", "micro-batch tokens": script.micro_batch_tokens}
    result_files.write(script.output, settings, rows)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
