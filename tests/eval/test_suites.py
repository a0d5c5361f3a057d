"""Suites: their means, worked by hand and as published, the subsets of several benchmarks, and the output."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from unime.eval.benchmarks import BenchmarkArguments, open_benchmarks, subset_names
from unime.eval.miniatures import document_miniature, mmeb_miniature, video_miniature
from unime.eval.miniatures.hub_files import write_hub_dataset
from unime.eval.report.suite_scores import PUBLISHED_SUITES
from unime.eval.report.suite_table import suite_table
from unime.eval.suites import SUITES, leaderboard_entry, suite_results


ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "unime-tiny"
PARTS = ("mmeb", "mmeb-v2-video", "mmeb-v2-documents")
SUBSETS = ["NIGHTS", "HMDB51", "ViDoRe_tatdqa"]
command = importlib.import_module("unime.eval.__main__")


def results_of(benchmark: str, scores: dict[str, float], metric: str = "hit@1") -> dict[str, Any]:
    """Return results of a benchmark in which every task is of one meta-task."""
    tasks = {
        name: {"metric": metric, metric: score, "queries": 10, **{f"R@{k}": score for k in (1, 5, 10)}}
        for name, score in scores.items()
    }
    means = {"classification": sum(scores.values()) / len(scores), "vqa": 0.5}
    return {"benchmark": benchmark, "tasks": tasks, "meta_tasks": means, "distributions": {}} | dict.fromkeys(
        ("compositional", "compositional_groups", "compositional_rows"), {}
    )


def test_all_is_the_mean_of_78_subsets_and_parts_keep_their_meta_tasks():
    parts = {}
    for name, score, metric in zip(PARTS, (0.649, 0.346, 0.692), ("hit@1", "hit@1", "ndcg@5"), strict=True):
        parts[name] = results_of(name, dict.fromkeys(subset_names(name), score), metric)
    results = suite_results("mmeb-v2", "m", parts)
    assert results["evaluated"] == results["expected"] == {"All": 78, "Image": 36, "Video": 18, "VisDoc": 24}
    scores = results["scores"]
    # VLM2Vec-V2's published 64.9, 34.6 and 69.2 give the published 59.2, and not their mean, 56.2.
    assert (
        scores["All"] == pytest.approx((36 * 0.649 + 18 * 0.346 + 24 * 0.692) / 78) == pytest.approx(0.592, abs=5e-4)
    )
    assert (scores["Image: classification"], scores["Video: classification"]) == pytest.approx((0.649, 0.346))
    assert suite_table({"m": results}).splitlines()[2].split("|")[1:3] == [" **All**        ", " 59.2 "]


def test_published_means_of_mmeb_v2_are_weighted_by_the_numbers_of_subsets():
    (rows,) = PUBLISHED_SUITES["mmeb-v2"].sources.values()
    assert len(PUBLISHED_SUITES["mmeb-v2"].sizes) == 78 and len(rows) == 14
    for model, (*groups, overall) in rows.items():
        means = []
        for start, sizes in ((0, (10, 10, 12, 4)), (5, (5, 5, 5, 3)), (10, (10, 4, 6, 4))):
            values, mean = groups[start : start + 4], groups[start + 4]
            weighted = sum(size * value for size, value in zip(sizes, values, strict=True)) / sum(sizes)
            # Three means of VisDoc are not those of the groups beside them, by up to 0.37.
            assert mean == pytest.approx(weighted, abs=0.4 if start == 10 else 0.11), (model, start)
            means.append(mean)
        assert overall == pytest.approx((36 * means[0] + 18 * means[1] + 24 * means[2]) / 78, abs=0.11), model


def test_published_rows_of_the_paper_are_the_means_of_its_tables():
    rows, rows_v2 = PUBLISHED_SUITES["paper"].sources.values()
    # UniME's table 3 prints 70.4, 94.1 and 84.8 for short and long captions and SugarCrepe.
    assert rows["UniME (Phi-3.5-V)"] == pytest.approx((61.3, 70.4, 94.1, 84.8), abs=0.11)
    assert rows_v2["UniME-V2 (Qwen2-VL-2B)"] == pytest.approx((63.6, 72.1, 93.4, 64.1), abs=0.11)


@pytest.mark.parametrize("moments", [1800, 1602, 1700])  # queries of MomentSeeker: v2.0.0, v2.1 and neither
def test_published_means_stand_beside_those_of_all_78_subsets(moments: int):
    parts = {name: results_of(name, dict.fromkeys(subset_names(name), 0.5)) for name in PARTS}
    sizes = PUBLISHED_SUITES["mmeb-v2"].sizes
    protocol = {"image_size": None, "prompts": None, "image_prompt": None, "text_prompt": None}
    for results in parts.values():
        results["run"] = {"protocol": protocol}
        groups = ("retrieval", "grounding", "moments", "ViDoRe-V1", "ViDoRe-V2", "VisRAG", "VisDoc-OOD")
        results["distributions"] = dict.fromkeys(groups, 0.5)
        for name, task in results["tasks"].items():
            (task["queries"],) = sizes[name] if name != "MomentSeeker" else (moments,)
    table = suite_table({"m": suite_results("mmeb-v2", "m", parts)})
    if moments == 1700:
        assert "not shown: they are of 1,800 queries in MomentSeeker, and 1,700 queries were evaluated." in table
        return
    assert f"MomentSeeker was evaluated on {moments:,} queries; rows are published on 1,800 and on 1,602," in table
    assert "Published scores (report of Qwen3-VL-Embedding, table 2), not measured by us:" in table
    (row,) = (line for line in table.splitlines() if line.startswith("| VLM2Vec-V2 (Qwen2-VL-2B)"))
    assert [cell.strip() for cell in row.split("|")][-4:-1] == ["59.2", "max 1280 x 28^2", "own"]


def test_the_leaderboard_gets_its_own_form():
    images = results_of("mmeb", {"NIGHTS": 0.25})
    entry = leaderboard_entry("mmeb-v2", "m", {"mmeb": images})
    assert entry["metadata"]["model_name"] == "m" and entry["metadata"]["data_source"] == "Self-Reported"
    metrics = entry["metrics"]
    assert {part: len(subsets) for part, subsets in metrics.items()} == {"image": 36, "video": 18, "visdoc": 24}
    assert metrics["image"]["NIGHTS"] == {"hit@1": 0.25, "hit@5": 0.25, "hit@10": 0.25, "num_pred": 10, "num_data": 10}
    assert metrics["image"]["CIRR"] == metrics["visdoc"]["ViDoSeek-page-fixed"] == "FILE_N/A"
    assert "ViDoSeek-page" not in metrics["visdoc"] and "ViDoSeek-doc" in metrics["visdoc"]


def test_the_tasks_of_a_suite_have_distinct_names():
    for suite in SUITES.values():
        names = [name for benchmark in suite.benchmarks for name in subset_names(benchmark) or ()]
        assert len(names) == len(set(names)) and len(suite.benchmarks) == len(set(suite.benchmarks))


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write a subset of each part of MMEB-V2, and return the options that open them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    image, video, document = SUBSETS
    write_hub_dataset(tmp_path / "mmeb", {image: mmeb_miniature.published_rows(image)})
    mmeb_miniature.write_images(tmp_path / "mmeb", [image])
    video_miniature.write_subset(tmp_path / "v2", tmp_path / "frames", video)
    document_miniature.write_subset(tmp_path / "v2", document)
    places = {"mmeb_source": "mmeb", "mmeb_images": "mmeb", "mmeb_v2_source": "v2", "mmeb_v2_frames": "frames"}
    return {name: str(tmp_path / place) for name, place in places.items()}


def test_each_benchmark_takes_its_own_of_the_subsets(options: dict[str, Any]):
    opened = open_benchmarks(PARTS, BenchmarkArguments(**options, subsets=SUBSETS))
    assert {name: [task.name for task in tasks] for name, (tasks, _) in opened.items()} == {
        name: [subset] for name, subset in zip(PARTS, SUBSETS, strict=True)
    }
    assert list(open_benchmarks(PARTS, BenchmarkArguments(**options, subsets=["NIGHTS"]))) == ["mmeb"]
    with pytest.raises(ValueError, match="unknown subset 'CIFAR' of mmeb, mmeb-v2-video, .*: choose from ImageNet-1K"):
        open_benchmarks(PARTS, BenchmarkArguments(subsets=["NIGHTS", "CIFAR"]))
    with pytest.raises(ValueError, match="unknown subset 'NIGHTS' of urban1k: these have no subsets"):
        open_benchmarks(["urban1k"], BenchmarkArguments(subsets=["NIGHTS"]))


def test_part_of_a_suite_says_of_how_many_tasks_its_means_are(options: dict[str, Any], tmp_path: Path):
    places = [word for name, value in options.items() for word in (f"--{name}", value)]
    output = tmp_path / "out"
    command.main(
        ["--models", f"a model={TINY}", "--suite", "mmeb-v2", "--subsets", *SUBSETS, *places, "--output", str(output)]
    )
    table = (output / "table.md").read_text()
    for label in ("**All** (3 of 78 tasks)", "**Image** (1 of 36 tasks)", "**VisDoc** (1 of 24 tasks)"):
        assert f"| {label} " in table
    assert "not shown: they are of 1,000 queries in NIGHTS, and 8 queries were evaluated." in table
    assert "HMDB51" in (output / "mmeb-v2-video" / "table.md").read_text()
    results = json.loads((output / "results.json").read_text())["mmeb-v2"]["a model"]
    assert list(results["runs"]) == list(PARTS) and results["runs"]["mmeb"]["dtype"] == "float32"
    protocols = {name: results["runs"][name]["protocol"] for name in PARTS}
    assert (protocols["mmeb-v2-video"]["videos"], protocols["mmeb-v2-video"]["frames"]) == (
        "frames as separate images",
        8,
    )
    assert "videos" not in protocols["mmeb"] and protocols["mmeb"]["image_size"] is None
    entry = json.loads((output / "leaderboard" / "mmeb-v2" / "a_model.json").read_text())
    assert entry["metrics"]["video"]["HMDB51"]["hit@1"] == results["tasks"]["HMDB51"]["hit@1"]
    with pytest.raises(ValueError, match="unknown suite 'mmeb-v4': choose from paper, mmeb, mmeb-v2, retrieval"):
        command.main(["--models", "anything", "--suite", "mmeb-v4"])


def test_the_protocol_says_how_videos_were_read(
    options: dict[str, Any], tiny_model: Callable[[str], Path], tmp_path: Path
):
    model = f"a model={tiny_model('qwen2-vl')}"
    arguments = ["--models", model, "--benchmarks", "mmeb-v2-video", "--subsets", "HMDB51"]
    places = [word for name, value in options.items() for word in (f"--{name}", value)]
    for word, expected in (("auto", "video processor"), ("frames", "frames as separate images")):
        command.main([*arguments, *places, "--videos", word, "--frames", "2", "--output", str(tmp_path / "out")])
        results = json.loads((tmp_path / "out" / "results.json").read_text())["a model"]
        assert results["run"]["protocol"]["videos"] == expected
        assert results["embedded"]["items"] > 0  # the embeddings of the other option are not taken


@pytest.mark.slow
@pytest.mark.timeout(2000)  # two launches of at most 900 seconds
def test_every_suite_runs_on_its_miniature_and_two_processes_have_the_results_of_one(tmp_path: Path):
    results, tables = [], []
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        output = tmp_path / f"{processes}"
        arguments = ["--models", TINY, "--suite", *SUITES, "--miniature", "--output", output.name]
        subprocess.run(
            [sys.executable, *launcher, "-m", "unime.eval", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | offline,
            check=True,
            timeout=900,
        )
        results.append(json.loads((output / "results.json").read_text()))
        tables.append((output / "table.md").read_text())
    assert list(results[0]) == list(SUITES) and tables[0] == tables[1] and "nan" not in tables[0]
    for suite in SUITES:
        one, two = (result[suite]["unime-tiny"] for result in results)
        assert one["evaluated"] == one["expected"] and one["scores"] == two["scores"] and one["tasks"] == two["tasks"]
