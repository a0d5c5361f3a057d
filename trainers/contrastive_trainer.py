"""Stage 2: hard-negative enhanced instruction tuning (UniME, arXiv 2504.17432, §3.3)."""

from functools import partial

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..data.collator import ContrastiveCollator
from ..data.sampler import TaskSampler
from .contrastive_config import ContrastiveConfig
from .distributed import gather
from .embedding_trainer import Batch, EmbeddingTrainer
from .losses import contrastive_loss


class ContrastiveTrainer(EmbeddingTrainer):
    """A trainer that pulls queries towards their positives and away from the hardest negatives of the whole batch.

    Rows have `query` and `positive` (items), `negatives` (a list of items), `task` and `label`. Candidates with the
    same content as a row's positive, or with the same task and label, are never negatives of that row. Besides the
    loss, it logs `filtered`, `hardness`, `positive_similarity`, `negative_similarity` and `accuracy`, as defined by
    [`contrastive_loss`].

    Example:
        trainer = ContrastiveTrainer(model, ContrastiveConfig("out"), train_dataset=rows, processing_class=processor)
        trainer.train()
    """

    args: ContrastiveConfig
    columns = ("query", "positive", "negatives", "task", "label")
    collator_class = ContrastiveCollator

    def batch_loss(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrast the queries of all processes with the candidates of all processes."""
        items, first_item = gather(embeddings)
        # Candidates by columns: index of the item, hash of the content, hash of task and label.
        pool, first_candidate = gather(
            torch.stack([batch["candidate"] + first_item, batch["content"], batch["label"]], dim=1)
        )
        pairs, _ = gather(torch.stack([batch["query"] + first_item, batch["positive"] + first_candidate], dim=1))
        query, positive = pairs.unbind(1)

        # Candidates with the same content are one candidate, from however many processes or labels. It counts as the
        # same answer as a row's positive if any of its labels does.
        contents, content_index = torch.unique(pool[:, 1], return_inverse=True)
        excluded = torch.zeros(len(query), len(contents), dtype=torch.bool, device=pool.device)
        if self.args.exclude_same_label:
            labels = pool[:, 2]
            positive_labels = labels[positive].masked_fill(labels[positive] == -1, -2)  # -1, no label, matches nothing
            row, same_label = torch.nonzero(labels == positive_labels[:, None], as_tuple=True)
            excluded[row, content_index[same_label]] = True
        positions = torch.arange(len(pool), device=pool.device)
        first_positions = torch.full_like(contents, len(pool)).scatter_reduce(0, content_index, positions, "amin")
        candidate, positive = pool[first_positions, 0], content_index[positive]

        warmed_up = self.state.global_step >= self.args.hard_negative_warmup_steps
        loss_fn = partial(
            contrastive_loss,
            temperature=self.args.temperature,
            false_negative_margin=self.args.false_negative_margin if warmed_up else None,
            num_hard_negatives=self.args.num_hard_negatives if warmed_up else None,
            pad_negatives=self.args.pad_negatives,
            negative_sampling=self.args.negative_sampling if warmed_up else "hardest",
            hardness_strength=self.args.hardness_strength,
        )
        queries, candidates = items[query], items[candidate]
        loss, statistics = loss_fn(queries, candidates, positive, excluded)
        if self.args.symmetric:
            # From each positive to its query; queries whose positive is the same answer are not negatives.
            diagonal = torch.arange(len(query), device=query.device)
            reverse_loss, _ = loss_fn(candidates[positive], queries, diagonal, excluded[:, positive])
            loss = (loss + reverse_loss) / 2
        return loss, statistics

    def get_train_dataloader(self) -> DataLoader:
        """Return the training batches.

        Raises:
            ValueError: `task_block_size` is not 1, and the tasks of the rows are not stored in a column.
        """
        dataset = self.train_dataset
        if self.args.task_block_size != 1 and not (isinstance(dataset, Dataset) and "task" in dataset.column_names):
            raise ValueError(
                f"task_block_size={self.args.task_block_size} needs to know the task of every row before training: "
                "use a Dataset with a stored column 'task', or set task_block_size to 1"
            )
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.task_block_size == 1:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return TaskSampler(self.train_dataset.with_format(None)["task"], self.args.task_block_size, seed)
