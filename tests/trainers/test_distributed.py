import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from unime import UniMEModel


SCRIPT = str(Path(__file__).parent / "joined_batch.py")
SHARDING = {"two": [], "shards": ["fsdp2"], "zero2": ["zero2"], "zero3": ["zero3"]}  # of each run of two processes
STAGES = [(name, "contrastive") for name in ["one", *SHARDING]]
STAGES += [(name, "distillation") for name in ("one", "two", "shards", "zero3")]
STAGES += [(name, "streamed") for name in ("one", "two", "shards")]
# DeepSpeed's runs are slow ones; sharding itself is tested with FSDP2.
MARKED_STAGES = [
    pytest.param(name, stage, marks=[pytest.mark.slow] if name.startswith("zero") else []) for name, stage in STAGES
]


@pytest.fixture(scope="module")
def runs(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the results of each process ("two.0", "two.1"), whose run starts when it is first asked for.

    A run trains both stages: "one" in one process with batches of 12, the others in two with batches of 6.
    """
    folder = tmp_path_factory.mktemp("joined")
    torch.manual_seed(0)
    UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava"))).save_pretrained(folder / "model")

    class Runs(dict):
        def __missing__(self, name: str) -> dict[str, Any]:
            run = name.split(".")[0]
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            settings = ["12"] if run == "one" else ["6", *SHARDING[run]]
            subprocess.run(
                [sys.executable, *(launcher if run != "one" else [])]
                + [SCRIPT, str(folder / "model"), str(tiny_model("llava")), str(folder / run), *settings],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                check=True,
                timeout=240,
            )
            for rank in range(1 if run == "one" else 2):
                stages = self[f"{run}.{rank}"] = torch.load(folder / f"{run}.{rank}")
                for stage in stages.keys() - {"world"}:
                    saved = f"{folder / run}-{stage}"
                    stages[stage]["weights"] = UniMEModel.from_pretrained(saved).state_dict()
                    stages[stage]["resumed"] = UniMEModel.from_pretrained(f"{saved}-resumed").state_dict()
            return self[name]

    return Runs()


@pytest.mark.parametrize(("run", "stage"), [case for case in MARKED_STAGES if case.values[0] != "one"])
def test_two_processes_train_like_one_process_with_the_joined_batch(
    runs: dict[str, dict[str, Any]], run: str, stage: str
):
    one = runs["one.0"][stage]
    for name in (f"{run}.0", f"{run}.1"):
        result = runs[name][stage]
        torch.testing.assert_close(result["weights"], one["weights"], atol=1e-6, rtol=0)
        for entry, expected in zip(result["log"], one["log"], strict=True):
            assert entry == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert result["evaluation"] == pytest.approx(one["evaluation"], rel=1e-5)


@pytest.mark.parametrize(
    ("run", "stages"),
    [("one", set()), ("two", set()), ("shards", {"streamed"})]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in [("zero2", {"contrastive"}), ("zero3", set())]],
)
def test_items_are_packed_in_one_run_of_each_kind_of_sharding(
    runs: dict[str, dict[str, Any]], run: str, stages: set[str]
):
    for rank in range(1 if run == "one" else 2):
        results = runs[f"{run}.{rank}"]
        assert {stage for stage in results.keys() - {"world"} if results[stage]["packed"]} == stages


@pytest.mark.parametrize("stage", ["contrastive", "distillation"])
def test_fsdp2_shards_every_layer(runs: dict[str, dict[str, Any]], stage: str):
    assert runs["two.0"][stage]["sharded"] == []
    for name in ("shards.0", "shards.1"):
        sharded = runs[name][stage]["sharded"]
        assert {"", "backbone.language_model.layers.0", "backbone.vision_tower.encoder.layers.0"} <= set(sharded)


@pytest.mark.parametrize("stage", ["contrastive", "distillation"])
def test_sharded_training_saves_shards_to_resume_from_and_an_ordinary_checkpoint(
    runs: dict[str, dict[str, Any]], stage: str
):
    def final(files: list[str]) -> list[str]:
        return [file for file in files if not file.startswith("checkpoint-")]

    files = runs["shards.0"][stage]["files"]
    assert "modeling_unime.py" in files and final(files) == final(runs["one.0"][stage]["files"])
    shards = [file for file in files if file.startswith("checkpoint-1/pytorch_model_fsdp_0/")]
    assert len([file for file in shards if file.endswith(".distcp")]) == 2


@pytest.mark.parametrize("name", ["one.0", "two.0", "two.1"])
def test_a_stream_gives_the_same_batches_as_the_dataset(runs: dict[str, dict[str, Any]], name: str):
    stream, dataset = (runs[name][stage]["weights"] for stage in ("streamed", "contrastive"))
    torch.testing.assert_close(stream, dataset, atol=0, rtol=0)


@pytest.mark.parametrize(("name", "stage"), MARKED_STAGES)
def test_resumed_training_ends_with_the_same_weights(runs: dict[str, dict[str, Any]], name: str, stage: str):
    result = runs[f"{name}.0"][stage]
    torch.testing.assert_close(result["resumed"], result["weights"], atol=0, rtol=0)


@pytest.mark.parametrize("stage", ["contrastive", "distillation"])
def test_gradients_are_reduced_once_per_step(runs: dict[str, dict[str, Any]], stage: str):
    assert runs["two.0"]["world"] == 2
    assert [runs[name][stage]["all_reduces"] for name in ("two.0", "two.1")] == [2, 2]


@pytest.mark.parametrize("stage", ["contrastive", "distillation"])
def test_no_gradient_buckets_are_allocated(runs: dict[str, dict[str, Any]], stage: str):
    assert not runs["two.0"][stage]["wrapped"]  # the buckets belong to DistributedDataParallel


def test_the_two_processes_have_batches_of_different_kinds(runs: dict[str, dict[str, Any]]):
    assert [runs[name]["contrastive"]["has_images"] for name in ("two.0", "two.1")] == [False, True]
