"""Judging rows with a tiny judge: interrupted, resumed, shared by processes, and stage 2 with the result."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from PIL import Image

from unime.data.rejected_rows import without_rejected
from unime.data.sources import DataArguments, open_rows


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
JUDGE = RECIPES.parent / "checkpoints" / "tiny-backbone"
NAMES = ["a pizza", "a cat", "a dog", "a car", "a tree", "a house", "the moon", "a red tile"]
QUESTION = "Represent the given image with the following question:"
BAD_ROW = 5  # its image does not exist


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write eight rows with images, one of them unreadable, and six mined negatives of each."""
    folder = tmp_path_factory.mktemp("rows")
    rows, mined = [], []
    for number, name in enumerate(NAMES):
        Image.new("RGB", (64, 64), (30 * number, 200 - 20 * number, 90)).save(folder / f"{number}.png")
        image = f"{number}.png" if number != BAD_ROW else "missing.png"
        negatives = [{"text": "an explicit negative"}] if number == 0 else []
        rows.append({"query": {"image": image}, "positive": {"text": name}, "negatives": negatives})
        others = [other for other in range(len(NAMES)) if other not in (number, BAD_ROW)]
        mined.append(others if number != BAD_ROW else [])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mined.jsonl").write_text("".join(json.dumps(line) + "\n" for line in mined))
    return folder


def settings(data: Path, output: Path) -> list[str]:
    options = {
        "--dataset": data / "rows.jsonl",
        "--mined_file": data / "mined.jsonl",
        "--judge": JUDGE,
        "--judge_dtype": "float32",
        "--output_dir": output,
        "--num_negatives": 4,
    }
    return [str(part) for option in options.items() for part in option]


@pytest.fixture
def judge(script: Callable[[Path], ModuleType], data: Path, tmp_path: Path) -> Callable[..., None]:
    """Return a function that judges in chunks of two rows."""

    def run(*more: object) -> None:
        module = script(RECIPES / "judge.py")
        module.CHUNK_ROWS = 2
        parser = module.TrlParser((module.DataArguments, module.ScriptArguments))
        arguments = [*settings(data, tmp_path), *map(str, more)]
        module.main(*parser.parse_args_and_config(arguments, return_remaining_strings=True))

    return run


