"""`unime export`: write a checkpoint in a format that other programs read."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..json_output import to_json
from .options import AsJson, ImageSize, Model, model_or_default


def export(
    output: Annotated[Path, typer.Option(help="Output folder, new or empty.")],
    format: Annotated[
        Literal["plain", "onnx"],
        typer.Option(help="plain: native classes without code; onnx: graphs."),
    ] = "plain",
    model: Model = None,
    image_size: ImageSize = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Type of the weights; auto keeps their type. ONNX is always float32."),
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint for serving engines (plain), or as graphs for ONNX Runtime (onnx)."""
    if format == "onnx" and dtype not in ("auto", "float32"):
        raise ValueError(f"an ONNX export is float32, not {dtype}: leave --dtype out")
    model = model_or_default(model)

    report: dict[str, Any] = {"format": format, "model": model, "output": str(output)}
    with redirect_stdout(sys.stderr):  # libraries may print, and standard output is for the report
        report |= _write_onnx(model, output) if format == "onnx" else _write_plain(model, output, dtype, image_size)
    files = sorted(path for path in output.rglob("*") if path.is_file())
    report["files"] = {path.relative_to(output).as_posix(): path.stat().st_size for path in files}
    if as_json:
        typer.echo(to_json(report, indent=2))
        return
    typer.echo("\n".join(f"{size:>14,} {name}" for name, size in report["files"].items()))
    difference = f", largest difference from torch {report['largest difference']:.1e}" if format == "onnx" else ""
    typer.echo(f"wrote {output}{difference}")


def _write_onnx(model: str, output: Path) -> dict[str, Any]:
    from ..checkpoint import load_model
    from ..export.onnx import export_onnx

    return {"largest difference": export_onnx(*load_model(model, dtype="float32"), output)}


def _write_plain(model: str, output: Path, dtype: str, image_size: str | None) -> dict[str, Any]:
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    from ..checkpoint import load_model
    from ..export.plain import export_plain

    network, processor = load_model(model, image_size, dtype=dtype)
    card = cached_file(model, "README.md", _raise_exceptions_for_missing_entries=False)
    export_plain(network, processor, output, card and ModelCard.load(card).data)
    return {}
