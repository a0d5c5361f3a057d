"""The demo: turn the committed tiny backbone into an embedder, train a CLIP for as long, and compare them.

    python recipes/demo.py

Runs the very commands of the README, one after the other, and writes `runs/demo/`.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from launch import ROOT, launch


def seconds_of(folder: Path) -> float:
    """Wall time of a finished training."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return next(entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "demo", help="made anew")
    parser.add_argument("--size", type=int, default=300, help="candidates of the scene tasks")
    parser.add_argument("--stage1_steps", default="80")
    parser.add_argument("--stage2_steps", default="180")
    options = parser.parse_args()
    output = options.output_dir.resolve()
    shutil.rmtree(output, ignore_errors=True)
    start = time.monotonic()
    stage1, stage2, clip = output / "stage1", output / "stage2", output / "clip"
    launch("recipes/stage1.py", "--config", "recipes/tiny/stage1.yaml", "--output_dir", str(stage1),
        "--max_steps", options.stage1_steps)  # fmt: skip
    launch("recipes/stage2.py", "--config", "recipes/tiny/stage2.yaml", "--output_dir", str(stage2),
        "--model_name_or_path", str(stage1), "--max_steps", options.stage2_steps)  # fmt: skip
    seconds = seconds_of(stage1) + seconds_of(stage2)
    launch("recipes/tiny/clip.py", "--config", "recipes/tiny/clip.yaml", "--output_dir", str(clip),
        "--seconds", f"{seconds:.0f}")  # fmt: skip
    print(f"\nTrained in {(time.monotonic() - start) / 60:.1f} minutes.", flush=True)
    launch("-m", "unime.eval", "--output_dir", str(output), "--size", str(options.size),
        "--highlight", "Stage 2", "--models",
        "Before=checkpoints/tiny-backbone", f"Stage 1={stage1}", f"Stage 2={stage2}", f"CLIP={clip}")  # fmt: skip
    print(f"The checkpoint is in {stage2}.")


if __name__ == "__main__":
    main()
