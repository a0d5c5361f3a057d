"""Stage 2: hard-negative enhanced instruction tuning (UniME, arXiv 2504.17432, §3.3)."""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_utils import EvalLoopOutput

from ..data.collator import ContrastiveCollator
from ..data.image_augmentation import ImageAugmentation
from ..data.row_conversion import as_rows
from ..data.rows import task_hash
from ..data.sampler import TaskSampler
from .contrastive_config import ContrastiveConfig
from .distributed import gather
from .embedding_trainer import Batch, EmbeddingTrainer
from .evaluation_ranks import EvaluatedBatch, retrieval_metrics
from .losses import contrastive_loss, soft_label_loss
from .right_answers import distinct_items, first_occurrence, merge_columns, right_answers


SEEDS_PER_STEP = 2**20  # more than the rows of a batch, each of which may have a seed of its own


def _padded(values: Tensor, rows: Tensor, filler: float) -> Tensor:
    """Return the values of each row, which follow each other, as a matrix of shape `(rows, most values of a row)`."""
    counts = torch.bincount(rows)
    first = counts.cumsum(0) - counts
    padded = values.new_full((len(counts), int(counts.max())), filler)
    padded[rows, torch.arange(len(rows), device=rows.device) - first[rows]] = values
    return padded


class ContrastiveTrainer(EmbeddingTrainer):
    """A trainer that pulls queries towards their positives and away from the hardest negatives of the whole batch.

    Rows are dicts with a query and a positive, in one of the forms of [`standard_row`]: `query` and `positive`,
    `anchor`, `positive` and `negative`, or `image` and `caption`; each a text, the path of an image, a PIL image or an
    item. `negatives`, `task`, `label` and `scores` are optional. A row with several `positives` trains like as many
    rows with one positive each.
    The negatives of a row are the candidates of the batch, except the positives of all rows with the same query
    content and task, candidates with the content, or the task and label, of such a positive, and candidates with the
    content of the query. With `soft_label_weight`, the loss has a second term for the rows with scores, see
    [`soft_label_loss`].

    Besides the loss, it logs `filtered`, `hardness`, `positive_similarity`, `negative_similarity` and `accuracy`, as
    defined by [`contrastive_loss`], and with soft labels `scored_rows` (their number in a batch) and `soft_label_loss`
    (0 in a batch without any). Evaluation also ranks all candidates of a set: `eval_hit@1` and `eval_mrr`.

    Example:
        trainer = ContrastiveTrainer(model, ContrastiveConfig("out"), train_dataset=rows, processing_class=processor)
        trainer.train()
    """

    args: ContrastiveConfig
    data_collator: Any
    _evaluated: dict[int, list[EvaluatedBatch]] | None = None  # dimensions -> batches of the evaluation that runs
    columns = ("query", "positive", "negatives", "task", "label")
    convert_rows = staticmethod(as_rows)
    collator_class = ContrastiveCollator

    def batch_loss(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrast the queries of all processes with the candidates of all processes."""
        items, first_item = gather(embeddings)
        hashes, _ = gather(torch.stack([batch["identity"], batch["content"]], dim=1))
        candidates, first_candidate = gather(torch.stack([batch["candidate"] + first_item, batch["label"]], dim=1))
        rows, _ = gather(
            torch.stack([batch["query"] + first_item, batch["positive"] + first_candidate, batch["task"]], dim=1)
        )

        # An item that several processes embedded is one item, the first of them.
        identity, content = hashes.unbind(1)
        item_indices = first_occurrence(identity)
        candidate, label = item_indices[candidates[:, 0]], candidates[:, 1]
        query, positive, task = item_indices[rows[:, 0]], rows[:, 1], rows[:, 2]

        if self._evaluated is not None:
            batch_of_set = (items, identity, content, candidates[:, 0], candidates[:, 1], *rows.unbind(1))
            kept = EvaluatedBatch(*(values.detach().cpu() for values in batch_of_set))
            self._evaluated.setdefault(items.shape[1], []).append(kept)

        excluded = right_answers(
            content[query],
            task,
            positive,
            content[candidate],
            label if self.args.exclude_same_label else torch.full_like(label, -1),
        )
        # A candidate with several labels is one candidate with the exclusions of all of them.
        candidate, distinct = distinct_items(candidate, identity)
        excluded, positive = merge_columns(excluded, distinct, len(candidate)), distinct[positive]

        warmed_up = self.state.global_step >= self.args.hard_negative_warmup_steps
        loss_fn = partial(
            contrastive_loss,
            temperature=self._temperature(task),
            false_negative_margin=self.args.false_negative_margin if warmed_up else None,
            num_hard_negatives=self.args.num_hard_negatives if warmed_up else None,
            pad_negatives=self.args.pad_negatives,
            negative_sampling=self.args.negative_sampling if warmed_up else "hardest",
            hardness_strength=self.args.hardness_strength,
            sampling_seed=self.args.seed + self.state.global_step * SEEDS_PER_STEP,
        )
        distinct_query, query_index = distinct_items(query, identity)  # the query of several rows is one negative
        answer = candidate[positive]
        further = []
        if self.args.query_to_query:
            # Not a query that has the content of this one or of its positive, or shares a right answer with this one.
            shared = merge_columns(excluded[:, positive], query_index, len(distinct_query))
            for known in (query, answer):
                shared |= content[known][:, None] == content[distinct_query]
            further.append((items[query], items[distinct_query], shared))
        if self.args.candidate_to_candidate:
            further.append((items[answer], items[candidate], excluded))
        loss, statistics = loss_fn(items[query], items[candidate], positive, excluded, further=further)
        if self.args.symmetric:
            # From each positive to its query. Queries that the positive answers or shows are not negatives.
            excluded = merge_columns(excluded[:, positive].T, query_index, len(distinct_query))
            reverse_loss = loss.new_zeros(())  # with a single query, for example, every term is log(1)
            if not excluded.all():
                reverse_loss, _ = loss_fn(items[answer], items[distinct_query], query_index, excluded)
            loss = (loss + reverse_loss) / 2

        if self.args.soft_label_weight == 0:
            return self.args.contrastive_weight * loss, statistics
        scored, first_row = gather(torch.stack([batch["scored_query"] + first_item, batch["scored_task"]], dim=1))
        judged, _ = gather(
            torch.stack([batch["scored_row"] + first_row, batch["scored_candidate"] + first_candidate], dim=1)
        )
        scores, _ = gather(batch["score"])
        soft_loss = loss.new_zeros(())
        if len(scored):
            soft_loss = soft_label_loss(
                items[item_indices[scored[:, 0]]],
                items[candidate],
                _padded(distinct[judged[:, 1]], judged[:, 0], 0),
                _padded(scores, judged[:, 0], -torch.inf),
                temperature=self._temperature(scored[:, 1]),
                label_temperature=self.args.soft_label_temperature,
                divergence=self.args.soft_label_divergence,
            )
        statistics["scored_rows"] = loss.new_tensor(len(scored))
        statistics["soft_label_loss"] = soft_loss.detach()
        return self.args.contrastive_weight * loss + self.args.soft_label_weight * soft_loss, statistics

    def _temperature(self, task: Tensor) -> float | Tensor:
        """Return the temperature of all rows, or of each row with the given hash of its task."""
        if not self.args.task_temperatures:
            return self.args.temperature
        temperatures = torch.full(task.shape, self.args.temperature, device=task.device)
        for name, temperature in cast(dict[str, float], self.args.task_temperatures).items():
            temperatures[task == task_hash(name)] = temperature
        return temperatures

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; `hit@1` and `mrr` rank all candidates of the set, the other metrics are means over its batches.

        With `matryoshka_dims`, there is a `hit@1_64`, for example, of the embeddings truncated to 64 dimensions too.
        """
        self._evaluated = {}
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        evaluated, self._evaluated = self._evaluated, None
        for dimensions, batches in evaluated.items():
            suffix = "" if dimensions == max(evaluated) else f"_{dimensions}"
            metrics = retrieval_metrics(batches)
            output.metrics.update({f"{metric_key_prefix}_{name}{suffix}": value for name, value in metrics.items()})
        return output

    def get_train_dataloader(self) -> DataLoader:
        """Return the training batches.

        Raises:
            ValueError: `task_block_size` is not 1, and the tasks of the rows are not stored in a column;
                `task_temperatures` names a task that such a column does not have; or there are `image_augmentations`,
                and the collator is not a [`ContrastiveCollator`].
        """
        kinds = self.args.image_augmentations
        if kinds:
            if not isinstance(self.data_collator, ContrastiveCollator):
                raise ValueError(
                    f"image_augmentations needs a ContrastiveCollator, not {type(self.data_collator).__name__}: "
                    "remove it, or change the images in your collator"
                )
            self.data_collator = replace(self.data_collator, augment=ImageAugmentation(kinds, self.args.seed))
        dataset = self.train_dataset
        stores_tasks = isinstance(dataset, Dataset) and "task" in dataset.column_names
        if self.args.task_temperatures and stores_tasks:
            tasks = set(dataset.unique("task"))
            unknown = sorted(set(self.args.task_temperatures) - tasks)
            if unknown:
                raise ValueError(
                    f"task_temperatures names {', '.join(unknown)}, but the training data has the tasks "
                    f"{', '.join(sorted(tasks))}: correct the name, or remove it"
                )
        if self.args.task_block_size != 1 and not stores_tasks:
            raise ValueError(
                f"task_block_size={self.args.task_block_size} needs to know the task of every row before training: "
                "use a Dataset with a stored column 'task', or set task_block_size to 1"
            )
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.task_block_size == 1:
            return super()._get_train_sampler(train_dataset)
        if self.args.train_sampling_strategy == "batch_rebalance":
            raise ValueError(
                "train_sampling_strategy='batch_rebalance' would divide the blocks of one task over the processes: "
                "set task_block_size to 1, or remove train_sampling_strategy"
            )
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return TaskSampler(self.train_dataset.with_format(None)["task"], self.args.task_block_size, seed)
