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
    """Trains queries towards their positives and away from the hardest negatives of the whole batch.

    Rows have `query` and `positive` (items), `negatives` (a list of items), `task` and `label`: candidates with the
    same content, or of the same task with the same label, as a row's positive are never its negatives. Logged
    beside the loss: `filtered`, `hardness`, `positive_similarity`, `negative_similarity` and `accuracy`, as
    [`contrastive_loss`] defines them.

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
        pool, first_candidate = gather(
            torch.stack([batch["candidate"] + first_item, batch["content"], batch["label"]], dim=1)
        )
        rows, _ = gather(torch.stack([batch["query"] + first_item, batch["positive"] + first_candidate], dim=1))
        query, positive = rows.unbind(1)

        # A content is one candidate, however many processes or labels it comes from; it is the same answer as a row's
        # positive if any of its labels says so.
        content, number = torch.unique(pool[:, 1], return_inverse=True)
        excluded = torch.zeros(len(query), len(content), dtype=torch.bool, device=pool.device)
        if self.args.exclude_same_label:
            label = pool[:, 2]
            own_label = label[positive].masked_fill(label[positive] == -1, -2)  # no label is no same label
            row, place = torch.nonzero(label == own_label[:, None], as_tuple=True)
            excluded[row, number[place]] = True
        places = torch.arange(len(pool), device=pool.device)
        earliest = torch.full_like(content, len(pool)).scatter_reduce(0, number, places, "amin")
        candidate, positive = pool[earliest, 0], number[positive]

        hard = self.state.global_step >= self.args.hard_negative_warmup_steps
        loss_of = partial(
            contrastive_loss,
            temperature=self.args.temperature,
            false_negative_margin=self.args.false_negative_margin if hard else None,
            num_hard_negatives=self.args.num_hard_negatives if hard else None,
            pad_negatives=self.args.pad_negatives,
            negative_sampling=self.args.negative_sampling if hard else "hardest",
            hardness_strength=self.args.hardness_strength,
        )
        queries, candidates = items[query], items[candidate]
        loss, statistics = loss_of(queries, candidates, positive, excluded)
        if self.args.symmetric:
            # From each positive back to its query: the queries whose positive is the same answer are no negatives.
            own = torch.arange(len(query), device=query.device)
            backward, _ = loss_of(candidates[positive], queries, own, excluded[:, positive])
            loss = (loss + backward) / 2
        return loss, statistics

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of training; those in blocks of one task need to know all tasks beforehand."""
        dataset = self.train_dataset
        if self.args.task_block_size != 1 and not (isinstance(dataset, Dataset) and "task" in dataset.column_names):
            raise ValueError(
                f"task_block_size={self.args.task_block_size} needs to know the task of every row beforehand: give a Dataset "
                "with a stored column task, or set task_block_size to 1"
            )
        return super().get_train_dataloader()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.task_block_size == 1:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return TaskSampler(self.train_dataset.with_format(None)["task"], self.args.task_block_size, seed)
