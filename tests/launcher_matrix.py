"""The launcher matrix: both stages under every launcher, with full weights and adapters, in every precision.

    python tests/launcher_matrix.py [WORD...]

A cell runs the recipes' own scripts with a tiny backbone and AdamW, in two processes whose batches differ in kind and
number of micro-batches. [`Matrix.run`] trains, kills and resumes it, and compares it with one process that has the
joined batch.
"""

import json
import os
import platform
import signal
import sys
import tempfile
import time
from functools import cache
from importlib.metadata import version
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from forked_workers import ROOT, Workers
from PIL import Image
from safetensors.torch import load_file
from tiny_models import make_tiny_model
from torch import Tensor

from unime import UniMEModel, load_model
from unime.trainers import last_complete_checkpoint, load_adapter


LAUNCHERS = {
    "1 process": None,
    "DDP": "ddp",
    "FSDP2": "fsdp2",
    "ZeRO-2": "zero2",
    "ZeRO-3": "zero3",
}  # names of files in recipes/accelerate
RESULTS = ROOT / "runs" / "launcher-matrix.json"
TUNINGS = ("full", "LoRA", "QLoRA")
PRECISIONS = ("fp32", "bf16", "fp16")
STAGES = ("stage1", "stage2")
STEPS = 3
JOINED_BATCH = 12
MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Greatest differences from one process with the joined batch: of a loss, and of an element of an embedding.
# Two processes pad their micro-batches differently, FSDP2 sums gradients in half precision, and DeepSpeed also rounds
# the weights: this changes the rounding.
TOLERANCES = {"fp32": (1e-5, 1e-5), "bf16": (0.05, 0.02), "fp16": (0.005, 0.002)}
MIN_CHANGE = 0.05  # of an element of an embedding by training
IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8))
ITEMS = ["text number 3", IMAGE, {"image": IMAGE, "text": "Is it a number?"}]


RESULT_KEYS = ("loss", "difference")
PAGE = """# Launcher matrix

Every launcher of `recipes/accelerate` with full fine-tuning, LoRA and QLoRA, in every precision, in both stages:

{table}

`(p)`: with a patched launcher. On a CPU, accelerate ignores FSDP2 and fp16, and DeepSpeed may refuse fp16. The
patches only change these checks and the first loss scale of fp16 (256, with which no step overflows); everything
after accelerate's `Accelerator` runs unpatched.

"Passed" means that `recipes/stage1.py` and `recipes/stage2.py` did all of this with a tiny LLaVA and AdamW, for
{steps} steps with a joined batch of {batch} rows. The processes have different numbers of micro-batches, and in
stage 2 the batches of one have texts only and those of the other images too.

- They train: losses, losses of evaluations, and embeddings after training equal those of one process with the joined
  batch.
- They end with the best model of the evaluations, which is not the last one.
- They save: adapters are merged, and the checkpoint loads with `load_model` and gives the embeddings of the adapter.
- They resume: all processes are killed (SIGKILL) while they save a checkpoint. The same command then ends with the
  same losses and the same weights as the undisturbed run, bit by bit.

The greatest differences from one process, where 0.18 is the typical size of an element of an embedding:

| precision | loss | element of an embedding | limits |
| --- | --- | --- | --- |
{differences}

In half precision these are rounding: FSDP2 sums gradients in it, and DeepSpeed also rounds the weights to it.

Full fine-tuning keeps the weights in float32 and computes in half precision. LoRA and QLoRA train over weights in
half precision, as the recipes do. Full fine-tuning of 4-bit weights does not exist: they cannot be trained.

Two processes on a CPU (gloo) cannot show what depends on GPUs: NCCL, flash attention, the kernels of bitsandbytes
for GPUs, offloading, speed and memory. We have not run these.

The table is written by a command; DDP, FSDP2 and ZeRO run in two processes started by torchrun:

<!-- needs: an hour -->
```bash
make test-matrix
```

`make test-slow` runs a part of it in which every pair of values occurs. Versions: Python {python}, {versions}.
"""


