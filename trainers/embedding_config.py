"""The settings that both stages share."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class EmbeddingConfig(TrainingArguments):
    """Settings of [`EmbeddingTrainer`], on top of [`~transformers.TrainingArguments`].

    `per_device_train_batch_size` is the batch that the loss sees (times the number of processes). Memory does not
    depend on it but on `micro_batch_tokens` and `graph_cache_gb`, so there is no gradient accumulation.

    Defaults that differ from `TrainingArguments`: `remove_unused_columns=False` (rows hold images and dicts),
    `dataloader_drop_last=True` (a short batch has fewer negatives), `logging_steps=10`.

    Args:
        micro_batch_tokens (`int`, *optional*, defaults to `8192`): Token budget of one forward pass.
        graph_cache_gb (`float`, *optional*, defaults to `0.0`):
            Gigabytes for the graphs of micro-batches, which are then embedded once instead of twice; the graph of
            the micro-batch at work comes on top. Room for all graphs saves a step that trains adapters up to a third
            of its time, and one that trains all weights a quarter. Under ZeRO-3 a graph that is kept holds the weights
            that were gathered for it too.
        max_length (`int`, *optional*): Most tokens of one item; longer texts are shortened.
        matryoshka_dims (`list[int]`, *optional*):
            Train these leading dimensions too, so that embeddings can be cut to them (Kusupati et al.,
            arXiv 2205.13147): the loss is the mean of that of the whole embeddings and of each cut.
    """

    micro_batch_tokens: int = field(default=8192, metadata={"help": "Token budget of one forward pass."})
    graph_cache_gb: float = field(default=0.0, metadata={"help": "Gigabytes for kept graphs: memory for time."})
    max_length: int | None = field(default=None, metadata={"help": "Most tokens of one item."})
    matryoshka_dims: list[int] | None = field(default=None, metadata={"help": "Leading dimensions to train too."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Drop columns the model does not name."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out a last batch that is not full."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:
            # A stream is read by every process: one that reads for all cannot cut up batches of micro-batches.
            self.accelerator_config.dispatch_batches = False
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} would split the batch that the loss "
                "compares: raise per_device_train_batch_size instead (micro_batch_tokens bounds the memory)"
            )
        if self.use_liger_kernel:  # `Trainer` would apply none, and not say so
            raise ValueError("use_liger_kernel does nothing here, as Liger knows no model of type unime: leave it out")
        if self.micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens must be positive, got {self.micro_batch_tokens}")
        if any(dimensions < 1 for dimensions in self.matryoshka_dims or ()):
            raise ValueError(f"matryoshka_dims must be positive, got {self.matryoshka_dims}")
        if not 0 <= self.graph_cache_gb < math.inf:
            raise ValueError(f"graph_cache_gb must be a number of gigabytes, 0 or more, got {self.graph_cache_gb}")
