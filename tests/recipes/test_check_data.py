"""The data of a recipe is checked before it is trained on."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_every_bad_row_is_reported(
    script: Callable[[Path], ModuleType], pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    module = script(RECIPES / "check_data.py")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    recipe = [
        "--config",
        str(RECIPES / "llava-1.6-7b" / "stage2.yaml"),
        "--workers",
        "0",
    ]  # its other keys are passed over

    def run(path: Path) -> tuple[int, str]:
        command = [*recipe, "--dataset", str(path), "--image_root", str(pairs.parent)]
        classes = (module.DataArguments, module.ScriptArguments)
        with pytest.raises(SystemExit) as ended:
            module.main(*module.TrlParser(classes).parse_args_and_config(command, return_remaining_strings=True))
        return int(ended.value.code), capsys.readouterr().out

    assert run(pairs) == (0, f"all {len(rows)} rows can be trained on\n")
    rows[1]["positive"] = {"image": "gone.png"}
    rows[3]["positive"] = rows[3]["query"]
    rows[4]["query"] = {"instruction": "What is it?"}
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(map(json.dumps, rows)) + "\n")
    code, printed = run(bad)
    assert code == 1 and printed.splitlines()[-1] == f"3 of {len(rows)} rows are bad"
    gone, same, empty = printed.splitlines()[:-1]
    assert gone.startswith("bad.jsonl, row 1, positive: cannot read the picture") and "it does not exist" in gone
    assert same == "row 3 of task bad.jsonl: the query is its own positive"
    assert empty.startswith("row 4 of task bad.jsonl, query: expected 'text' or 'image'")
