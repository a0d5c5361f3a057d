"""The settings of stage 2."""

from dataclasses import dataclass, field
from typing import Literal

from .embedding_config import EmbeddingConfig


@dataclass
class ContrastiveConfig(EmbeddingConfig):
    """Settings of [`ContrastiveTrainer`]; the defaults are those of UniME (arXiv 2504.17432, §4.1).

    `beta: null` and `k: null` in YAML give plain in-batch InfoNCE, the loss of VLM2Vec; see [`contrastive_loss`] for
    the settings that give the losses of Qwen3-VL-Embedding and LLaVE.

    Args:
        temperature (`float`, *optional*, defaults to `0.02`): Divides the cosines (from UniME's released code).
        beta (`float`, *optional*, defaults to `0.1`): Margin of the false-negative filter; `None` switches it off.
        k (`int`, *optional*, defaults to `8`): Hard negatives per query; `None` takes all.
        fewer (`str`, *optional*, defaults to `"mask"`): With fewer than `k` negatives: `"mask"` or `"repeat"`.
        choose (`str`, *optional*, defaults to `"hardest"`): Which `k`; `"random"` and `"easiest"` are for comparison.
        hardness_weight (`float`, *optional*, defaults to `0.0`): Weighs negatives by their cosine; LLaVE takes 9.
        mask_labels (`bool`, *optional*, defaults to `True`):
            Candidates of the task and label of a row's positive are never its negatives.
        symmetric (`bool`, *optional*, defaults to `False`): Add the loss from candidates to queries, half and half.
        hard_after_steps (`int`, *optional*, defaults to `0`):
            Until this step take all negatives, unfiltered: the hardest alone can press a model that does not yet tell
            anything apart into one point.
        task_block (`int`, *optional*, defaults to `1`):
            Rows of one task that come together, see [`~unime.data.sampler.TaskSampler`]; 1 mixes all tasks freely.
    """

    temperature: float = field(default=0.02, metadata={"help": "Divides the cosines."})
    beta: float | None = field(default=0.1, metadata={"help": "Margin of the false-negative filter; null for none."})
    k: int | None = field(default=8, metadata={"help": "Hard negatives per query; null for all."})
    fewer: Literal["mask", "repeat"] = field(
        default="mask", metadata={"help": "With fewer than k negatives: leave places empty, or repeat (the paper)."}
    )
    hardness_weight: float = field(default=0.0, metadata={"help": "Weigh negatives by their cosine; LLaVE takes 9."})
    choose: Literal["hardest", "random", "easiest"] = field(
        default="hardest", metadata={"help": "Which k negatives; the others are for comparison."}
    )
    mask_labels: bool = field(
        default=True, metadata={"help": "Candidates with the positive's label are no negatives."}
    )
    symmetric: bool = field(default=False, metadata={"help": "Add the loss from candidates to queries."})
    hard_after_steps: int = field(default=0, metadata={"help": "Steps with all negatives before k and beta apply."})
    task_block: int = field(default=1, metadata={"help": "Rows of one task that come together; 1 mixes freely."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.k is not None and self.k < 1:
            raise ValueError(f"k must be at least 1, or null for all negatives, got {self.k}")
        if self.hard_after_steps < 0:
            raise ValueError(f"hard_after_steps must not be negative, got {self.hard_after_steps}")
        if self.task_block < 1:
            raise ValueError(f"task_block must be at least 1, got {self.task_block}")
        if self.choose not in ("hardest", "random", "easiest"):
            raise ValueError(f"choose must be 'hardest', 'random' or 'easiest', got '{self.choose}'")
        if self.fewer not in ("mask", "repeat"):
            raise ValueError(f"fewer must be 'mask' or 'repeat', got '{self.fewer}'")
