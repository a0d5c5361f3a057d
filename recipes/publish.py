"""Publish a trained checkpoint: merge its adapter, save it in half precision with a model card, check it, push it.

    python recipes/publish.py --model runs/unime-tiny/stage2 --title "Stage 2" --output_dir runs/published \
        --evaluations runs/unime-tiny/evaluation --commands recipes/tiny/unime-tiny.sh --notes recipes/tiny/notes.md

Nothing is uploaded without `--push`; the script lists the files that would be.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import HfArgumentParser

from unime import load_model, save_checkpoint
from unime.checkpoint import push_folder
from unime.eval.report.model_card import evaluated_card, write_files
from unime.trainers import load_adapter, merge_adapter


@dataclass
class ScriptArguments:
    """The checkpoint, the contents of its card, and the destination."""

    model: str = field(metadata={"help": "Trained checkpoint, or with `adapter` the model it was trained on."})
    output_dir: str = field(metadata={"help": "Folder for the published checkpoint."})
    adapter: str | None = field(default=None, metadata={"help": "Folder of an adapter to merge first."})
    dtype: str = field(default="float16", metadata={"help": "Dtype of the published weights."})
    evaluations: list[str] = field(default_factory=list, metadata={"help": "Output folders of `unime eval`."})
    title: str | None = field(
        default=None, metadata={"help": "Name of the model in the evaluations. Default: the first one."}
    )
    base_model: str | None = field(default=None, metadata={"help": "Hub id of the backbone."})
    datasets: list[str] = field(default_factory=list, metadata={"help": "Hub ids of the training datasets."})
    license: str = field(default="apache-2.0", metadata={"help": "License of the weights."})
    commands: str | None = field(
        default=None, metadata={"help": "Shell script that trained the model; shown in the card."}
    )
    notes: str | None = field(
        default=None, metadata={"help": "Markdown file on the results, data, limits and licenses."}
    )
    push: str | None = field(default=None, metadata={"help": "Hub repository to push to, such as ORG/NAME."})
    private: bool = field(default=False, metadata={"help": "Make the repository private."})


def main(script: ScriptArguments) -> None:
    model, processor = load_model(script.model, dtype=script.dtype)
    if script.adapter is not None:
        model = merge_adapter(load_adapter(model, script.adapter))
    metadata = {"license": script.license, "base_model": script.base_model, "datasets": script.datasets or None}
    name, contents = Path(script.output_dir).name, {"notes": script.notes, "commands": script.commands}
    files = evaluated_card(model, name, script.evaluations, script.title, **contents, **metadata)
    output = save_checkpoint(model, processor, script.output_dir)
    write_files(output, files)

    saved, saved_processor = load_model(str(output), dtype="float32")
    items = ["a text to check", {"text": "another", "instruction": "Find me an everyday image:"}]
    difference = np.abs(saved.encode(items, saved_processor) - model.float().encode(items, processor)).max()
    if difference > 1e-5:
        raise ValueError(
            f"the embeddings of {output} differ from those of {script.model} (by {difference:.1e}): do not publish it"
        )
    if script.push is None:
        sizes = {path.relative_to(output): path.stat().st_size for path in output.rglob("*") if path.is_file()}
        for path, size in sorted(sizes.items()):
            print(f"{size:>12,} {path}")
        print(f"{sum(sizes.values()) / 1e6:.1f} MB in {output}, checked. To upload them, add --push ORG/NAME.")
    else:
        print(push_folder(output, script.push, script.private))


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
