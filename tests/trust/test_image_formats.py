"""The table of image formats in the docs is what every interface does with a file of each format."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import gradio
import numpy as np
import pandas as pd
import pytest
import typer
from format_files import FILES, FormatFile
from PIL import Image
from small_index import TINY, rows
from typer.testing import CliRunner

from unime import image_formats
from unime.cli import embed
from unime.data.jsonl import load_rows
from unime.index.index import Index
from unime.page.uploads import open_upload


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "image-formats.md"
WITH_EXTRA = "HEIC with the extra `heic`"
COLUMNS = ("encode", "embed", "index", "training row", "server", "page")
SHOWN, REJECTED, OTHER_IMAGE = "yes", "no", "thumbnail"

Outcome = Image.Image | np.ndarray | str  # what an interface makes of a file, or its message


def cell(file: FormatFile, outcome: Outcome, encode: Callable) -> str:
    """Return what the table says, such as `SHOWN` for the right image, or what is wrong."""
    if isinstance(outcome, str):
        return REJECTED if isinstance(file.shown, str) and file.shown in outcome else outcome
    if isinstance(file.shown, str):
        return OTHER_IMAGE  # Pillow opens what the file holds beside its image
    if isinstance(outcome, np.ndarray):
        cosine = float(outcome @ encode(file.shown))
        return SHOWN if cosine > 0.99 else f"cosine {cosine:.3f}"
    same_size = outcome.mode == "RGB" and outcome.size == file.shown.size
    difference = np.abs(np.asarray(outcome, np.int16) - np.asarray(file.shown, np.int16)).mean() if same_size else 255
    return SHOWN if difference < 4 else f"difference {difference:.1f}"


def message_of(call: Callable[[], Outcome]) -> Outcome:
    """Return the result of a call, or the message of its error."""
    try:
        return call()
    except (ValueError, gradio.Error) as error:
        return getattr(error, "message", None) or str(error)


def opened_by_the_user(file: FormatFile, encode: Callable) -> Outcome:
    try:
        image = Image.open(BytesIO(file.content))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:  # of Pillow, before the image reaches this package
        return str(file.shown) if isinstance(file.shown, str) else str(error)
    return message_of(lambda: encode({"image": image}))


def of_command(command: Callable, source: Path, output: Path, rejected: Path) -> dict[str, Outcome]:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    done = CliRunner().invoke(app, [str(source), str(output), "--model", TINY, "--instruction", "", "--json"])
    assert done.exit_code == 0, done.output
    if (output / "index.json").exists():
        vectors = {name: np.array(row["vector"]) for name, row in rows(Index.open(output)).items()}
    else:
        table = pd.read_parquet(output)
        vectors = dict(zip(table["id"], table["embedding"], strict=True))
    reasons = [json.loads(line) for line in rejected.read_text().splitlines()] if rejected.exists() else []
    assert json.loads(done.stdout[done.stdout.index("{") :])["rejected"] == len(reasons)
    return vectors | {row["id"]: row["reason"] for row in reasons}


def cells_of(files: Mapping[str, FormatFile], folder: Path, encode: Callable, ask: Callable) -> dict[str, list[str]]:
    """Return a row of the table, with a cell for each of `COLUMNS`, per file."""
    (folder / "images").mkdir()
    names = {name: f"{number}{file.suffix}" for number, (name, file) in enumerate(files.items())}
    with (folder / "rows.jsonl").open("w") as lines:
        for name, file in files.items():
            (folder / "images" / names[name]).write_bytes(file.content)
            row = {"query": {"text": "a"}, "positive": {"image": f"images/{names[name]}"}}
            lines.write(json.dumps(row) + "\n")
    training = load_rows(folder / "rows.jsonl")
    embedded = of_command(embed.embed, folder / "images", folder / "out", folder / "out.rejected.jsonl")
    indexed = of_command(embed.index, folder / "images", folder / "index", folder / "index" / "rejected.jsonl")
    assert embedded.keys() == indexed.keys() == set(names.values())  # every file is accounted for

    def of_row(number: int) -> Outcome:
        return training[number]["positives"][0]["image"][0]

    def of_server(file: FormatFile) -> Outcome:
        url = f"data:image/png;base64,{base64.b64encode(file.content).decode()}"
        return ask([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])

    table = {}
    for number, (name, file) in enumerate(files.items()):
        path = str(folder / "images" / names[name])
        outcomes = (
            opened_by_the_user(file, encode), embedded[names[name]], indexed[names[name]],
            message_of(partial(of_row, number)), of_server(file), message_of(partial(open_upload, path)),
        )  # fmt: skip
        table[name] = [cell(file, outcome, encode) for outcome in outcomes]
    return table


def rendered(table: Mapping[str, list[str]]) -> list[str]:
    """Return the rows of the table in Markdown; those of the eight EXIF orientations as one."""
    lines = {}
    for name, cells in table.items():
        title = re.sub(r"orientation \d", "orientation 1 to 8", name)
        line = f"| {' | '.join([title, FILES[name].note, *cells])} |"
        assert lines.setdefault(title, line) == line
    return [re.sub(r" +", " ", line) for line in lines.values()]


def table_of_page() -> list[str]:
    return [re.sub(r" +", " ", line) for line in PAGE.read_text().splitlines() if line.startswith("|")]


@pytest.mark.slow
def test_the_docs_say_what_is_done_with_each_format(
    tmp_path: Path, encode: Callable, ask: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_formats, "image_formats", lambda: image_formats.IMAGE_FORMATS)  # without the extra
    head, _, *lines = table_of_page()
    assert head == f"| {' | '.join(['format', 'what is shown', *COLUMNS])} |"
    expected = rendered(cells_of({name: FILES[name] for name in FILES if name != WITH_EXTRA}, tmp_path, encode, ask))
    assert [line for line in lines if not line.startswith(f"| {WITH_EXTRA}")] == expected, "\n".join(expected)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pillow_heif") is None, reason="needs the extra heic")
def test_the_docs_say_what_is_done_with_heic(tmp_path: Path, encode: Callable, ask: Callable) -> None:
    (line,) = rendered(cells_of({WITH_EXTRA: FILES[WITH_EXTRA]}, tmp_path, encode, ask))
    assert line in table_of_page(), line
