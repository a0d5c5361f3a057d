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
TWO_PROCESSES = ["two", "shards", "zero2", "zero3"]
PROCESSES = ["one.0", *(f"{name}.{rank}" for name in TWO_PROCESSES for rank in (0, 1))]
STAGES = [(name, "contrastive") for name in ["one", *TWO_PROCESSES]]
STAGES += [(name, "distillation") for name in ("one", "two", "shards", "zero3")]
STAGES += [(name, "streamed") for name in ("one", "two", "shards")]


@pytest.fixture(scope="module")
def runs(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run both stages in one process with batches of 12, and in two with batches of 6, sharded or not."""
    folder = tmp_path_factory.mktemp("joined")
    torch.manual_seed(0)
    UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava"))).save_pretrained(folder / "model")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    runs = [([sys.executable], "one", ["12"])]
    runs += [
        (launch, name, ["6", *sharding])
        for name, sharding in zip(TWO_PROCESSES, ([], ["fsdp2"], ["zero2"], ["zero3"]), strict=True)
    ]
    for pair in (runs[:2], runs[2:4], runs[4:]):  # in pairs, as a process needs half a gigabyte or more
        started = [
            subprocess.Popen(
                [*command, SCRIPT, str(folder / "model"), str(tiny_model("llava")), str(folder / output), *settings],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for command, output, settings in pair
        ]
        for process in started:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-4000:]
    results = {name: torch.load(folder / name) for name in PROCESSES}
    for name, stages in results.items():
        for stage in stages.keys() - {"world"}:
            saved = f"{folder / name.split('.')[0]}-{stage}"
            stages[stage]["weights"] = UniMEModel.from_pretrained(saved).state_dict()
            stages[stage]["resumed"] = UniMEModel.from_pretrained(f"{saved}-resumed").state_dict()
    return results


@pytest.mark.parametrize(("run", "stage"), [pair for pair in STAGES if pair[0] != "one"])
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


def test_items_are_packed_in_one_run_of_each_kind_of_sharding(runs: dict[str, dict[str, Any]]):
    packed = {
        (name, stage)
        for name, stages in runs.items()
        for stage in stages.keys() - {"world"}
        if stages[stage]["packed"]
    }
    assert packed == {
        (f"{name}.{rank}", stage)
        for name, stage in (("zero2", "contrastive"), ("shards", "streamed"))
        for rank in (0, 1)
    }


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


@pytest.mark.parametrize(("name", "stage"), STAGES)
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
