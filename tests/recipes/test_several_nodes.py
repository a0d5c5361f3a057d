"""Several machines: recipes resume without a shared disk, and elastic launchers restart what is killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from forked_workers import ROOT, Workers
from safetensors.torch import load_file

from unime.trainers import last_complete_checkpoint


STEPS = 5
LORA = "--use_peft true --lora_task_type FEATURE_EXTRACTION --lora_r 4 --lora_target_modules q_proj v_proj".split()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    with Workers(tmp_path_factory.mktemp("workers") / "jobs") as workers:
        yield workers


@pytest.fixture(scope="module")
def command(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a short training in two processes, whose output folder is relative."""
    texts = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": f"text number {i}", "teacher": [float(i == j) for j in range(12)]} for i in range(12)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "config": ROOT / "recipes" / "tiny" / "stage1.yaml",
        "dataset": texts,
        "model_name_or_path": tiny_model("llava"),
        "output_dir": "trained",
        "bf16": "false",
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "save_steps": 1,
        "warmup_steps": 1,
        "logging_steps": 1,
    }
    return ["recipes/stage1.py", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]


def check_equal(undisturbed: str, resumed: str, nodes: tuple[Path, Path]) -> None:
    """Assert that two trainings logged the same losses, and ended with the same weights on both nodes."""
    expected, weights = (
        [load_file(node / run / "model.safetensors") for node in nodes] for run in (undisturbed, resumed)
    )
    for checkpoint in (expected[1], *weights):
        assert checkpoint.keys() == expected[0].keys()
        assert all(torch.equal(weight, expected[0][name]) for name, weight in checkpoint.items())
    states = [json.loads((nodes[0] / run / "trainer_state.json").read_text()) for run in (undisturbed, resumed)]
    losses = [[entry["loss"] for entry in state["log_history"] if "loss" in entry] for state in states]
    assert len(losses[0]) == STEPS and losses[0] == losses[1]


def make_nodes(folder: Path) -> tuple[Path, Path]:
    nodes = folder / "node0", folder / "node1"
    for node in nodes:
        node.mkdir()
    return nodes


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("launcher", ["ddp", "zero2", "zero3"])
def test_nodes_without_a_shared_disk_resume_from_the_last_checkpoint_that_all_have(
    launcher: str, tuning: str, workers: Workers, command: list[str], tmp_path: Path
):
    nodes = make_nodes(tmp_path)
    settings = [*command, *(LORA if tuning == "lora" else []), "--save_on_each_node", "true"]
    code, log = workers.run(launcher, "no", *settings, folders=nodes)
    assert code == 0, log
    for node in nodes:  # as the same job leaves it when it is killed while node 1 saves
        (node / "trained").rename(node / "undisturbed")
        (node / "trained").mkdir()
        for step in (2, 3):
            (node / "undisturbed" / f"checkpoint-{step}").rename(node / "trained" / f"checkpoint-{step}")
    (nodes[1] / "trained" / "checkpoint-3" / "trainer_state.json").unlink()

    code, log = workers.run(launcher, "no", *settings, folders=nodes)
    assert code == 0, log
    for node in nodes:
        assert not (node / "trained" / "checkpoint-1").exists()  # training did not start again
    check_equal("undisturbed", "trained", nodes)


