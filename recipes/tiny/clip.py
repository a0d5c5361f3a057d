"""Train the CLIP baseline: the same size, rows, loss and time as UniME, with two towers and 77 tokens.

python recipes/tiny/clip.py --config recipes/tiny/clip.yaml --seconds 300 --output_dir runs/tiny/clip
"""

import time
from dataclasses import dataclass, field
from functools import partial

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoTokenizer, CLIPProcessor, TrainerCallback, set_seed
from trl import TrlParser

from unime.data.collator import ContrastiveCollator
from unime.eval.encoders.clip import CLIPEmbedder, clip_micro_batches, tiny_clip
from unime.openmoji.dataset import openmoji_rows
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


@dataclass
class ScriptArguments:
    """How long to train, and on what."""

    seconds: float = field(default=300, metadata={"help": "Wall time of the training, the same as UniME's."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "CLIP that goes on. Default: anew."})
    tokenizer: str = field(default="checkpoints/tiny-backbone", metadata={"help": "Where the tokenizer is."})
    num_rows: int = field(default=100_000, metadata={"help": "Rows to take from the OpenMoji world."})
    dataset_seed: int = field(default=0, metadata={"help": "Seed of the OpenMoji world."})
    items_per_micro_batch: int = field(default=64, metadata={"help": "Items of one kind in a forward pass."})


class Clock(TrainerCallback):
    """Stops the training when its time is over, and says what share of it has passed."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.start = time.monotonic()

    def passed(self) -> float:
        """Share of the time that has passed, at most 1."""
        return min(1.0, (time.monotonic() - self.start) / self.seconds)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.start = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_training_stop = control.should_training_stop or self.passed() == 1


def main(script: ScriptArguments, args: ContrastiveConfig) -> None:
    set_seed(args.seed)
    if script.model_name_or_path is None:
        model, processor = tiny_clip(AutoTokenizer.from_pretrained(script.tokenizer))
    else:
        model = CLIPEmbedder.from_pretrained(script.model_name_or_path)
        processor = CLIPProcessor.from_pretrained(script.model_name_or_path)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    clock = Clock(script.seconds)
    optimizer = AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    # The rate falls with the time, not with steps that nobody can count beforehand.
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / args.warmup_steps) * (1 - clock.passed()))
    trainer = ContrastiveTrainer(
        model,
        args,
        train_dataset=openmoji_rows("train", script.num_rows, seed=script.dataset_seed),
        data_collator=ContrastiveCollator(
            partial(clip_micro_batches, processor, batch_size=script.items_per_micro_batch)
        ),
        callbacks=[clock],
        optimizers=(optimizer, schedule),
    )
    trainer.train()
    trainer.save_state()
    if trainer.is_world_process_zero():
        model.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, ContrastiveConfig)).parse_args_and_config())
