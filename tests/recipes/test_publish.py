"""Publishing: a card that the Hub can read, snippets that run, and no upload unless requested."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import HfArgumentParser

import unime.checkpoint
from unime import load_model
from unime.eval.report.model_card import eval_results, evaluated_card, model_index


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PREAMBLE = 'import torch\nfrom PIL import Image\nimage = Image.new("RGB", (30, 30), "red")\n'


def results(title: str, share: float) -> dict[str, object]:
    """Return results as `unime.eval` writes them, of two tasks and one compositional task."""
    task = {"meta_task": "retrieval", "metric": "hit@1", "hit@1": share}
    return {
        "model": title,
        "benchmark": "openmoji",
        "tasks": {"name_t2i": task, "name_i2t": task | {"hit@1": 0.5}},
        "meta_tasks": {"retrieval": (share + 0.5) / 2},
        "overall": (share + 0.5) / 2,
        "compositional": {"swap_obj": 0.75},
        "compositional_groups": {"swap": 0.75},
        "run": {"revision": "abc", "dtype": "float32", "date": "2026-01-01T00:00:00+00:00"},
    }


@pytest.fixture
def publish(script: Callable[[Path], ModuleType]) -> Callable[..., ModuleType]:
    def run(*arguments: object) -> ModuleType:
        module = script(RECIPES / "publish.py")
        module.main(*HfArgumentParser(module.ScriptArguments).parse_args_into_dataclasses([str(a) for a in arguments]))
        return module

    return run


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"Before": results("b", 0.0), "UniME": results("u", 0.25)}))
    (folder / "table.md").write_text("| a | table |\n")
    return folder


def test_a_card_shows_the_results_to_the_hub_and_to_readers(
    publish: Callable[..., ModuleType],
    tiny_model: Callable[[str], Path],
    evaluation: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    (tmp_path / "run.sh").write_text("python train.py\n")
    (tmp_path / "notes.md").write_text("## Limits\n\nIt is small.\n")
    output = tmp_path / "published model"
    publish(
        "--model", tiny_model("llava"), "--output_dir", output, "--evaluations", evaluation, "--title", "UniME",
        "--base_model", "org/backbone", "--datasets", "org/data", "--commands", tmp_path / "run.sh",
        "--notes", tmp_path / "notes.md",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "model.safetensors" in printed and "checked. To upload them, add --push" in printed

    card = ModelCard.load(output / "README.md")
    assert (card.data.base_model, card.data.datasets, card.data.license) == (
        "org/backbone",
        ["org/data"],
        "apache-2.0",
    )
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "sentence-transformers"
    assert [entry["name"] for entry in metadata["model-index"]] == ["published model"]
    values = {(entry.dataset_config, entry.metric_type): entry.metric_value for entry in card.data.eval_results}
    assert values == {
        ("name_t2i", "hit_at_1"): 25.0,
        ("name_i2t", "hit_at_1"): 50.0,
        ("swap_obj", "accuracy"): 75.0,
        ("mean of tasks", "hit_at_1"): 37.5,
        ("mean of swap", "accuracy"): 75.0,
    }
    for part in ("| a | table |", "python train.py", "It is small.", "## Prompts"):
        assert part in card.text
    assert json.loads((output / "results-openmoji.json").read_text())["Before"]["overall"] == 0.25
    assert not (output / ".eval_results").exists()  # OpenMoji is not a benchmark of the Hub


@pytest.mark.slow
def test_the_snippets_of_a_card_run_on_the_published_folder(
    publish: Callable[..., ModuleType], tiny_model: Callable[[str], Path], tmp_path: Path
):
    output = tmp_path / "published"
    publish("--model", tiny_model("llava"), "--output_dir", output, "--dtype", "float32")
    snippets = re.findall(r"```python\n(.*?)```", (output / "README.md").read_text(), flags=re.DOTALL)
    assert len(snippets) == 2
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    code = PREAMBLE + "\n".join(snippet.replace("path/to/this/folder", str(output)) for snippet in snippets)
    code += "\nassert embeddings.shape == (3, 32), embeddings.shape\n"
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr[-2000:]
    published, processor = load_model(str(output))
    source, source_processor = load_model(str(tiny_model("llava")), dtype="float32")
    np.testing.assert_allclose(published.encode("a", processor), source.encode("a", source_processor), atol=1e-6)


def test_only_a_push_uploads_the_folder(
    publish: Callable[..., ModuleType],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    calls = []

    class Hub:
        """A stand-in for the Hub API."""

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            calls.append((repo_id, private, exist_ok))

        def upload_folder(self, repo_id: str, folder_path: Path) -> str:
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())[:3]))
            return "address"

    monkeypatch.setattr(unime.checkpoint, "HfApi", Hub)
    arguments = ["--model", tiny_model("llava"), "--output_dir", tmp_path / "out"]
    publish(*arguments)
    assert calls == []
    publish(*arguments, "--push", "org/name", "--private", "true")
    assert calls[0] == ("org/name", True, True)
    assert calls[1] == ("org/name", ["1_Pooling", "2_Normalize", "README.md"])


def on_benchmark(name: str, queries: dict[str, int]) -> dict[str, object]:
    """Return results on tasks of a published benchmark, each with as many queries and candidates as given."""
    task = {"meta_task": "retrieval", "metric": "hit@1", "hit@1": 0.25}
    tasks = {task_name: task | {"queries": size, "candidates": size} for task_name, size in queries.items()}
    return results("u", 0.25) | {"benchmark": name, "tasks": tasks, "compositional": {}, "compositional_groups": {}}


def test_benchmarks_of_the_hub_get_a_results_file():
    entries = yaml.safe_load(eval_results(on_benchmark("mmeb", {"CIRR": 1000})))
    assert entries[0]["dataset"] == {"id": "TIGER-Lab/MMEB-eval", "task_id": "CIRR"}
    assert entries[0]["value"] == 25.0 and "revision abc, float32" in entries[0]["notes"]
    assert eval_results(results("u", 0.25)) is None


def test_a_set_other_than_the_published_one_does_not_enter_the_metadata_of_a_card(
    tiny_model: Callable[[str], Path], evaluation: Path
):
    """The tasks of the published size do; their mean does not."""
    part = on_benchmark("mmeb", {"CIRR": 1000, "NIGHTS": 20})
    assert [(entry.dataset_config, entry.metric_value) for entry in model_index(part)] == [("CIRR", 25.0)]
    assert [entry["dataset"]["task_id"] for entry in yaml.safe_load(eval_results(part))] == ["CIRR"]
    assert eval_results(on_benchmark("flickr30k", {"flickr30k_t2i": 174, "flickr30k_i2t": 174})) is None

    own = on_benchmark("urban1k", {"urban1k_t2i": 174, "urban1k_i2t": 174})
    (evaluation / "results.json").write_text(json.dumps({"UniME": own}))
    card = evaluated_card(load_model(str(tiny_model("llava")))[0], "mine", [evaluation])["README.md"]
    assert "## Results on a set other than the published urban1k\n\n| a | table |" in card
    assert "model-index" not in card
    whole = on_benchmark("urban1k", {"urban1k_t2i": 1000, "urban1k_i2t": 1000})
    (evaluation / "results.json").write_text(json.dumps({"UniME": whole}))
    card = evaluated_card(load_model(str(tiny_model("llava")))[0], "mine", [evaluation])["README.md"]
    assert "## Results on urban1k\n" in card and card.count("dataset:\n") == 3  # both directions and their mean
