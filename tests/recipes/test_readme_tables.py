"""Tables of the README from the results of a run, and what its card says of licenses."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from unime.openmoji.styles import HELD_OUT_STYLE, PACKAGES


ROOT = Path(__file__).resolve().parents[2]
README = """# Model

| images | candidates | chance | tiny |
| --- | --- | --- | --- |
| old | 1 | 2 | 3 |

Text between.

| hit@1, % | Old |
| --- | --- |
| old | 1 |
"""


@pytest.fixture
def tables(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(ROOT / "recipes" / "tiny" / "readme_tables.py")


def test_both_tables_of_a_readme_are_replaced(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = {
        "benchmark": "openmoji",
        "tasks": {"name_t2i": {"meta_task": "retrieval", "metric": "hit@1", "hit@1": 0.25, "candidates": 40}},
        "meta_tasks": {"retrieval": 0.25},
        "distributions": {},
        "overall": 0.25,
        "compositional": {"swap_obj": 0.75},
        "compositional_groups": {"swap": 0.75},
    }
    (tmp_path / "results.json").write_text(json.dumps({"New": column}))
    earlier = column | {"overall": 0.5, "meta_tasks": {"retrieval": 0.5}}
    (tmp_path / "earlier.json").write_text(json.dumps({"Stage 2": earlier}))
    rows = [
        {"images": "photographs", "candidates": 20, "chance": 0.05, "untrained": "", "hit@1": 0.1},
        {"images": "emojione", "candidates": 400, "chance": 0.0025, "untrained": 0.61, "hit@1": 0.3},
    ]
    (tmp_path / "unseen.json").write_text(json.dumps({"rows": rows}))
    readme = tmp_path / "README.md"
    readme.write_text(README)
    options = ["--before", tmp_path / "earlier.json", "--evaluation", tmp_path, "--unseen", tmp_path / "unseen.json"]
    options += ["--readme", readme, "--title", "new"]
    monkeypatch.setattr("sys.argv", ["readme_tables.py", *map(str, options)])
    tables.main()
    before, unseen, between, results = readme.read_text().rstrip("\n").split("\n\n")
    assert (before, between) == ("# Model", "Text between.")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in unseen.splitlines()]
    assert cells[0] == ["images", "candidates", "chance", "untrained", "new"]
    assert cells[2:] == [
        ["EmojiOne, an unseen artist", "400", "0.2", "61.0", "30.0"],
        ["photographs", "20", "5.0", "", "10.0"],
    ]
    names = [line.split("|")[1].strip() for line in results.splitlines()[2:]]
    assert names == ["**Retrieval**", "**Mean of tasks**", "**Compositional: swap**"]
    assert results.splitlines()[0].split("|")[2:4] == [" Stage 2 ", "  New "]
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["Stage 2", "New"]
    assert "|    50.0 | 25.0 |" in (tmp_path / "table.md").read_text()
    smaller = {"Smaller": column | {"tasks": {"name_t2i": column["tasks"]["name_t2i"] | {"candidates": 4}}}}
    (tmp_path / "earlier.json").write_text(json.dumps(smaller))
    with pytest.raises(ValueError, match="evaluate with the same --size"):
        tables.put_before(tmp_path, tmp_path / "earlier.json")
    with pytest.raises(ValueError, match="there are 0 tables that begin with '| images '"):
        tables.replace_table("no table", "| images ", "")


@pytest.mark.parametrize("file", ["notes.md", "notes-styles.md"])
def test_the_card_names_the_license_of_every_drawing(file: str) -> None:
    notes = " ".join((ROOT / "recipes" / "tiny" / file).read_text().split())
    assert "[OpenMoji](https://openmoji.org) (CC BY-SA 4.0)" in notes
    source, license = PACKAGES[HELD_OUT_STYLE].license.split(" (")[1].split("), ")
    assert f"(https://{source}) ({license}), used in evaluation only" in notes
    # The others are named where they are used.
    named = {name for name, package in PACKAGES.items() if package.license.split(" (")[1].split(")")[0] in notes}
    assert named == ({HELD_OUT_STYLE} if file == "notes.md" else set(PACKAGES))
