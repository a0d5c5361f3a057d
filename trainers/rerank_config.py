"""The training arguments of the reranker."""

from dataclasses import dataclass, field
from typing import Literal

from .publishable_arguments import PublishableArguments


OBJECTIVES = ("both", "pairwise", "listwise", "ranking", "distillation")


@dataclass
class RerankConfig(PublishableArguments):
    """Arguments of [`RerankTrainer`], in addition to those of [`~transformers.TrainingArguments`].

    A batch has `per_device_train_batch_size` rows per process, times `gradient_accumulation_steps`; the result depends
    on their product alone. Defaults that differ from `TrainingArguments`: `remove_unused_columns=False` (rows hold
    images and dicts), `logging_steps=10`.

    Args:
        objective (`str`, *optional*, defaults to `"both"`): What is trained. `"pairwise"` answers "Yes" to the query
            with its positive and "No" with a random negative. `"listwise"` answers with the position of the positive
            in a list. `"both"` does both in one language-model loss, as UniME-V2 (arXiv 2510.13515) does. Two
            alternatives train the probability of "Yes" alone: `"ranking"` is the cross-entropy of the log-odds of
            "Yes" over the candidates of a row, and `"distillation"` the cross-entropy between the probability of "Yes"
            and the row's `scores`, those of a judge.
        num_candidates (`int`, *optional*, defaults to `10`): Most candidates of a list or of a row's ranking, the
            positive included: as many as are reranked later, since a place that the training never offered is never
            chosen. A row with fewer negatives has fewer. Long lists need memory; 5 to 20 are sensible.
    """

    objective: Literal["both", "pairwise", "listwise", "ranking", "distillation"] = field(
        default="both",
        metadata={"help": "Yes/No answers, positions in a list, both (UniME-V2), ranking, or a judge's scores."},
    )
    num_candidates: int = field(
        default=10, metadata={"help": "Most candidates of a row, the positive included: as many as are reranked."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Remove the columns that the model's forward does not name."}
    )
    logging_steps: float = field(
        default=10, metadata={"help": "Log every so many steps; below 1, that share of all steps."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got '{self.objective}'")
        if self.num_candidates < 2:
            raise ValueError(f"num_candidates must be at least 2, got {self.num_candidates}")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns would remove the columns that the collator reads: remove it")
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor has no effect on these losses: remove it")
        self.accelerator_config.dispatch_batches = False  # by default `Trainer` would dispatch a stream