class Cell(NamedTuple):
    """One combination of the matrix; the launcher is a key of `LAUNCHERS`."""

    launcher: str
    tuning: str
    precision: str
    stage: str

    def __str__(self) -> str:
        return "-".join(self).replace(" ", "-")


CELLS = tuple(Cell(*values) for values in product(LAUNCHERS, TUNINGS, PRECISIONS, STAGES))


def pairs(cell: Cell) -> set[tuple[str, str]]:
    """Return the pairs of values that a cell tests together."""
    return set(combinations(cell, 2))


def covering_cells() -> list[Cell]:
    """Return few cells that test every pair of values of two axes at least once."""
    chosen: list[Cell] = []
    left = set.union(*map(pairs, CELLS))
    while left:
        # A cell in one process is cheap, and the others need it as their reference.
        chosen.append(max(CELLS, key=lambda cell: len(pairs(cell) & left)))
        left -= pairs(chosen[-1])
    return chosen


class Matrix:
    """Runs cells, and keeps what they share: backbone, rows, and the runs in one process.

    Args:
        folder (`Path`): Folder for all files; it must not exist.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.workers = Workers(folder / "workers")
        self.backbone = make_tiny_model("llava", folder / "backbone")
        self.rows = {"stage1": write_texts(folder), "stage2": write_pairs(folder)}
        self.one_process = cache(self._one_process)

    def __enter__(self) -> "Matrix":
        return self

    def __exit__(self, *exception: object) -> None:
        self.workers.__exit__(*exception)

    def run(self, cell: Cell) -> tuple[float, float]:
        """Run a cell, and return how far its losses and embeddings are from those of one process.

        Raises:
            AssertionError: A run failed, or its result is not what it should be.
        """
        expected = self.one_process(cell._replace(launcher="1 process"))
        trained = expected if cell.launcher == "1 process" else self._train(cell, self.folder / str(cell))
        loss_difference = float(np.abs(np.subtract(losses(trained), losses(expected))).max())
        difference = float(np.abs(embed(trained) - embed(expected)).max())
        loss_tolerance, tolerance = TOLERANCES[cell.precision]
        assert loss_difference <= loss_tolerance, f"losses {losses(trained)}, in one process {losses(expected)}"
        assert difference <= tolerance, f"embeddings differ by {difference:.1e} from those of one process"
        self._check_resumed(cell, trained)
        return loss_difference, difference

    def _one_process(self, cell: Cell) -> Path:
        folder = self._train(cell, self.folder / str(cell))
        change = np.abs(embed(folder) - embed(self.backbone)).max()
        assert change > MIN_CHANGE, f"training changed the embeddings by {change:.1e} only"
        return folder

    def _train(self, cell: Cell, output: Path) -> Path:
        code, log = self.workers.run(*self._command(cell, output))
        assert code == 0, log
        # Evaluations follow steps 2 and 3, and the highest loss counts as the best: the model is not the last one.
        state = training_state(output)
        assert state["global_step"] == STEPS and state["best_global_step"] == STEPS - 1, state
        if cell.tuning != "full":  # the merged checkpoint gives the embeddings of the adapter
            difference = np.abs(embed(output) - embed(self.backbone, output / "adapter")).max()
            assert difference <= TOLERANCES[cell.precision][1], f"merging changed the embeddings by {difference:.1e}"
        return output

    def _check_resumed(self, cell: Cell, trained: Path) -> None:
        """Kill all processes while they save a checkpoint, run the same command again, and compare the results."""
        killed = self.folder / f"{cell}-killed"
        with self.workers.start(*self._command(cell, killed)) as pids:
            wait_for(killed / f"checkpoint-{STEPS - 1}", pids)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        code, log = self.workers.result()
        assert code == -signal.SIGKILL, log
        assert last_complete_checkpoint(killed) in [str(killed / f"checkpoint-{step}") for step in (1, 2)]
        self._train(cell, killed)
        assert losses(killed) == losses(trained), "the resumed run has other losses"
        resumed = weights(killed)
        different = [name for name, weight in weights(trained).items() if not torch.equal(resumed[name], weight)]
        assert not different, f"the resumed run has other weights: {different}"

    def _command(self, cell: Cell, output: Path) -> tuple:
        processes = 1 if cell.launcher == "1 process" else 2
        train, evaluation = self.rows[cell.stage]
        options = {
            "model_name_or_path": self.backbone,
            "dataset": train,
            "eval_dataset": evaluation,
            "output_dir": output,
            "per_device_train_batch_size": JOINED_BATCH // processes,
            "per_device_eval_batch_size": JOINED_BATCH // processes,
            "train_sampling_strategy": "sequential",
            "micro_batch_tokens": 200,
            "max_steps": STEPS,
            "learning_rate": 0.001 if cell.tuning == "full" else 0.005,
            "lr_scheduler_type": "constant",
            "adam_epsilon": 1e-4,  # rounding then never decides the direction of a step
            "save_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "eval_delay": STEPS - 1,
            "load_best_model_at_end": "true",
            "metric_for_best_model": "loss",
            "greater_is_better": "true",
            "logging_steps": 1,
            "use_cpu": "true",
            "report_to": "none",
            "disable_tqdm": "true",
            # Adapters are trained over half-precision weights, as in the recipes; full weights are kept in float32.
            "dtype": "float32" if cell.tuning == "full" else DTYPES[cell.precision],
        }
        if cell.precision != "fp32":
            options[cell.precision] = "true"
        if cell.stage == "stage2":
            options |= {"num_hard_negatives": 3, "false_negative_margin": 1.0, "symmetric": "true", "temperature": 0.2}
        if cell.tuning != "full":
            options |= {"use_peft": "true", "lora_task_type": "FEATURE_EXTRACTION", "lora_r": 4, "lora_alpha": 8}
            options |= {"lora_dropout": 0.0, "activation_checkpointing": "true"}
            targets = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
            options["lora_target_modules"] = targets if cell.stage == "stage1" else "all-linear"
        if cell.tuning == "QLoRA":
            options["load_in_4bit"] = "true"
        arguments = [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]
        script = f"recipes/{cell.stage}.py"
        return LAUNCHERS[cell.launcher], MIXED_PRECISION[cell.precision], script, *arguments


def write_texts(folder: Path) -> tuple[Path, Path]:
    """Write 24 texts with teacher embeddings; the texts of process 1 are longer than those of process 0."""
    teacher = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"text": f"text {i}" + " and so on" * (i // 6 % 2 * 4), "teacher": teacher[i]} for i in range(24)]
    return write_rows(folder / "texts.jsonl", rows), write_rows(folder / "evaluation-texts.jsonl", rows[:JOINED_BATCH])


def write_pairs(folder: Path) -> tuple[Path, Path]:
    """Write 24 rows of texts and images; the batches of process 0 have no images."""
    rows = []
    for i in range(24):
        Image.new("RGB", (24, 24), (10 * i, 255 - 10 * i, 80)).save(folder / f"{i}.png")
        texts_only = i // 6 % 2 == 0
        query = {"text": f"question {i}" + " long" * (i % 5)} if texts_only else {"image": f"{i}.png"}
        # "shared" is in the batches of both processes, as a positive and as a negative; labels are shared too.
        negatives = [{"text": "shared"}, {"image": f"{i}.png", "text": "no"}] if i % 6 == 5 and not texts_only else []
        row = {"query": query, "positive": {"text": "shared" if i % 6 == 0 else f"answer {i}"}, "negatives": negatives}
        rows.append(row | {"label": "even" if i % 6 in (2, 4) else None})
    return write_rows(folder / "pairs.jsonl", rows), write_rows(folder / "evaluation-pairs.jsonl", rows[:JOINED_BATCH])


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def wait_for(folder: Path, pids: list[int]) -> None:
    """Wait until a process of a training run makes a folder, or ends."""
    while not folder.exists() and all(psutil.pid_exists(pid) for pid in pids):
        time.sleep(0.001)


def training_state(output: Path) -> dict[str, Any]:
    """Return the `trainer_state.json` of a training run."""
    return json.loads((output / "trainer_state.json").read_text())


def losses(output: Path) -> list[float]:
    """Return the losses of a training run and of its evaluations."""
    history = training_state(output)["log_history"]
    return [entry[name] for entry in history for name in ("loss", "eval_loss") if name in entry]


def weights(output: Path) -> dict[str, Tensor]:
    """Return the weights that a training run saved."""
    adapter = output / "adapter" / "adapter_model.safetensors"
    return load_file(output / "model.safetensors") | (load_file(adapter) if adapter.exists() else {})


@cache
def embed(checkpoint: Path, adapter: Path | None = None) -> np.ndarray:
    """Return the embeddings of the items by a checkpoint, with an optional adapter."""
    model, processor = load_model(str(checkpoint), dtype="float32")
    embedder: UniMEModel = model if adapter is None else load_adapter(model, adapter).get_base_model()
    return embedder.encode(ITEMS, processor)


def is_patched(cell: Cell) -> bool:
    """Return whether the launcher accepts the cell on a CPU only with the patches of `forked_workers.py`."""
    return cell.launcher == "FSDP2" or cell.precision == "fp16"


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return the page of the documentation that shows the results."""

    def outcome(cell: Cell) -> str:
        result = results.get(str(cell), {})
        if "difference" not in result:
            return "failed" if result else "not run"
        return "passed (p)" if is_patched(cell) else "passed"

    columns = [*product(STAGES, PRECISIONS)]
    header = ["launcher", "trained", *(f"{stage.replace('stage', 'stage ')}, {name}" for stage, name in columns)]
    rows = [
        [launcher, tuning, *(outcome(Cell(launcher, tuning, name, stage)) for stage, name in columns)]
        for launcher, tuning in product(LAUNCHERS, TUNINGS)
    ]
    lines = [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]
    packages = ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes")
    differences = []
    for precision in PRECISIONS:
        measured = [results.get(str(cell), {}) for cell in CELLS if cell.precision == precision]
        loss, embedding = (max((result.get(key, 0.0) for result in measured), default=0.0) for key in RESULT_KEYS)
        limits = " and ".join(f"{limit:g}" for limit in TOLERANCES[precision])
        differences.append(f"| {precision} | {loss:.1e} | {embedding:.1e} | {limits} |")
    return PAGE.format(
        table="\n".join(lines),
        differences="\n".join(differences),
        versions=", ".join(f"{name} {version(name)}" for name in packages),
        python=platform.python_version(),
        steps=STEPS,
        batch=JOINED_BATCH,
    )


def main(names: list[str]) -> None:
    """Run the cells whose names contain one of the given words and that have no result yet, and write the page."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    every = dict.fromkeys([*covering_cells(), *CELLS])  # those that show most come first
    cells = [cell for cell in every if not names or any(name in str(cell) for name in names)]
    with tempfile.TemporaryDirectory() as folder, Matrix(Path(folder) / "matrix") as matrix:
        for cell in cells:
            if "difference" in results.get(str(cell), {}):
                continue
            started = time.monotonic()
            try:
                result: dict[str, Any] = dict(zip(RESULT_KEYS, matrix.run(cell), strict=True))
            except Exception as error:
                result = {"error": str(error)}
            results[str(cell)] = result
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{cell}: {result} ({time.monotonic() - started:.0f} s)", flush=True)
    (ROOT / "docs" / "launchers.md").write_text(page(results))
    failed = [str(cell) for cell in cells if "difference" not in results[str(cell)]]
    if failed:
        sys.exit(f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
