"""The command `unime` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import metadata_load
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from typer.testing import CliRunner, Result

from unime import UniMEModel, __version__, load_model, processor_from_backbone, save_checkpoint
from unime.cli.main import app, main
from unime.trainers import load_adapter


ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "checkpoints" / "unime-tiny")


def unime(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def checkpoint(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """Save a random model with its processor."""
    torch.manual_seed(0)
    model = UniMEModel.from_backbone(AutoConfig.from_pretrained(tiny_model("llava")))
    return save_checkpoint(model.eval(), processor_from_backbone(str(tiny_model("llava"))), tmp_path / "checkpoint")


def test_info_describes_a_checkpoint():
    described = json.loads(unime("info", TINY, "--json").stdout)
    model, _ = load_model(TINY)
    assert described["parameters"] == sum(weight.numel() for weight in model.state_dict().values())  # as on the Hub
    assert (described["backbone"], described["dimensions"], described["types"]) == ("fast_vlm", 192, "F16, I64")
    version = json.loads((Path(TINY) / "config.json").read_text())["transformers_version"]
    assert described["written by transformers"] == version
    assert described["prompts"]["classification"] == "Represent the given image for classification"
    printed = unime("info", TINY).stdout
    assert "classification: Represent the given image" in printed and "document: (one-word prompt)" in printed


def test_every_bad_row_is_reported(tmp_path: Path):
    Image.new("RGB", (24, 24), "red").save(tmp_path / "0.png")
    image = {"image": "0.png", "instruction": "Represent the given image."}
    rows = [{"query": {"text": f"caption {i}"}, "positive": image, "negatives": []} for i in range(6)]

    def check(name: str, *options: str) -> Result:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        # The other settings of the recipe are ignored.
        recipe = ROOT / "recipes" / "llava-1.6-7b" / "stage2.yaml"
        data = ("--dataset", tmp_path / name, "--image-root", tmp_path)
        return unime("check-data", recipe, "--workers", 0, *options, *data)

    good = check("good.jsonl")
    assert (good.exit_code, good.stdout) == (0, "all 6 rows are valid\n")
    rows[1]["positive"] = {"image": "gone.png"}
    rows[3]["positive"] = rows[3]["query"]
    rows[4]["query"] = {"instruction": "What is it?"}
    bad = check("bad.jsonl")
    gone, same, empty, count = bad.stdout.splitlines()
    assert bad.exit_code == 1 and count == "3 of 6 rows are bad"
    assert gone.startswith("bad.jsonl, row 1, positive: cannot read the image") and "it does not exist" in gone
    assert same == "bad.jsonl, row 3: the query equals its positive; fix or remove the row"
    assert empty.startswith("bad.jsonl, row 4, query: ") and "'text' or 'image'" in empty
    listed = check("bad.jsonl", "--max_shown", 1, "--json")
    assert listed.exit_code == 1
    counts = {"several_positives": 0, "query_as_positive": 0, "right_negatives": 0}
    assert json.loads(listed.stdout) == {"rows": 6, "bad": [gone, same, empty], **counts}


def test_texts_of_stage_1_are_checked(tmp_path: Path):
    recipe = ROOT / "recipes" / "tiny" / "stage1.yaml"
    lines = ['{"text": "a"}', '{"text": 3}', "no JSON", '{"text": "b"}']
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    bad = unime("check-data", recipe, "--dataset", tmp_path / "texts.jsonl")
    assert bad.exit_code == 1
    assert bad.stdout.splitlines() == [
        "texts.jsonl, row 1: 'text' must be a string, got int: fix or remove the row",
        "texts.jsonl, row 2 is not a JSON object: fix or remove the line",
        "2 of 4 rows are bad",
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines[::3]))
    renamed = tmp_path / "other.yaml"
    renamed.write_text(f"dataset: {tmp_path / 'texts.jsonl'}\n")
    assert unime("check-data", renamed, "--stage", 1).stdout == "all 2 rows are valid\n"
    triplets = {"anchor": ["a", "b"], "positive": ["c", ""], "negative": ["a", "d"]}
    (tmp_path / "triplets").mkdir()
    Dataset.from_dict(triplets).to_parquet(tmp_path / "triplets" / "train.parquet")
    renamed.write_text(f"dataset: {tmp_path / 'triplets'}\ncolumns: {{text: [anchor, positive, negative]}}\n")
    assert unime("check-data", renamed, "--stage", 1).stdout == "all 4 rows are valid\n"


def test_queries_of_several_rows_are_counted(tmp_path: Path):
    Image.new("RGB", (24, 24), "red").save(tmp_path / "red.png")
    image = {"image": "red.png", "instruction": "Find a caption."}
    shown = {"image": "red.png", "instruction": "Represent the given image."}
    captions = [{"text": text} for text in ("a red square", "one square in red", "a blue square", "a circle")]
    rows = [
        {"query": image, "positive": captions[0], "negatives": [captions[1], captions[2]]},
        {"query": image, "positive": captions[1]},
        {"query": image, "positive": captions[2], "task": "another"},
        {"query": captions[0], "positive": shown, "negatives": [captions[3]]},
        {"query": {"text": "round"}, "positive": captions[3], "negatives": [{"text": "round"}]},
        {"query": {"text": "round"}, "positive": captions[3]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = unime("check-data", ROOT / "recipes" / "tiny" / "stage2.yaml", "--dataset", tmp_path / "rows.jsonl")
    assert checked.exit_code == 0
    assert checked.stdout.splitlines() == [
        "all 6 rows are valid",
        "2 of 6 rows have a query that other rows give other positives",  # rows 0 and 1; row 2 is of another task
        "4 of 6 rows have a query that is the positive of another row",  # rows 0 to 2, and 3
        "2 of 6 rows have a negative that is a positive of the query, or the query itself; it is not used",  # 0 and 4
    ]


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """Write an adapter that changes what the checkpoint embeds."""
    model, _ = load_model(str(checkpoint))
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({key: torch.randn(x.shape, generator=generator) for key, x in load_file(file).items()}, file)
    return tmp_path / "adapter"


def test_merging_keeps_the_effect_of_the_adapter(checkpoint: Path, adapter: Path, tmp_path: Path):
    merged = unime("merge", checkpoint, adapter, tmp_path / "merged")
    assert merged.exit_code == 0 and merged.stdout == f"merged into {tmp_path / 'merged'}\n"
    items = ["one text", {"text": "another", "instruction": "Find it:"}]
    model, processor = load_model(str(checkpoint))
    before = model.encode(items, processor)
    adapted = load_adapter(model, adapter).get_base_model().encode(items, processor)
    after, its_processor = load_model(str(tmp_path / "merged"))
    np.testing.assert_allclose(after.encode(items, its_processor), adapted, atol=1e-5)
    assert np.abs(adapted - before).max() > 0.01


def test_a_merge_that_changes_the_embeddings_is_refused(checkpoint: Path, adapter: Path, monkeypatch, tmp_path: Path):
    monkeypatch.setattr("unime.trainers.adapter.merge_adapter", lambda adapted: adapted.unload())  # loses the adapter
    refused = unime("merge", checkpoint, adapter, tmp_path / "merged")
    assert isinstance(refused.exception, ValueError) and "changed the embeddings (cosine" in str(refused.exception)
    assert not (tmp_path / "merged").exists()


def test_a_card_is_written_from_an_evaluation(checkpoint: Path, tmp_path: Path):
    output = tmp_path / "evaluation"
    done = unime("eval", "--model", f"Mine={checkpoint}", "--benchmark", "openmoji", "--size", 10, "--output", output)
    assert done.exit_code == 0, done.output
    results = json.loads((output / "results.json").read_text())["Mine"]
    assert results["run"]["command"].startswith("python -m unime.eval --model ")
    (tmp_path / "notes.md").write_text("An untrained model.")
    written = unime("card", checkpoint, "--evaluation", output, "--notes", tmp_path / "notes.md", "--dataset", "a/b")
    assert written.exit_code == 0 and str(checkpoint / "README.md") in written.stdout
    card = (checkpoint / "README.md").read_text()
    assert "An untrained model." in card and (output / "table.md").read_text().strip() in card
    metadata = metadata_load(checkpoint / "README.md")
    assert metadata["datasets"] == ["a/b"]
    scores = {
        result["dataset"]["config"]: result["metrics"][0]["value"] for result in metadata["model-index"][0]["results"]
    }
    assert scores["mean of tasks"] == round(100 * results["overall"], 2)
    refused = unime("card", checkpoint, "--evaluation", output, "--title", "Yours")
    assert "has no column 'Yours': it has Mine" in str(refused.exception)


def test_invalid_input_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("sys.argv", ["unime", "info", str(ROOT / "checkpoints" / "tiny-backbone")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "has the type 'llava' and is not a UniME checkpoint" in capsys.readouterr().err


def test_help_names_every_command():
    names = (
        "embed",
        "index",
        "search",
        "serve",
        "export",
        "eval",
        "check-data",
        "prepare",
        "merge",
        "average",
        "card",
        "info",
    )
    for option in ("-h", "--help"):
        assert all(f"\n  {name} " in unime(option).stdout for name in names)


def test_the_version_is_that_of_the_package():
    assert unime("--version").stdout == f"unime {__version__}\n"


def test_underscores_in_options_are_accepted():
    refused = unime("serve", "--batch_items", 0)
    assert refused.exit_code == 2 and "Invalid value for '--batch-items'" in refused.stderr


def test_the_help_of_eval_names_the_command():
    for option in ("-h", "--help"):
        shown = unime("eval", option)
        assert shown.exit_code == 0 and shown.stdout.startswith("usage: unime eval ")


def test_the_default_model_is_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert json.loads(unime("info", "--json").stdout)["checkpoint"] == TINY


COMMANDS_WITH_A_DEFAULT = [
    ("info",),
    ("embed", "images", "vectors"),
    ("index", "images", "index"),
    ("serve", "--port", "0"),
    ("export", "--output", "exported"),
]


@pytest.mark.parametrize("words", COMMANDS_WITH_A_DEFAULT, ids=lambda words: words[0])
def test_without_a_checkout_a_missing_model_is_reported(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("unime.cli.options.__file__", str(tmp_path / "cli" / "options.py"))
    monkeypatch.chdir(tmp_path)
    refused = unime(*words)
    assert isinstance(refused.exception, ValueError)
    assert str(refused.exception).startswith("name a model, the folder or Hub id of a checkpoint: ")


@pytest.mark.parametrize(
    "words",
    [
        ("info", "{gone}"),
        ("embed", "{corpus}", "vectors", "--model", "{gone}"),
        ("index", "{corpus}", "index", "--model", "{gone}"),
        ("serve", "--port", "0", "--model", "{gone}"),
        ("export", "--output", "exported", "--model", "{gone}"),
    ],
    ids=lambda words: words[0],
)
def test_a_model_folder_that_does_not_exist_is_reported_without_asking_the_hub(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("a")
    for gone in (str(tmp_path / "gone"), "./gone/model"):
        refused = unime(*(word.format(gone=gone, corpus=tmp_path / "corpus") for word in words))
        assert isinstance(refused.exception, (ValueError, OSError)), refused.output
        assert str(refused.exception).startswith(f"there is no folder {gone}: ")
