"""Worker processes that import the libraries once and run every training in a fork of their own.

    torchrun --standalone --nproc_per_node 2 tests/forked_workers.py FOLDER DRIVER

A training of a tiny model takes seconds, but importing torch, transformers and DeepSpeed takes longer than that.
[`Workers`] starts this script and gives it trainings to run, which are the project's own scripts with their command
line. A fork has the environment of the launcher, and may be killed like any other process.

A CPU has neither FSDP2 nor fp16 in accelerate, and no fp16 in DeepSpeed, which only check the device. The patches of
[`patch_launcher`] change the result of these checks, and the first loss scale of fp16; everything after `Accelerator`
runs unpatched.
"""

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psutil


ROOT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.01
IMPORT_SECONDS = 300  # limits, on a busy machine
RUN_SECONDS = 300
LOG_CHARACTERS = 4000
LOSS_SCALE_POWER = 8  # low enough for tiny models, of which launchers would otherwise skip different steps


class Workers:
    """Processes started by torchrun that run trainings one after the other; they end with the context.

    Args:
        folder (`Path`): Folder for the jobs and their output.
        processes (`int`, *optional*, defaults to 2): Number of processes.
    """

    def __init__(self, folder: Path, processes: int = 2):
        self.folder, self.jobs = folder, 0
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
        with (folder / "torchrun.log").open("w") as log:
            self.launcher = subprocess.Popen(
                [*command, __file__, str(folder), str(os.getpid())],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        (self.folder / "stop").touch()
        self.launcher.wait(timeout=IMPORT_SECONDS)

    def run(
        self,
        launcher: str | None,
        precision: str,
        script: str,
        *arguments: object,
        folders: Sequence[Path] = (ROOT, ROOT),
    ) -> tuple[int, str]:
        """Run a script of the project and return its exit code and what it printed.

        Args:
            launcher (`str`, *optional*): A file of `recipes/accelerate`, without its suffix; None for one process.
            precision (`str`): Mixed precision: `"no"`, `"bf16"` or `"fp16"`.
            script (`str`): Path of the script, from the root of the project.
            arguments: Its command line.
            folders (`Sequence[Path]`, *optional*): Working folder of each process. Processes with different folders
                act as the only processes of different nodes.
        """
        with self.start(launcher, precision, script, *arguments, folders=folders):
            pass
        return self.result()

    @contextmanager
    def start(
        self,
        launcher: str | None,
        precision: str,
        script: str,
        *arguments: object,
        folders: Sequence[Path] = (ROOT, ROOT),
    ) -> Iterator[list[int]]:
        """Start a script as [`run`] does and give its process ids; leaving the context waits for its end."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = {"launcher": launcher, "precision": precision, "port": port}
        job |= {"command": [str(ROOT / script), *map(str, arguments)], "folders": [*map(str, folders)]}
        name = f"{self.jobs:04}"
        self.processes = [f"{name}.{rank}" for rank in range(1 if launcher is None else 2)]
        self.jobs += 1
        write(self.folder / f"{name}.json", json.dumps(job))
        pids = [int(self._read(f"{process}.pid", IMPORT_SECONDS)) for process in self.processes]
        yield pids
        deadline = time.monotonic() + RUN_SECONDS
        while not all((self.folder / f"{process}.exit").exists() for process in self.processes):
            exited = [process for process in self.processes if (self.folder / f"{process}.exit").exists()]
            failed = any((self.folder / f"{process}.exit").read_text() != "0" for process in exited)
            if time.monotonic() > deadline or failed and time.monotonic() > deadline - RUN_SECONDS + 20:
                for pid, process in zip(pids, self.processes, strict=True):
                    if process not in exited:
                        os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + RUN_SECONDS
            time.sleep(POLL_SECONDS)

    def result(self) -> tuple[int, str]:
        """Return the first exit code that is not 0, and the end of what each process printed."""
        codes = [int(self._read(f"{process}.exit", RUN_SECONDS)) for process in self.processes]
        logs = [(self.folder / f"{process}.log").read_text()[-LOG_CHARACTERS:] for process in self.processes]
        return next((code for code in codes if code != 0), 0), "\n".join(logs)

    def _read(self, name: str, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while not (self.folder / name).exists():
            if self.launcher.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the workers do not answer: {(self.folder / 'torchrun.log').read_text()[-4000:]}")
            time.sleep(POLL_SECONDS)
        return (self.folder / name).read_text()


def write(path: Path, text: str) -> None:
    """Write a file that other processes wait for."""
    path.with_suffix(path.suffix + ".part").write_text(text)
    path.with_suffix(path.suffix + ".part").rename(path)


def serve(folder: Path, driver: int) -> None:
    """Run the jobs of the folder until there is a file `stop`, or the process that gives them has ended."""
    import_libraries()
    gc.freeze()
    rank, agent = int(os.environ["RANK"]), os.getppid()
    for job_number in count():
        file = folder / f"{job_number:04}.json"
        while not file.exists():
            if (folder / "stop").exists() or not psutil.pid_exists(driver) or os.getppid() != agent:
                return
            time.sleep(POLL_SECONDS)
        job = json.loads(file.read_text())
        if job["launcher"] is None and rank > 0:
            continue
        process = f"{job_number:04}.{rank}"
        pid = os.fork()
        if pid == 0:
            os.chdir(job["folders"][rank])
            run_job(job, folder / f"{process}.log")
        write(folder / f"{process}.pid", str(pid))
        write(folder / f"{process}.exit", str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))


def import_libraries() -> None:
    """Import everything that a training needs and that starts no thread."""
    import bitsandbytes  # noqa: F401
    import deepspeed
    import torch
    import trl  # noqa: F401
    from torch.distributed.checkpoint import state_dict  # noqa: F401

    import unime.data.sources
    import unime.data.teacher
    import unime.trainers  # noqa: F401

    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiling it takes minutes, and gloo works


def run_job(job: dict[str, Any], log: Path) -> None:
    """Run one script in this process, and end the process."""
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if job["launcher"] is None:
            for name in [*os.environ]:
                if name in ("RANK", "WORLD_SIZE") or name.startswith(("LOCAL_", "GROUP_", "MASTER_", "TORCHELASTIC_")):
                    del os.environ[name]
        else:
            os.environ |= launcher_environment(job["launcher"], job["precision"])
            # The agent's store has the keys of the job before: process 0 opens another one.
            os.environ |= {"MASTER_PORT": str(job["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False"}
            if len(set(job["folders"])) > 1:
                os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        patch_launcher()
        sys.argv = job["command"]
        runpy.run_path(job["command"][0], run_name="__main__")
        from torch import distributed

        if distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def launcher_environment(launcher: str, precision: str) -> dict[str, str]:
    """Return the environment variables that `accelerate launch` gives to its processes.

    Args:
        launcher (`str`): A file of `recipes/accelerate`, without its suffix.
        precision (`str`): Mixed precision: `"no"`, `"bf16"` or `"fp16"`.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    command = ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{launcher}.yaml"), "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", precision, "--main_process_port", "0", "script.py"]
    args, config, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    if not args.use_deepspeed:
        environment = prepare_multi_gpu_env(args)
    else:
        args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(args)[1]
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}


