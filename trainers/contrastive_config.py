"""The settings of stage 2."""

from dataclasses import dataclass, field
from typing import Literal

from .embedding_config import EmbeddingConfig


@dataclass
class ContrastiveConfig(EmbeddingConfig):
    """Settings of [`ContrastiveTrainer`]; the defaults are those of UniME (arXiv 2504.17432, §4.1).

    `false_negative_margin: null` and `num_hard_negatives: null` in YAML give plain in-batch InfoNCE, the loss of VLM2Vec; see [`contrastive_loss`] for
    the settings that give the losses of Qwen3-VL-Embedding and LLaVE.

    Args:
        temperature (`float`, *optional*, defaults to `0.02`): Divides the cosines (from UniME's released code).
        beta (`float`, *optional*, defaults to `0.1`): Margin of the false-negative filter; `None` switches it off.
        k (`int`, *optional*, defaults to `8`): Hard negatives per query; `None` takes all.
        fewer (`str`, *optional*, defaults to `"mask"`): With fewer than `num_hard_negatives` negatives: `"mask"` or `"repeat"`.
        choose (`str`, *optional*, defaults to `"hardest"`): Which `num_hard_negatives`; `"random"` and `"easiest"` are for comparison.
        hardness_strength (`float`, *optional*, defaults to `0.0`): Weighs negatives by their cosine; LLaVE takes 9.
        exclude_same_label (`bool`, *optional*, defaults to `True`):
            Candidates of the task and label of a row's positive are never its negatives.
        symmetric (`bool`, *optional*, defaults to `False`): Add the loss from candidates to queries, half and half.
        hard_negative_warmup_steps (`int`, *optional*, defaults to `0`):
            Until this step take all negatives, unfiltered: the hardest alone can press a model that does not yet tell
            anything apart into one point.
        task_block_size (`int`, *optional*, defaults to `1`):
            Rows of one task that come together, see [`~unime.data.sampler.TaskSampler`]; 1 mixes all tasks freely.
    """

    temperature: float = field(default=0.02, metadata={"help": "Divides the cosines."})
    false_negative_margin: float | None = field(
        default=0.1, metadata={"help": "Margin of the false-negative filter; null for none."}
    )
    num_hard_negatives: int | None = field(default=8, metadata={"help": "Hard negatives per query; null for all."})
    pad_negatives: Literal["mask", "repeat"] = field(
        default="mask", metadata={"help": "With fewer than k negatives: leave places empty, or repeat (the paper)."}
    )
    hardness_strength: float = field(default=0.0, metadata={"help": "Weigh negatives by their cosine; LLaVE takes 9."})
    negative_sampling: Literal["hardest", "random", "easiest"] = field(
        default="hardest", metadata={"help": "Which k negatives; the others are for comparison."}
    )
    exclude_same_label: bool = field(
        default=True, metadata={"help": "Candidates with the positive's label are no negatives."}
    )
    symmetric: bool = field(default=False, metadata={"help": "Add the loss from candidates to queries."})
    hard_negative_warmup_steps: int = field(
        default=0, metadata={"help": "Steps with all negatives before k and beta apply."}
    )
    task_block_size: int = field(default=1, metadata={"help": "Rows of one task that come together; 1 mixes freely."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.num_hard_negatives is not None and self.num_hard_negatives < 1:
            raise ValueError(
                f"num_hard_negatives must be at least 1, or null for all negatives, got {self.num_hard_negatives}"
            )
        if self.hard_negative_warmup_steps < 0:
            raise ValueError(f"hard_negative_warmup_steps must not be negative, got {self.hard_negative_warmup_steps}")
        if self.task_block_size < 1:
            raise ValueError(f"task_block_size must be at least 1, got {self.task_block_size}")
        if self.negative_sampling not in ("hardest", "random", "easiest"):
            raise ValueError(
                f"negative_sampling must be 'hardest', 'random' or 'easiest', got '{self.negative_sampling}'"
            )
        if self.pad_negatives not in ("mask", "repeat"):
            raise ValueError(f"pad_negatives must be 'mask' or 'repeat', got '{self.pad_negatives}'")
