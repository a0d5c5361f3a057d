"""Train the CLIP baseline: the size, rows, loss and time of UniME, but with two towers and 77 tokens.

python recipes/tiny/clip.py --config recipes/tiny/clip.yaml --seconds 300 --output_dir runs/tiny/clip
"""

import time
from dataclasses import dataclass, field
from functools import partial

from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import AutoTokenizer, CLIPProcessor, ProgressCallback, TrainerCallback, set_seed
from trl import TrlParser

from unime.checkpoint_safety import give_weights_the_umask
from unime.data.collator import ContrastiveCollator
from unime.eval.encoders.clip import CLIPEmbedder, clip_micro_batches, tiny_clip
from unime.openmoji.dataset import openmoji_rows
from unime.trainers import ContrastiveConfig, ContrastiveTrainer


@dataclass
class ScriptArguments:
    """Training time and data."""

    seconds: float = field(default=300, metadata={"help": "Wall time of the training in seconds."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "CLIP to continue from. Default: random weights."}
    )
    tokenizer: str = field(default="checkpoints/tiny-backbone", metadata={"help": "Folder of the tokenizer."})
    num_rows: int = field(default=100_000, metadata={"help": "Number of OpenMoji rows."})
    dataset_seed: int = field(default=0, metadata={"help": "Seed of the OpenMoji rows."})
    items_per_micro_batch: int = field(default=64, metadata={"help": "Texts or images in a forward pass."})


class TimeLimit(TrainerCallback):
    """Callback that stops the training when its time is over, and shows its seconds, as its steps are not known.

    Args:
        seconds (`float`): Wall time of the training.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.start = time.monotonic()

    def elapsed_share(self) -> float:
        """Return the share of the time that has elapsed, at most 1."""
        return min(1.0, (time.monotonic() - self.start) / self.seconds)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.start = time.monotonic()
        hidden = args.disable_tqdm or not state.is_world_process_zero
        self.bar = tqdm(total=round(self.seconds), desc="Training CLIP", unit="s", disable=hidden)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.bar.update(round(self.elapsed_share() * self.seconds) - self.bar.n)
        control.should_training_stop = control.should_training_stop or self.elapsed_share() == 1

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and logs:
            tqdm.write(str({name: value for name, value in logs.items() if name in ("loss", "accuracy", "epoch")}))

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.close()


def main(script: ScriptArguments, args: ContrastiveConfig) -> None:
    set_seed(args.seed)
    if script.model_name_or_path is None:
        model, processor = tiny_clip(AutoTokenizer.from_pretrained(script.tokenizer))
    else:
        model = CLIPEmbedder.from_pretrained(script.model_name_or_path)
        processor = CLIPProcessor.from_pretrained(script.model_name_or_path)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    time_limit = TimeLimit(script.seconds)
    optimizer = AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    # The learning rate decays with time because the number of steps is not known in advance.
    schedule = LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / args.warmup_steps) * (1 - time_limit.elapsed_share())
    )
    trainer = ContrastiveTrainer(
        model,
        args,
        train_dataset=openmoji_rows("train", script.num_rows, seed=script.dataset_seed),
        data_collator=ContrastiveCollator(
            partial(clip_micro_batches, processor, batch_size=script.items_per_micro_batch)
        ),
        callbacks=[time_limit],
        optimizers=(optimizer, schedule),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    trainer.save_state()
    if trainer.is_world_process_zero():
        model.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
        give_weights_the_umask(args.output_dir)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, ContrastiveConfig)).parse_args_and_config())