@pytest.mark.slow
def test_what_nodes_without_a_shared_disk_cannot_do_is_refused_before_training(
    workers: Workers, command: list[str], tmp_path: Path
):
    def error(launcher: str, *settings: str, folders: tuple[Path, Path]) -> str:
        code, log = workers.run(launcher, "no", *command, *settings, folders=folders)
        assert code == 1 and "'loss'" not in log, log
        return log

    nodes = make_nodes(tmp_path)
    assert "set save_on_each_node to true" in error("ddp", folders=nodes)
    assert "give a folder that all nodes see" in error("fsdp2", "--save_on_each_node", "true", folders=nodes)
    (nodes[0] / "trained" / "checkpoint-3").mkdir()
    (nodes[0] / "trained" / "checkpoint-3" / "trainer_state.json").write_text("{}")
    message = error("ddp", "--save_on_each_node", "true", folders=nodes)
    assert "checkpoint-3 is not on the disks of all nodes: copy trained from another node" in message
    for process, node in enumerate(reversed(nodes)):
        (node / "trained" / "checkpoint-3").mkdir(exist_ok=True)
        (node / "trained" / "checkpoint-3" / "trainer_state.json").write_text("{}")
        torch.save({}, node / "trained" / "checkpoint-3" / f"rng_state_{process}.pth")
    message = error("ddp", "--save_on_each_node", "true", folders=nodes)
    assert "the part of trained/checkpoint-3 that process 0 saved is on another node" in message
    assert not [*tmp_path.rglob(".shared-*")]


def test_the_slurm_script_is_valid_and_says_how_it_is_used():
    script = "recipes/slurm/train.sbatch"
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
    process = subprocess.run(["bash", script], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and f"usage: sbatch {script} ACCELERATE_CONFIG SCRIPT" in process.stderr


def fake_slurm(folder: Path) -> dict[str, str]:
    """Write commands that run a SLURM job of two nodes on this machine; each node works in its own folder."""
    commands = folder / "bin"
    commands.mkdir()
    (commands / "scontrol").write_text("#!/bin/bash\necho localhost\necho another-node\n")
    (commands / "srun").write_text(
        "#!/bin/bash\n"
        "while [[ $1 == --* ]]; do shift; done\n"
        "for node in 0 1; do\n"
        # On one machine, node 1 would open the port of node 0 if it came first.
        "    while [[ $node == 1 ]] && ! (echo > /dev/tcp/localhost/$MAIN_PORT) 2> /dev/null; do sleep 0.1; done\n"
        f'    (cd "{folder}/node$node" && SLURM_NODEID=$node exec "$@") > "{folder}/node$node.log" 2>&1 &\n'
        f'    echo $! > "{folder}/node$node.pid"\n'
        "done\n"
        "wait -n && wait -n\n"
    )
    for file in commands.iterdir():
        file.chmod(0o755)
    variables = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2"}
    variables |= {"SLURM_GPUS_ON_NODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return os.environ | variables | {"PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["process", "launcher"])
def test_a_killed_process_or_launcher_of_a_slurm_job_is_restarted_and_resumes(
    victim: str, workers: Workers, command: list[str], tmp_path: Path, record_property: Callable[[str, object], None]
):
    nodes = make_nodes(tmp_path)
    settings = [*command, *LORA, "--save_on_each_node", "true"]
    code, log = workers.run("ddp", "no", *settings, "--output_dir", "undisturbed", folders=nodes)
    assert code == 0, log

    job = subprocess.Popen(
        ["bash", "recipes/slurm/train.sbatch", str(ROOT / "recipes" / "accelerate" / "ddp-multi-node.yaml"),
         str(ROOT / settings[0]), *settings[1:]],
        cwd=ROOT, env=fake_slurm(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def logs() -> str:
        return "\n".join((tmp_path / f"node{node}.log").read_text()[-4000:] for node in (0, 1))

    deadline = time.monotonic() + 300
    while not (nodes[1] / "trained" / "checkpoint-3").exists():
        assert job.poll() is None and time.monotonic() < deadline, logs()
        time.sleep(0.001)
    launcher, *processes = psutil.Process(int((tmp_path / "node1.pid").read_text())).children(recursive=True)
    for process in [launcher, *processes] if victim == "launcher" else processes:
        process.kill()
    record_property("kills", 1)
    psutil.wait_procs(processes)
    assert last_complete_checkpoint(nodes[1] / "trained") in [
        str(nodes[1] / f"trained/checkpoint-{n}") for n in (2, 3)
    ]
    _, errors = job.communicate(timeout=400)
    assert job.returncode == 0, errors + logs()
    check_equal("undisturbed", "trained", nodes)
