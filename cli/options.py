"""Options that several commands share, the default model, loading onto a device, and safe terminal output."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer


if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


MODEL_HELP = "Folder or Hub id of a checkpoint; in a checkout of the repository, unime-tiny by default."

Source = Annotated[str, typer.Argument(help="Folder of images and .txt files, .jsonl, Parquet, Hub id or 'openmoji'.")]
TextColumn = Annotated[str, typer.Option("--text", help="Column of the text.")]
ImageColumn = Annotated[str, typer.Option("--image", help="Column of the image: a path or the encoded image.")]
IdColumn = Annotated[str, typer.Option("--id", help="Column of the id.")]
ImageRoot = Annotated[Path | None, typer.Option(help="Folder that relative image paths start from.")]
Split = Annotated[str, typer.Option(help="Split of a Hub dataset.")]
Metadata = Annotated[
    list[str] | None,
    typer.Option(help="Column to keep as metadata; can be repeated. All of them; '' for none."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Files and folders to leave out, such as '*.gif' or 'drafts'; can be repeated."),
]
Captions = Annotated[
    str | None,
    typer.Option(metavar="SUFFIX", help="Suffix of files with the texts of images, such as txt: a.txt for a.png."),
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Read what links in the folder lead to, on whatever disk.")
]
Model = Annotated[str | None, typer.Option(help=MODEL_HELP)]
ImageSize = Annotated[
    str | None,
    typer.Option(help="Size at which the model reads images, such as 336, or JSON of image processor arguments."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="How a published embedder is run: a preset, a .json file of one, 'none' or 'keep'; by default by its id."
    ),
]
DraftJpegs = Annotated[
    bool,
    typer.Option(
        "--draft-jpegs", help="Decode large JPEGs at 1/2 to 1/8 of their size, at least twice the size that is read."
    ),
]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the weights.")]
Device = Annotated[str | None, typer.Option(help="Such as 'cuda:1'; by default an accelerator if there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def model_or_default(model: str | None) -> str:
    """Return a model, or the one that a checkout of the repository contains if none is given.

    Raises:
        ValueError: No model is given and the package does not run from a checkout.
    """
    default = Path(__file__).resolve().parents[1] / "checkpoints" / "unime-tiny"  # resolved: strict installs link here
    if model is None and not default.is_dir():
        raise ValueError("name a model, the folder or Hub id of a checkpoint: only a checkout has a default")
    return model or str(default)


DEMONSTRATION = "unime-tiny"


def note_demonstration(model: str, corpus: str = "") -> None:
    """Say what the demonstration checkpoint knows if it is used on anything else than the OpenMoji drawings."""
    if Path(model).name == DEMONSTRATION and corpus != "openmoji":
        note = (
            "unime-tiny is a demonstration that knows drawings of emoji and hardly ever finds a photograph: name "
            "another --model for them, such as Qwen/Qwen3-VL-Embedding-2B"
        )
        typer.echo(note, err=True)


def load_onto(
    checkpoint: str,
    dtype: str,
    device: str | None,
    image_size: "int | dict[str, Any] | str | None",
    preset: str | None = None,
) -> "tuple[PreTrainedModel, ProcessorMixin]":
    """Return a model on a device, by default an accelerator if there is one, and its processor.

    Raises:
        FileNotFoundError: There is no such model or preset.
        ValueError: The device is not available, the model cannot read images at `image_size`, or the preset does not
            fit it.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from ..checkpoint import load_model

    if device is None:
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    disable_progress_bar()  # of loading weights; commands show their own progress
    model, processor = load_model(checkpoint, image_size, preset, dtype=dtype)
    try:
        return model.to(device), processor
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        raise ValueError(f"this machine cannot compute on {device}: {str(error).splitlines()[0]}") from None


def printable(text: str) -> str:
    """Return a text on one line without control characters, which an untrusted text might send to the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
