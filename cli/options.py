"""What several commands take, said once, and the loading of a model onto a device."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer


if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


Source = Annotated[str, typer.Argument(help="Folder of images and .txt files, .jsonl, Parquet, Hub id or 'openmoji'.")]
Text = Annotated[str, typer.Option(help="Column of the text.")]
Image = Annotated[str, typer.Option(help="Column of the image: a path or the encoded image.")]
Identifier = Annotated[str, typer.Option("--id", help="Column of the id.")]
ImageRoot = Annotated[Path | None, typer.Option(help="Folder that image paths start from.")]
Split = Annotated[str, typer.Option(help="Split of a Hub dataset.")]
Model = Annotated[str, typer.Option(help="Folder or Hub id of a checkpoint.")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the weights.")]
Device = Annotated[str | None, typer.Option(help="Such as 'cuda:1'; by default an accelerator if there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def printable(text: str) -> str:
    """A text on one line, without what a terminal would take for a command: it may quote what strangers wrote."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def load_onto(checkpoint: str, dtype: str, device: str | None) -> "tuple[PreTrainedModel, ProcessorMixin]":
    """Load a model onto a device, by default an accelerator if there is one.

    Raises:
        ValueError: This machine cannot compute there.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from ..checkpoint import load_model

    if device is None:
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    disable_progress_bar()  # of the weights' loading; commands show progress of their own
    model, processor = load_model(checkpoint, dtype=dtype)
    try:
        return model.to(device), processor
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"this machine cannot compute on {device}: {str(error).splitlines()[0]}") from None
