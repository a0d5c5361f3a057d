"""The training arguments of stage 2."""

from dataclasses import dataclass, field
from typing import Literal

from ..data.image_augmentation import check_augmentations
from .embedding_config import EmbeddingConfig


@dataclass
class ContrastiveConfig(EmbeddingConfig):
    """Arguments of [`ContrastiveTrainer`]; the defaults are those of UniME (arXiv 2504.17432, §4.1).

    `false_negative_margin: null` and `num_hard_negatives: null` in YAML give plain in-batch InfoNCE, the loss of
    VLM2Vec; see [`contrastive_loss`] for the arguments that give the losses of Qwen3-VL-Embedding and LLaVE.

    Args:
        temperature (`float`, *optional*, defaults to `0.02`): Softmax temperature; lower values concentrate the loss
            on the hardest negatives. 0.01 to 0.1 are common. The default is from UniME's released code.
        task_temperatures (`dict[str, float]`, *optional*): Softmax temperatures of tasks, by the `task` of the rows,
            such as `{MSCOCO_t2i: 0.01}`; all other tasks use `temperature`. On the command line it is JSON.
        false_negative_margin (`float`, *optional*, defaults to `0.1`): Margin of the false-negative filter (beta in
            the paper): candidates whose cosine with the query exceeds the positive's by more than this are dropped.
            0 to 0.2 are sensible; `None` disables the filter.
        num_hard_negatives (`int`, *optional*, defaults to `8`): Hardest negatives per query (k in the paper), at
            least 1; `None` uses all.
        pad_negatives (`str`, *optional*, defaults to `"mask"`): What to do for a query with fewer than
            `num_hard_negatives` negatives: `"mask"` uses fewer, `"repeat"` repeats them (the paper).
        hardness_strength (`float`, *optional*, defaults to `0.0`): Multiplies each negative's term by
            `exp(hardness_strength * cosine)`; LLaVE uses 9, and 0 disables it.
        negative_sampling (`str`, *optional*, defaults to `"hardest"`): Which negatives are used; `"random"` and
            `"easiest"` are for comparison.
        exclude_same_label (`bool`, *optional*, defaults to `True`): Never use a candidate with the task and label of
            a row's positive as its negative. Positives of an equal query and the query's own content never are.
        symmetric (`bool`, *optional*, defaults to `False`): Take the mean of the losses from queries to candidates and
            from positives to the distinct queries.
        query_to_query (`bool`, *optional*, defaults to `False`): Other queries of the batch are negatives of a query,
            too (GTE, arXiv 2308.03281, and Qwen3-Embedding), unless they share a right answer with it.
        candidate_to_candidate (`bool`, *optional*, defaults to `False`): The cosines of a row's positive with other
            candidates are in the same softmax as those of its query.
        contrastive_weight (`float`, *optional*, defaults to `1.0`): Weight of the contrastive loss. 0, together with
            `soft_label_weight=1`, gives the loss of UniME-V2.
        soft_label_weight (`float`, *optional*, defaults to `0.0`): Weight of the soft-label loss, which compares each
            query's similarities with the `scores` of its row ([`soft_label_loss`]); 0 ignores the scores. Rows without
            scores contribute the contrastive loss only.
        soft_label_temperature (`float`, *optional*, defaults to `0.02`): Softmax temperature of the scores; the
            similarities use `temperature`. 0.02 is UniME-V2's and makes most labels nearly one-hot; up to 0.5 is
            sensible.
        soft_label_divergence (`str`, *optional*, defaults to `"symmetric_kl"`): `"symmetric_kl"` is the mean of both
            directions (UniME-V2), `"label_student"` KL(labels || similarities), `"student_label"` the reverse, and
            `"js"` the Jensen-Shannon divergence.
        hard_negative_warmup_steps (`int`, *optional*, defaults to `0`): Use all negatives, unfiltered, until this
            step. Hard negatives alone can collapse an untrained model.
        task_block_size (`int`, *optional*, defaults to `1`): Consecutive rows that share a task, see
            [`~unime.data.sampler.TaskSampler`]; 1 mixes all tasks, half a batch makes negatives harder.
        image_augmentations (`list[str]`, *optional*): Random changes of the training images: `size`, `outline`,
            `colours`, `background`, `resolution`, see [`~unime.data.image_augmentation`]. The first, second and fourth
            change images with a transparent background only. The changes depend on `seed` and on the batch.
    """

    _VALID_DICT_FIELDS = [*EmbeddingConfig._VALID_DICT_FIELDS, "task_temperatures"]

    temperature: float = field(
        default=0.02,
        metadata={"help": "Softmax temperature; lower values concentrate the loss on the hardest negatives."},
    )
    # The type of transformers' own dicts: a string is JSON.
    task_temperatures: dict | str | None = field(
        default=None, metadata={"help": "Softmax temperatures by task, as a dict; other tasks use temperature."}
    )
    false_negative_margin: float | None = field(
        default=0.1,
        metadata={"help": "Margin of the false-negative filter, in cosine (beta in the paper); null disables it."},
    )
    num_hard_negatives: int | None = field(
        default=8, metadata={"help": "Hardest negatives per query (k in the paper); null uses all."}
    )
    pad_negatives: Literal["mask", "repeat"] = field(
        default="mask",
        metadata={"help": "With fewer than num_hard_negatives negatives: use fewer, or repeat them (the paper)."},
    )
    hardness_strength: float = field(
        default=0.0, metadata={"help": "Weights negatives by exp(hardness_strength * cosine); LLaVE uses 9."}
    )
    negative_sampling: Literal["hardest", "random", "easiest"] = field(
        default="hardest",
        metadata={"help": "Which num_hard_negatives negatives to use; all but hardest are for comparison."},
    )
    exclude_same_label: bool = field(
        default=True,
        metadata={"help": "Never use a candidate with the task and label of the positive as a negative."},
    )
    symmetric: bool = field(default=False, metadata={"help": "Average with the loss from positives to queries."})
    query_to_query: bool = field(
        default=False, metadata={"help": "Other queries of the batch are negatives of a query, too."}
    )
    candidate_to_candidate: bool = field(
        default=False, metadata={"help": "Other candidates are negatives of a row's positive, too."}
    )
    contrastive_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the contrastive loss; 0 with soft_label_weight 1 is the loss of UniME-V2."},
    )
    soft_label_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the loss that compares similarities with the scores of the rows; 0 ignores them."
        },
    )
    soft_label_temperature: float = field(
        default=0.02, metadata={"help": "Softmax temperature of the scores; similarities use temperature."}
    )
    soft_label_divergence: Literal["symmetric_kl", "label_student", "student_label", "js"] = field(
        default="symmetric_kl",
        metadata={"help": "Mean of both KL directions (UniME-V2), one of them, or the Jensen-Shannon divergence."},
    )
    hard_negative_warmup_steps: int = field(
        default=0,
        metadata={"help": "Steps with all negatives, unfiltered, before the filter and num_hard_negatives apply."},
    )
    task_block_size: int = field(
        default=1, metadata={"help": "Consecutive rows that share a task; 1 mixes all tasks."}
    )

    image_augmentations: list[str] | None = field(
        default=None,
        metadata={"help": "Random changes of training images: size, outline, colours, background, resolution."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_augmentations(self.image_augmentations or ())
        for name in ("temperature", "soft_label_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not isinstance(self.task_temperatures, dict | None):
            raise ValueError(
                f"task_temperatures must be a dict of a temperature for each task, got {self.task_temperatures!r}"
            )
        for task, temperature in (self.task_temperatures or {}).items():
            if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
                raise ValueError(
                    f"the temperatures of task_temperatures must be positive numbers, got {temperature!r} for {task}"
                )
        weights = (self.contrastive_weight, self.soft_label_weight)
        if not min(weights) >= 0 or sum(weights) == 0:
            raise ValueError(
                "contrastive_weight and soft_label_weight must not be negative, and one of them must be positive, got "
                f"{self.contrastive_weight} and {self.soft_label_weight}"
            )
        if self.soft_label_divergence not in ("symmetric_kl", "label_student", "student_label", "js"):
            raise ValueError(
                "soft_label_divergence must be 'symmetric_kl', 'label_student', 'student_label' or 'js', got "
                f"'{self.soft_label_divergence}'"
            )
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
