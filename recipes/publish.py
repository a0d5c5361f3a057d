"""Publish a trained checkpoint: merge its adapter, write it in half precision with a card, check it, push it if asked.

    python recipes/publish.py --model runs/unime-tiny/stage2 --title "Stage 2" --output_dir checkpoints/unime-tiny \
        --evaluations runs/unime-tiny/evaluation --commands recipes/tiny/unime-tiny.sh --notes recipes/tiny/notes.md

Without `--push` nothing leaves the machine: what would be uploaded is listed.
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
    """What to publish, what to say of it, and where it goes."""

    model: str = field(metadata={"help": "The trained checkpoint, or with `adapter` what it was trained on."})
    output_dir: str = field(metadata={"help": "Where the published checkpoint goes."})
    adapter: str | None = field(default=None, metadata={"help": "An adapter to merge first."})
    dtype: str = field(default="float16", metadata={"help": "Type of the published weights."})
    evaluations: list[str] = field(default_factory=list, metadata={"help": "Folders that unime.eval wrote."})
    title: str | None = field(default=None, metadata={"help": "The model's column there; the first if not given."})
    base_model: str | None = field(default=None, metadata={"help": "Hub id of the backbone."})
    datasets: list[str] = field(default_factory=list, metadata={"help": "Hub ids of what it was trained on."})
    license: str = field(default="apache-2.0", metadata={"help": "Licence of the weights."})
    commands: str | None = field(default=None, metadata={"help": "The shell script that made it; the card shows it."})
    notes: str | None = field(default=None, metadata={"help": "Markdown on the results, data, limits and licences."})
    push: str | None = field(default=None, metadata={"help": "Repository of the Hub to push to."})
    private: bool = field(default=False, metadata={"help": "Make that repository private."})


def main(script: ScriptArguments) -> None:
    model, processor = load_model(script.model, dtype=script.dtype)
    if script.adapter is not None:
        model = merge_adapter(load_adapter(model, script.adapter))
    metadata = {"license": script.license, "base_model": script.base_model, "datasets": script.datasets or None}
    name, made = Path(script.output_dir).name, {"notes": script.notes, "commands": script.commands}
    files = evaluated_card(model, name, script.evaluations, script.title, **made, **metadata)
    output = save_checkpoint(model, processor, script.output_dir)
    write_files(output, files)

    again, its_processor = load_model(str(output), dtype="float32")
    items = ["a text to check", {"text": "another", "instruction": "Find me an everyday image:"}]
    difference = np.abs(again.encode(items, its_processor) - model.float().encode(items, processor)).max()
    if difference > 1e-5:
        raise ValueError(f"{output} gives other embeddings than {script.model} (by {difference:.1e}): do not use it")
    if script.push is None:
        sizes = {path.relative_to(output): path.stat().st_size for path in output.rglob("*") if path.is_file()}
        for path, size in sorted(sizes.items()):
            print(f"{size:>12,} {path}")
        print(f"{sum(sizes.values()) / 1e6:.1f} MB in {output}, checked. Give --push ORG/NAME to upload them.")
    else:
        print(push_folder(output, script.push, script.private))


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
