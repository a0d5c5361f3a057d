"""Mining with a checkpoint, interrupted and resumed, and stage 2 with the mined negatives."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from unime.data.rows import content_hashes
from unime.data.sources import DataArguments, open_rows


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = RECIPES.parent / "checkpoints" / "unime-tiny"


@pytest.fixture
def mine(script: Callable[[Path], ModuleType], tmp_path: Path) -> Callable[..., None]:
    """Return a function that mines 80 OpenMoji rows in chunks of 32."""

    def run(*settings: object) -> None:
        module = script(RECIPES / "mine.py")
        module.CHUNK_ROWS = 32
        command = [
            "--config",
            RECIPES / "tiny" / "stage2.yaml",
            "--num_rows",
            80,
            "--output_dir",
            tmp_path,
            "--num_negatives",
            2,
        ]
        parser = module.TrlParser((module.DataArguments, module.ScriptArguments))
        command = [str(argument) for argument in [*command, "--model", TINY, *settings]]
        module.main(*parser.parse_args_and_config(command, return_remaining_strings=True))

    return run


def test_shards_and_an_interrupted_run_give_the_same_negatives_as_one_run(mine: Callable[..., None], tmp_path: Path):
    mine("--shard_index", 1, "--num_shards", 2)
    assert not (tmp_path / "negatives.jsonl").exists()  # the other shard is missing
    mine("--shard_index", 0, "--num_shards", 2)
    sharded = (tmp_path / "negatives.jsonl").read_text()
    for file in (tmp_path / "embeddings").glob("*.npz"):
        file.unlink()
    mine()
    assert (tmp_path / "negatives.jsonl").read_text() == sharded

    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "embeddings").glob("*.npz")}
    mine("--num_negatives", 1)  # other filters: nothing is embedded again
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "embeddings").glob("*.npz")} == times
    assert all(len(json.loads(line)) <= 1 for line in (tmp_path / "negatives.jsonl").read_text().splitlines())

    mine("--pool", "all", "--num_negatives", 5, "--relative_margin", 0)  # from all tasks, with the same embeddings
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "embeddings").glob("*.npz")} == times
    dataset = open_rows(DataArguments(num_rows=80))
    tasks = dataset.with_format(None)["task"][:]
    mined = [json.loads(line) for line in (tmp_path / "negatives.jsonl").read_text().splitlines()]
    assert any(tasks[row] != tasks[negative] for row, negatives in enumerate(mined) for negative in negatives)
    for row, negatives in enumerate(mined):
        right = {content_hashes(item)[1] for item in (dataset[row]["query"], dataset[row]["positive"])}
        assert right.isdisjoint(content_hashes(dataset[other]["positive"])[1] for other in negatives)
    assert list(json.loads((tmp_path / "report.json").read_text())) == ["all"]


@pytest.mark.slow
def test_mined_negatives_have_the_same_task_and_another_answer_and_can_be_trained_on(
    mine: Callable[..., None], launch: Callable[..., str], tiny_model: Callable[[str], Path], tmp_path: Path
):
    mine("--relative_margin", 0)
    dataset = open_rows(DataArguments(num_rows=80))
    mined = [json.loads(line) for line in (tmp_path / "negatives.jsonl").read_text().splitlines()]
    tasks, labels = (dataset.with_format(None)[name][:] for name in ("task", "label"))
    pairs = [(row, negative) for row, negatives in enumerate(mined) for negative in negatives]
    assert len(pairs) > 40
    for row, negative in pairs:
        assert tasks[row] == tasks[negative] and (labels[row] is None or labels[row] != labels[negative])
    report = json.loads((tmp_path / "report.json").read_text())
    assert sum(counts["taken"] for counts in report.values()) == len(pairs)

    launch(
        RECIPES / "stage2.py", "--config", RECIPES / "tiny" / "stage2.yaml", "--num_rows", 80, "--max_steps", 1,
        "--mined_file", tmp_path / "negatives.jsonl", "--model_name_or_path", tiny_model("llava"), "--warmup_steps", 0,
        "--per_device_train_batch_size", 8, "--task_block_size", 8, "--output_dir", tmp_path / "run",
        "--bf16", "false",
    )  # fmt: skip
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_embeddings_of_another_model_are_refused(mine: Callable[..., None], tmp_path: Path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(
        ValueError, match="holds embeddings of another model, dataset or version: choose another folder"
    ):
        mine()
