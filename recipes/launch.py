"""Run the project's scripts as a user would, one after the other; shared by `demo.py` and `study.py`."""

import os
import shlex
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
# Otherwise glibc returns large tensors to the kernel and requests them again, which takes half of a step's time.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(10**11), "MALLOC_TOP_PAD_": str(2**28)}


def launch(*command: str, processes: int = 1) -> None:
    """Run a script (or `-m` and a module) on the CPU with this Python, from the root of the project.

    Args:
        command (`str`): The script and its arguments.
        processes (`int`, *optional*, defaults to 1): Processes that train together; they share the cores.

    Raises:
        subprocess.CalledProcessError: The command fails.
    """
    threads = str(max(1, int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())) // processes))
    if processes == 1:
        shown, launcher = "accelerate launch", ["accelerate.commands.launch", "--cpu", "--num_processes", "1"]
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launcher += ["--num_cpu_threads_per_process", threads]
    else:  # accelerate starts several CPU processes through MPI only
        shown = f"torchrun --nproc_per_node {processes}"
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    print(f"\n$ {shown} {shlex.join(command)}", flush=True)
    environment = os.environ | KEEP_MEMORY | {"OMP_NUM_THREADS": threads}
    subprocess.run([sys.executable, "-m", *launcher, *command], cwd=ROOT, env=environment, check=True)
