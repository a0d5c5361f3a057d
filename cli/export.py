"""`unime export`: write a checkpoint in the form that another program reads."""

import json
import sys
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, Model


class Format(StrEnum):
    """Form of the export."""

    plain = "plain"
    onnx = "onnx"


class Type(StrEnum):
    """Type of weights."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    output: Annotated[Path, typer.Option(help="Where to write: a new or an empty folder.")],
    format: Annotated[Format, typer.Option(help="plain: native classes, no code; onnx: text.")] = Format.plain,
    model: Model = "checkpoints/unime-tiny",
    dtype: Annotated[Type, typer.Option(help="Type of the weights; auto keeps theirs. ONNX is float32.")] = Type.auto,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint for serving engines (plain) or its text path for ONNX Runtime (onnx)."""
    if format is Format.onnx and dtype not in (Type.auto, Type.float32):
        raise ValueError(f"the ONNX form is float32, not {dtype.value}: leave --dtype out")

    report = {"format": format.value, "model": model, "output": str(output)}
    with redirect_stdout(sys.stderr):  # where libraries may print: standard output is the report's
        report |= _write_onnx(model, output) if format is Format.onnx else _write_plain(model, output, dtype.value)
    files = sorted(path for path in output.rglob("*") if path.is_file())
    report["files"] = {path.relative_to(output).as_posix(): path.stat().st_size for path in files}
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo("\n".join(f"{size:>14,} {name}" for name, size in report["files"].items()))
    measured = f", at most {report['largest difference']:.1e} from torch" if format is Format.onnx else ""
    typer.echo(f"wrote {output}{measured}")


def _write_onnx(model: str, output: Path) -> dict[str, Any]:
    from ..checkpoint import load_model
    from ..export.onnx import text_onnx

    return {"largest difference": text_onnx(*load_model(model, dtype="float32"), output)}


def _write_plain(model: str, output: Path, dtype: str) -> dict[str, Any]:
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    from ..checkpoint import load_model
    from ..export.plain import plain_checkpoint

    card = cached_file(model, "README.md", _raise_exceptions_for_missing_entries=False)
    plain_checkpoint(*load_model(model, dtype=dtype), output, card and ModelCard.load(card).data)
    return {}
