"""Demo: turn the committed tiny backbone into an embedder, train CLIP for the same time, and compare them.

    python recipes/demo.py            # make demo: sized for 20 CPU minutes, which two idle cores take half of
    python recipes/demo.py --quick    # make demo-quick: sized for 5 minutes on two cores; took 8 on slower ones

Runs the commands of recipes/README.md one after the other and writes `runs/demo/`. Before each it says how long it has
been running and how long the rest will take; the progress bars count the steps of the current one.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import torch
from launch import ROOT, launch


# Share of the time of each part: CLIP trains for as long as both stages, but without loading a teacher.
SHARES = {"stage 1": 0.12, "stage 2": 0.34, "CLIP": 0.42, "evaluation": 0.12}
# Minutes on two cores, steps of stage 1 and of stage 2, size of the evaluation. On a busy machine, a step of stage 1
# took about 2 CPU seconds, one of stage 2 about 4.
FULL, QUICK = (11, 60, 100, 300), (5, 12, 36, 100)


def training_seconds(folder: Path) -> float:
    """Return the wall time of a finished training."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return next(entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry)


def progress(part: str, elapsed: float, expected: float) -> str:
    """Return which part begins, and the time that is left.

    Args:
        part (`str`): Key of `SHARES`.
        elapsed (`float`): Minutes since the start.
        expected (`float`): Minutes that everything should take, until the first part shows how fast the machine is.
    """
    number = list(SHARES).index(part)
    done = sum(list(SHARES.values())[:number])
    left = elapsed * (1 - done) / done if done else expected
    return f"\n[{number + 1}/{len(SHARES)}] {part}: {elapsed:.1f} minutes so far, about {left:.0f} left"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "runs" / "demo", help="output folder; replaced if it exists"
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps and candidates")
    parser.add_argument("--size", type=int, help="candidates of the scene tasks in the evaluation")
    parser.add_argument("--stage1-steps", type=int, help="training steps of stage 1")
    parser.add_argument("--stage2-steps", type=int, help="training steps of stage 2")
    options = parser.parse_args()
    minutes, *defaults = QUICK if options.quick else FULL
    chosen = (options.stage1_steps, options.stage2_steps, options.size)
    stage1_steps, stage2_steps, size = (value or default for value, default in zip(chosen, defaults, strict=True))
    output = options.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    start = time.monotonic()

    def begin(part: str) -> None:
        print(progress(part, (time.monotonic() - start) / 60, minutes), flush=True)

    stage1, stage2, clip = output / "stage1", output / "stage2", output / "clip"
    # A CPU without AVX-512 multiplies bfloat16 matrices ten times more slowly than float32 ones.
    fast_bf16 = torch.accelerator.is_available() or "AVX512" in torch.backends.cpu.get_cpu_capability()
    precision = [] if fast_bf16 else ["--bf16", "false"]
    begin("stage 1")
    launch("recipes/stage1.py", "--config", "recipes/tiny/stage1.yaml", "--output_dir", str(stage1),
        "--max_steps", str(stage1_steps), *precision)  # fmt: skip
    begin("stage 2")
    # The hardest negatives are used in the last third, as in the recipe.
    launch("recipes/stage2.py", "--config", "recipes/tiny/stage2.yaml", "--output_dir", str(stage2),
        "--model_name_or_path", str(stage1), "--max_steps", str(stage2_steps),
        "--warmup_steps", str(stage2_steps // 9),
        "--hard_negative_warmup_steps", str(2 * stage2_steps // 3), *precision)  # fmt: skip
    seconds = training_seconds(stage1) + training_seconds(stage2)
    begin("CLIP")
    launch("recipes/tiny/clip.py", "--config", "recipes/tiny/clip.yaml", "--output_dir", str(clip),
        "--seconds", f"{seconds:.0f}", *precision)  # fmt: skip
    begin("evaluation")
    launch("-m", "unime.eval", "--output", str(output), "--size", str(size),
        "--highlight", "Stage 2", "--models",
        "Before=checkpoints/tiny-backbone", f"Stage 1={stage1}", f"Stage 2={stage2}", f"CLIP={clip}")  # fmt: skip
    used = os.times()
    print(
        f"{(time.monotonic() - start) / 60:.1f} minutes, {(used.children_user + used.children_system) / 60:.1f} CPU "
        f"minutes. The trained checkpoint is in {stage2}."
    )


if __name__ == "__main__":
    main()