def patch_launcher() -> None:
    """Make accelerate and DeepSpeed accept a CPU where they accept a GPU: FSDP2 and fp16."""
    import torch
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config

    make_state, make_accelerator = AcceleratorState.__init__, Accelerator.__init__

    def state_with_fsdp(
        state: AcceleratorState, *args: Any, fsdp_plugin: FullyShardedDataParallelPlugin | None = None, **kwargs: Any
    ) -> None:
        # As the original does for `MULTI_GPU`.
        first = AcceleratorState._shared_state == {}
        make_state(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if first and fsdp_plugin is not None and state.distributed_type == DistributedType.MULTI_CPU:
            if state._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(state._mixed_precision)
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    def accelerator_with_fp16(accelerator: Accelerator, *args: Any, **kwargs: Any) -> None:
        make_accelerator(accelerator, *args, **kwargs)
        if accelerator.state.mixed_precision == "fp16" and accelerator.distributed_type != DistributedType.DEEPSPEED:
            accelerator.native_amp = True
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2**LOSS_SCALE_POWER)

    AcceleratorState.__init__, Accelerator.__init__ = state_with_fsdp, accelerator_with_fp16
    CPU_Accelerator.is_fp16_supported = lambda self: True
    DeepSpeedFP16Config.model_fields["initial_scale_power"].default = LOSS_SCALE_POWER
    DeepSpeedFP16Config.model_rebuild(force=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
