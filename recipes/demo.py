"""Demo: turn the committed tiny backbone into an embedder, train CLIP for the same time, and compare them.

    python recipes/demo.py

Runs the commands of recipes/README.md one after the other and writes `runs/demo/`.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import torch
from launch import ROOT, launch


def training_seconds(folder: Path) -> float:
    """Return the wall time of a finished training."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return next(entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "demo", help="output folder; replaced if it exists"
    )
    parser.add_argument("--size", type=int, default=300, help="candidates of the scene tasks in the evaluation")
    parser.add_argument("--stage1-steps", default="80", help="training steps of stage 1")
    parser.add_argument("--stage2-steps", default="180", help="training steps of stage 2")
    options = parser.parse_args()
    output = options.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    start = time.monotonic()
    stage1, stage2, clip = output / "stage1", output / "stage2", output / "clip"
    # A CPU without AVX-512 multiplies bfloat16 matrices ten times more slowly than float32 ones.
    fast_bf16 = torch.accelerator.is_available() or "AVX512" in torch.backends.cpu.get_cpu_capability()
    precision = [] if fast_bf16 else ["--bf16", "false"]
    launch("recipes/stage1.py", "--config", "recipes/tiny/stage1.yaml", "--output_dir", str(stage1),
        "--max_steps", options.stage1_steps, *precision)  # fmt: skip
    launch("recipes/stage2.py", "--config", "recipes/tiny/stage2.yaml", "--output_dir", str(stage2),
        "--model_name_or_path", str(stage1), "--max_steps", options.stage2_steps, *precision)  # fmt: skip
    seconds = training_seconds(stage1) + training_seconds(stage2)
    launch("recipes/tiny/clip.py", "--config", "recipes/tiny/clip.yaml", "--output_dir", str(clip),
        "--seconds", f"{seconds:.0f}", *precision)  # fmt: skip
    print(f"\nTrained in {(time.monotonic() - start) / 60:.1f} minutes.", flush=True)
    launch("-m", "unime.eval", "--output", str(output), "--size", str(options.size),
        "--highlight", "Stage 2", "--models",
        "Before=checkpoints/tiny-backbone", f"Stage 1={stage1}", f"Stage 2={stage2}", f"CLIP={clip}")  # fmt: skip
    print(f"The trained checkpoint is in {stage2}.")


if __name__ == "__main__":
    main()
