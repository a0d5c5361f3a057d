"""`unime prepare`: write a training set once, with its images at the size that the model reads."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ..extras import require_extra


@dataclass
class ModelArguments:
    """What the rows are prepared for, from the recipe."""

    model_name_or_path: str = field(metadata={"help": "Backbone or checkpoint; only its processor is read."})
    max_length: int | None = field(default=None, metadata={"help": "Maximum number of tokens of an item."})


def prepare(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML of a stage-2 recipe; options may override its settings.")],
    output: Annotated[Path, typer.Option(help="Folder of the prepared rows: the `dataset` of the training.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes that work in parallel.")] = 2,
    shard_index: Annotated[int, typer.Option(help="Share of the files that this run writes, from 0.")] = 0,
    num_shards: Annotated[int, typer.Option(help="Number of runs, on several machines, that share the files.")] = 1,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Write every image as PNG; by default all but drawings are JPEG.")
    ] = False,
) -> None:
    """Read the rows of a recipe, and write them with images resized to the recipe's image_size and encoded again.

    A run that was killed continues where it stopped when it is started again. Bad rows are listed, with the reason, in
    OUTPUT/rejected.jsonl; training with it as rejected_file skips them, and otherwise stops at the first one.
    """
    require_extra("train", "trl")

    from datasets import Dataset
    from trl import TrlParser

    from ..batching_unime import default_max_length
    from ..checkpoint import load_processor
    from ..checkpoint_safety import read_config
    from ..configuration_unime import UniMEConfig
    from ..data.prepared import REJECTED_FILE, RowPreparation, is_prepared, prepare_rows
    from ..data.sources import DataArguments, open_rows, settings_of_rows
    from ..image_tokens_unime import patch_share

    arguments = ["--config", str(config), *context.args]
    parser = TrlParser((DataArguments, ModelArguments))
    data, model, _ = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    if data.dataset == "openmoji":
        raise ValueError("the OpenMoji rows are drawn when they are read: there is nothing to prepare")
    if is_prepared(data.dataset):
        raise ValueError(f"{data.dataset} is prepared already: give the dataset that it was made of")
    # The files number all rows of the dataset; streamed rows have no numbers.
    data = replace(data, streaming=False, mined_file=None, rejected_file=None)
    model_config = read_config(model.model_name_or_path)
    backbone: Any = model_config.backbone_config if isinstance(model_config, UniMEConfig) else model_config
    processor = load_processor(model.model_name_or_path, data.image_size, data.preset)
    max_length = model.max_length or default_max_length(processor, model_config)
    settings = {
        "dataset": data.dataset,
        "data": settings_of_rows(data),
        "max_length": max_length,
        "lossless": lossless,
        "patch_share": patch_share(backbone),
        "image_processor": processor.image_processor.to_dict(),
        "chat_template": processor.chat_template,
    }
    rows = cast(Dataset, open_rows(data))
    row_preparation = RowPreparation(processor, backbone, max_length, lossless)
    written, num_files = prepare_rows(rows, row_preparation, output, settings, workers, shard_index, num_shards)
    if written < num_files:
        typer.echo(f"{written} of {num_files} files are written: run the other shards too")
        return
    num_rejected = len((output / REJECTED_FILE).read_text().splitlines())
    typer.echo(f"{len(rows)} rows are in {output}, {num_rejected} of them bad")
    if num_rejected:
        typer.echo(f"the bad rows and the reasons are in {output / REJECTED_FILE}")
