"""Print the tables of the README for a tiny model, from its evaluations, or put them into the README.

    python recipes/tiny/readme_tables.py --evaluation RUN/evaluation --unseen RUN/unseen_images.json
    python recipes/tiny/readme_tables.py --evaluation RUN/evaluation --unseen RUN/unseen_images.json --readme README.md

`--evaluation` is the output of `unime eval` on the OpenMoji benchmark, `--unseen` that of benchmarks/unseen_images.py.
"""

import argparse
import json
import re
from pathlib import Path

from unime.eval.report.html_report import markdown_table, percent, table
from unime.json_output import to_json


UNSEEN_TITLES = {
    "openmoji": "OpenMoji",
    "openmoji on dark": "OpenMoji on dark backgrounds",
    "noto": "Noto",
    "fluent": "Fluent",
    "twemoji": "Twemoji",
    "emojione": "EmojiOne, an unseen artist",
    "stamps": "stamps of Tux Paint",
    "photographs": "photographs",
}
RESULTS_HEAD, UNSEEN_HEAD = "| hit@1, %", "| images "


def put_before(evaluation: Path, earlier: Path) -> None:
    """Put the columns of earlier results before those of an evaluation, in its results.json and table.md.

    Raises:
        ValueError: They are of benchmarks of different sizes.
    """
    columns = json.loads(earlier.read_text()) | json.loads((evaluation / "results.json").read_text())
    sizes = {json.dumps({name: task["candidates"] for name, task in c["tasks"].items()}) for c in columns.values()}
    if len(sizes) > 1:
        raise ValueError(f"{evaluation} and {earlier} have other numbers of candidates: evaluate with the same --size")
    (evaluation / "results.json").write_text(to_json(columns, indent=2) + "\n")
    (evaluation / "table.md").write_text(table(columns) + "\n")


def results_table(evaluation: Path) -> str:
    """Return the rows of means of an evaluation."""
    lines = table(json.loads((evaluation / "results.json").read_text())).split("\n\n")[0].splitlines()
    return "\n".join([*lines[:2], *(line for line in lines[2:] if line.startswith("| **"))])


def unseen_table(file: Path, title: str) -> str:
    """Return the scores on each set of unseen images; `title` is that of the model's column."""
    rows = {row["images"]: row for row in json.loads(file.read_text())["rows"]}
    cells = [["images", "candidates", "chance", "untrained", title]]
    for name, text in UNSEEN_TITLES.items():
        if (row := rows.get(name)) is not None:
            untrained = percent(row["untrained"]) if row["untrained"] != "" else ""
            cells.append([text, str(row["candidates"]), percent(row["chance"]), untrained, percent(row["hit@1"])])
    return markdown_table(cells)


def replace_table(text: str, head: str, new: str) -> str:
    """Replace the only table whose first line begins with `head`.

    Raises:
        ValueError: There is no such table, or several.
    """
    pattern = re.compile(rf"^{re.escape(head)}.*\n(?:\|.*\n)+", re.MULTILINE)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"there are {len(pattern.findall(text))} tables that begin with '{head}' instead of one")
    return pattern.sub(lambda _: new + "\n", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", type=Path, help="output folder of `unime eval`")
    parser.add_argument("--unseen", type=Path, help="JSON file of benchmarks/unseen_images.py")
    parser.add_argument("--title", default="unime-tiny", help="column of the model in the table of unseen images")
    parser.add_argument("--readme", type=Path, help="file whose tables are replaced; printed otherwise")
    parser.add_argument("--before", type=Path, help="results.json whose columns come first in --evaluation")
    options = parser.parse_args()
    if options.before:
        put_before(options.evaluation, options.before)
    tables = {}
    if options.evaluation:
        tables[RESULTS_HEAD] = results_table(options.evaluation)
    if options.unseen:
        tables[UNSEEN_HEAD] = unseen_table(options.unseen, options.title)
    if options.readme is None:
        print("\n\n".join(tables.values()))
        return
    text = options.readme.read_text()
    for head, new in tables.items():
        text = replace_table(text, head, new)
    options.readme.write_text(text)


if __name__ == "__main__":
    main()