def test_an_interrupted_run_and_two_processes_give_the_same_file(
    judge: Callable[..., None], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    judge()
    result = (tmp_path / "negatives.jsonl").read_text()
    files = sorted((tmp_path / "scores").glob("*.json"))
    assert len(files) == 4 and json.loads((tmp_path / "report.json").read_text())["rejected"] == 1
    page = (tmp_path / "report.html").read_text()
    assert "the moon" in page and "missing.png" in page and "<script" not in page

    (tmp_path / "negatives.jsonl").unlink()
    times = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    files[2].write_text("damaged")
    judge()
    assert (tmp_path / "negatives.jsonl").read_text() == result
    assert [file for file in files if file.stat().st_mtime_ns == times[file]] == [files[1], files[3]]

    for file in (*files, tmp_path / "negatives.jsonl"):
        file.unlink()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    judge()
    assert not (tmp_path / "negatives.jsonl").exists()  # the other process has not judged its chunks
    monkeypatch.setenv("RANK", "0")
    judge()
    assert (tmp_path / "negatives.jsonl").read_text() == result

    rows = without_rejected(
        open_rows(DataArguments(dataset=str(data / "rows.jsonl"), mined_file=str(tmp_path / "negatives.jsonl"))),
        tmp_path / "rejected.jsonl",
    )
    assert len(rows) == 7
    for row in rows:
        assert len(row["scores"]) == 1 + len(row["negatives"]) and all(0 < score < 1 for score in row["scores"])
    assert rows[0]["negatives"][0]["text"] == "an explicit negative"

    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").glob("*.json")}
    judge("--margin", 0.5)  # another filter: nothing is judged again
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").glob("*.json")}
    message = "holds scores of another judge, dataset or mined file: choose another folder"
    with pytest.raises(ValueError, match=message):
        judge("--repetition_penalty", 1)


@pytest.mark.slow
def test_a_run_that_was_killed_is_resumed_by_the_same_command(data: Path, tmp_path: Path):
    def start(output: Path, processes: int) -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command += [str(RECIPES / "judge.py"), *settings(long, output)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(run: subprocess.Popen) -> None:
        _, errors = run.communicate(timeout=500)
        assert run.returncode == 0, errors[-3000:]

    long = tmp_path / "long"  # 320 rows are 5 chunks
    long.mkdir()
    for name in ("rows.jsonl", "mined.jsonl"):
        lines = (data / name).read_text().splitlines() * 40
        (long / name).write_text("\n".join(lines) + "\n")
    for image in data.glob("*.png"):
        (long / image.name).write_bytes(image.read_bytes())

    finish(start(tmp_path / "whole", 1))
    killed = tmp_path / "killed"
    run = start(killed, 2)
    deadline = time.monotonic() + 500
    while not list((killed / "scores").glob("*.json")):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()[1][-3000:]
        time.sleep(0.01)
    launcher = psutil.Process(run.pid)
    for process in [*launcher.children(recursive=True), launcher]:
        process.kill()
    run.communicate()
    assert not (killed / "negatives.jsonl").exists()
    finish(start(killed, 2))
    for name in ("negatives.jsonl", "rejected.jsonl", "report.json"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_stage_2_trains_on_judged_negatives(
    judge: Callable[..., None], launch: Callable[..., str], data: Path, tiny_model, tmp_path: Path
):
    judge()
    launch(
        RECIPES / "stage2.py", "--config", RECIPES / "tiny" / "stage2.yaml", "--dataset", data / "rows.jsonl",
        "--mined_file", tmp_path / "negatives.jsonl", "--rejected_file", tmp_path / "rejected.jsonl",
        "--soft_label_weight", 1, "--contrastive_weight", 0, "--max_steps", 1, "--warmup_steps", 0,
        "--model_name_or_path", tiny_model("llava"), "--per_device_train_batch_size", 4, "--task_block_size", 1,
        "--output_dir", tmp_path / "run", "--bf16", "false",
    )  # fmt: skip
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["qwen2-vl-2b", "llava-onevision-7b"])
def test_the_recipe_of_unime_v2_trains_on_released_rows(
    launch: Callable[..., str], tiny_model: Callable[[str], Path], tmp_path: Path, backbone: str
):
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(8):
        Image.new("RGB", (64, 64), (30 * number, 200 - 20 * number, 90)).save(tmp_path / "images" / f"{number}.png")
        others = [(number + step) % 8 for step in range(1, 8)]
        rows.append(
            {
                "query_text": f"<|image_1|>\n{QUESTION} what is {number}?\n",
                "query_image": f"images/{number}.png",
                "pos_text": f"{NAMES[number]}\n",
                "pos_image": "",
                "query_pos_scores": 0.9,
                "hard_negatives": [[f"{NAMES[other]}\n", ""] for other in [*others, *others[:3]]],
                "hard_negatives_scores": [other / 10 for other in [*others, *others[:3]]],
            }
        )
    (tmp_path / "train_data_Qwen25VL_7B_scores.json").write_text(json.dumps(rows))
    launch(
        RECIPES / "stage2.py", "--config", RECIPES / backbone / "stage2-unime-v2.yaml", "--dataset", tmp_path,
        "--image_root", tmp_path, "--model_name_or_path", tiny_model(backbone.rpartition("-")[0]), "--max_steps", 2,
        "--warmup_steps", 0, "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "run", "--bf16", "false",
        "--dtype", "float32", "--report_to", "none", "--logging_steps", 1, "--graph_cache_gb", 0,
        "--dataloader_num_workers", 1,
    )  # fmt: skip
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["soft_label_loss"] for entry in history if "soft_label_loss" in entry]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
