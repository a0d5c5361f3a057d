"""The training arguments that both stages share."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class EmbeddingConfig(TrainingArguments):
    """Arguments of [`EmbeddingTrainer`], in addition to those of [`~transformers.TrainingArguments`].

    `per_device_train_batch_size` times the number of processes is the batch that the loss compares. Memory depends on
    `micro_batch_tokens` and `graph_cache_gb` and not on the batch, so gradient accumulation is neither needed nor
    allowed.

    Defaults that differ from `TrainingArguments`: `remove_unused_columns=False` (rows hold images and dicts),
    `dataloader_drop_last=True` (a short batch has fewer negatives), `logging_steps=10`.

    Args:
        micro_batch_tokens (`int`, *optional*, defaults to `8192`): Token budget of one forward pass, padding
            included. Lower it if memory is short; the result does not depend on it. 2048 (CPU) to 32768 are sensible.
        graph_cache_gb (`float`, *optional*, defaults to `0.0`): Gigabytes for the graphs of micro-batches that wait
            for their backward pass; these micro-batches are embedded once instead of twice. The graph of the current
            micro-batch comes on top. A budget for all graphs saves up to a third of a step's time with adapters, and a
            quarter with full fine-tuning. Under ZeRO-3 a kept graph also holds the weights that were gathered for it.
        max_length (`int`, *optional*): Maximum number of tokens of one item; longer texts are truncated. Defaults to
            the tokenizer's limit.
        matryoshka_dims (`list[int]`, *optional*): Smaller dimensions to train as well, so that embeddings can be
            truncated to them (Kusupati et al., arXiv 2205.13147). The loss is the mean over the full and all
            truncated embeddings.
    """

    micro_batch_tokens: int = field(
        default=8192,
        metadata={"help": "Token budget of one forward pass; bounds the memory and does not change the result."},
    )
    graph_cache_gb: float = field(
        default=0.0,
        metadata={"help": "Gigabytes for the graphs of micro-batches, which are then embedded once instead of twice."},
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Maximum number of tokens of one item; longer texts are truncated. The tokenizer's limit."},
    )
    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata={"help": "Smaller dimensions to train as well, so that embeddings can be truncated to them."},
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Remove the columns that the model's forward does not name."}
    )
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last batch if it is not full."})
    logging_steps: float = field(
        default=10, metadata={"help": "Log every so many steps; below 1, that share of all steps."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:
            # Every process reads a stream itself: dispatching cannot slice batches of micro-batches.
            self.accelerator_config.dispatch_batches = False
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} would split the batch that the loss "
                "compares: raise per_device_train_batch_size instead (micro_batch_tokens bounds the memory)"
            )
        if self.use_liger_kernel:  # `Trainer` would silently apply no kernel
            raise ValueError("use_liger_kernel has no effect, as Liger does not support model type unime: remove it")
        if self.micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens must be positive, got {self.micro_batch_tokens}")
        if any(dimensions < 1 for dimensions in self.matryoshka_dims or ()):
            raise ValueError(f"matryoshka_dims must be positive, got {self.matryoshka_dims}")
        if not 0 <= self.graph_cache_gb < math.inf:
            raise ValueError(f"graph_cache_gb must be a number of gigabytes, 0 or more, got {self.graph_cache_gb}")
