"""Tests of the benchmark of one GPU, on the CPU and with a tiny model."""

import json
from pathlib import Path
from typing import Any

import gpu
import pytest
from gpu_cases import Case, measure


SIZES: dict[str, Any] = {"device": "cpu", "models": ["unime-tiny"], "image_side": 96, "items": 3, "batch_size": 3}
SIZES |= {"rounds": 1, "micro_batch_tokens": 512, "graph_cache_gb": 1}


def test_gradient_caching_does_not_change_the_gradients(tmp_path: Path):
    case = Case("unime-tiny", "gradients", "float32")
    rows = list(measure(gpu.ScriptArguments(**SIZES), str(tmp_path), case))
    assert [row["settings"] for row in rows] == ["graph_cache_gb 0", "graph_cache_gb 1"]
    assert all(0 <= row["difference"] < 1e-5 for row in rows)


@pytest.mark.parametrize("weights", ["bf16", pytest.param("4-bit", marks=pytest.mark.slow)])
def test_a_step_has_the_loss_of_sentence_transformers(weights: str, tmp_path: Path):
    settings = {"activation_checkpointing": True, "graph_cache_gb": 1, "packed": True}
    case = Case("unime-tiny", "step", weights, settings=settings, beside_baseline=True)
    ours, theirs = measure(gpu.ScriptArguments(**SIZES), str(tmp_path), case)
    assert (ours["library"], theirs["library"]) == ("unime", "sentence-transformers")
    assert ours["settings"] == "activation_checkpointing, graph_cache_gb 1, packed"
    assert theirs["difference"] < 0.02  # in bf16
    assert all(row[rate] > 0 for row in (ours, theirs) for rate in ("items/s", "tokens/s", "TFLOP/s"))


@pytest.mark.slow  # test_encode.py compares the same embeddings
def test_encode_has_the_embeddings_of_sentence_transformers(tmp_path: Path):
    case = Case("unime-tiny", "encode", "float32", settings={"packed": True}, beside_baseline=True)
    rows = list(measure(gpu.ScriptArguments(**SIZES), str(tmp_path), case))
    assert [row["work"] for row in rows[::2]] == ["encode texts", "encode images", "encode mixed"]
    assert all(row["difference"] < 1e-5 for row in rows[1::2])
    assert all(row["items/s"] > 0 for row in rows)


def test_rows_are_compared_with_the_fastest_of_the_same_work():
    case = Case("unime-tiny", "step")
    rows = [case.row(**{"items/s": 6.0, "TFLOP/s": 50.0}), case.row(reason="OutOfMemoryError")]
    rows += [case.row(library=gpu.BASELINE, **{"items/s": rate}) for rate in (2.0, 3.0)]
    gpu.add_ratios(rows, 100)
    assert rows[0]["speedup"] == 2 and rows[0]["utilization"] == 0.5
    assert not any("speedup" in row for row in rows[1:])


@pytest.mark.parametrize(
    ("card", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Tesla T4", None),  # without bf16
    ],
)
def test_a_card_is_recognized_by_its_name(card: str, tflops: float | None):
    assert gpu.bf16_tflops(card) == tflops


@pytest.mark.slow
def test_the_script_runs_every_case_or_says_why_not(tmp_path: Path):
    script = gpu.ScriptArguments(**SIZES, minutes=30, case_seconds=300, output=str(tmp_path / "gpu.json"))
    gpu.main(script)
    result = json.loads(Path(script.output).read_text())
    assert result["settings"]["card"] == "CPU"
    reasons = {row["attention"]: row.get("reason", "") for row in result["rows"]}
    assert reasons.pop("sdpa") == ""
    assert reasons == {"flash_attention_2": reasons["flash_attention_2"]} and "Flash" in reasons["flash_attention_2"]
    assert {row["weights"] for row in result["rows"]} == {"4-bit", "bf16", "float32"}
