"""The training arguments that both stages share."""

import logging
from dataclasses import dataclass, field

import torch

from .publishable_arguments import PublishableArguments


logger = logging.getLogger(__name__)

# Arguments of `Trainer` that would have no effect here, or a wrong one, and what to do instead.
REFUSED_ARGUMENTS = {
    "label_smoothing_factor": "smooths class labels, which these losses do not have: remove it",
    "auto_find_batch_size": "would shrink the batch that the loss compares: lower micro_batch_tokens instead, which "
    "bounds the memory",
    "use_cache": "has no effect, as embedding a text needs no cache of keys and values: remove it",
    "remove_unused_columns": "would remove the columns that the collator reads: remove it",
    "label_names": "has no effect, as the rows have no labels of a classifier: remove it",
    "include_for_metrics": "has no effect, as there is no compute_metrics: remove it",
    "batch_eval_metrics": "has no effect, as there is no compute_metrics: remove it",
    "parallelism_config": "would divide a row or a layer over processes, but the trainers divide the batch: remove "
    "it, and shard the model with FSDP2 or DeepSpeed",
    "enable_jit_checkpoint": "stops each process at a step of its own, while the others wait for it: set save_steps, "
    "as a run that was stopped resumes from its last complete checkpoint",
}


@dataclass
class EmbeddingConfig(PublishableArguments):
    """Arguments of [`EmbeddingTrainer`], in addition to those of [`~transformers.TrainingArguments`].

    `per_device_train_batch_size` times the number of processes is the batch that the loss compares. Memory depends on
    `micro_batch_tokens` and `graph_cache_gb` and not on the batch, so gradient accumulation is neither needed nor
    allowed.

    Defaults that differ from `TrainingArguments`: `remove_unused_columns=False` (rows hold images and dicts),
    `dataloader_drop_last=True` (a short batch has fewer negatives), `logging_steps=10`.

    Args:
        micro_batch_tokens (`int`, *optional*, defaults to `8192`): Token budget of one forward pass, padding
            included. A patch of the vision tower counts as its share of a token (0.2 to 1, see
            [`vision_token_equivalents`]). Lower it if memory is short; the result does not depend on it. 2048 (CPU)
            to 32768 are sensible.
        graph_cache_gb (`float`, *optional*, defaults to `0.0`): Gigabytes for the graphs of micro-batches that wait
            for their backward pass; these micro-batches are embedded once instead of twice. The graph of the current
            micro-batch comes on top. A budget for all graphs saves up to a third of a step's time with adapters, and a
            quarter with full fine-tuning. Under ZeRO-3 a kept graph also holds the weights that were gathered for it.
            `inf` uses the memory that the device has left, which the first step measures, and lets layers with
            activation checkpointing keep more than their input where it fits; see [`AutomaticGraphCache`].
        packed (`bool`, *optional*, defaults to `False`): Whether the items of a micro-batch form one row without
            padding, as in `encode(packed=True)`. The result does not change. Use it with flash attention
            (`attn_implementation: flash_attention_2` of the model); other attention implementations compute a mask of
            all tokens by all tokens and get slower.
        max_length (`int`, *optional*): Maximum number of tokens of one item; longer texts are truncated. Defaults to
            the tokenizer's limit.
        matryoshka_dims (`list[int]`, *optional*): Smaller dimensions to train as well, so that embeddings can be
            truncated to them (Kusupati et al., arXiv 2205.13147). The loss is the mean over the full and all
            truncated embeddings.
        merge_dequantized (`bool`, *optional*, defaults to `False`): Whether an adapter trained over 4-bit weights is
            merged into these weights, dequantized, instead of the full weights. The merged checkpoint then gives the
            embeddings of the trained model; the other way, the adapter meets weights it was not trained on.
    """

    micro_batch_tokens: int = field(
        default=8192,
        metadata={
            "help": "Token budget of one forward pass, vision patches included; bounds the memory and does not change "
            "the result."
        },
    )
    graph_cache_gb: float = field(
        default=0.0,
        metadata={
            "help": "Gigabytes for graphs of micro-batches, which are then embedded once, not twice; inf: all memory."
        },
    )
    packed: bool = field(
        default=False,
        metadata={"help": "Pack the items of a micro-batch into one row without padding; needs flash attention."},
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Maximum number of tokens of one item; longer texts are truncated. The tokenizer's limit."},
    )
    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata={"help": "Smaller dimensions to train as well, so that embeddings can be truncated to them."},
    )
    merge_dequantized: bool = field(
        default=False,
        metadata={"help": "Merge an adapter of 4-bit weights into these weights, dequantized, not the full ones."},
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
        for name, reason in REFUSED_ARGUMENTS.items():
            if getattr(self, name):
                raise ValueError(f"{name} {reason}")
        self._check_accelerator_config()
        if self.bf16 and self.device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
            logger.warning(
                "bf16=True is about ten times slower than float32 on this CPU, which lacks AVX-512: set bf16 to false"
            )
        if unsupported := sorted(set(self.liger_kernel_config or ()) - {"rms_norm", "swiglu"}):
            raise ValueError(
                "liger_kernel_config switches the kernels rms_norm and swiglu; it cannot hold "
                f"{', '.join(unsupported)}: remove what is not one of the two"
            )
        if self.liger_kernel_config and not self.use_liger_kernel:
            raise ValueError(
                "liger_kernel_config has no effect without use_liger_kernel: set use_liger_kernel to true"
            )
        if "lomo" in self.optim or "layerwise" in self.optim:
            raise ValueError(
                f"optim={self.optim.value} changes a weight as soon as its gradient is there, but here gradients add "
                "up over micro-batches and processes: choose another optimizer"
            )
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} would split the batch that the loss "
                "compares: raise per_device_train_batch_size instead (micro_batch_tokens bounds the memory)"
            )
        if self.micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens must be positive, got {self.micro_batch_tokens}")
        if any(dimensions < 1 for dimensions in self.matryoshka_dims or ()):
            raise ValueError(f"matryoshka_dims must be positive, got {self.matryoshka_dims}")
        if not self.graph_cache_gb >= 0:
            raise ValueError(f"graph_cache_gb must be a number of gigabytes, 0 or more, got {self.graph_cache_gb}")

    def _check_accelerator_config(self) -> None:
        config = self.accelerator_config
        if config.dispatch_batches:
            raise ValueError(
                "accelerator_config: dispatch_batches=True cannot slice a batch of micro-batches: remove it, and "
                "every process reads its own rows"
            )
        config.dispatch_batches = False  # by default `Trainer` would dispatch a stream
        if config.split_batches:
            raise ValueError(
                "accelerator_config: split_batches=True would change the meaning of per_device_train_batch_size: "
                "remove it, and divide the batch size by the number of processes"
            )
        if not config.even_batches:
            raise ValueError(
                "accelerator_config: even_batches=False would give the processes unequal numbers of batches, and one "
                "would wait for the others forever: remove it"
            )
        if (config.gradient_accumulation_kwargs or {}).get("num_steps", 1) != 1:
            raise ValueError(
                "accelerator_config: num_steps would split the batch that the loss compares, like "
                "gradient_accumulation_steps: raise per_device_train_batch_size instead"
            )
