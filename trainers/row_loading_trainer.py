"""A trainer that decides which rows each process reads: in training, in evaluation, and after resuming."""

from collections.abc import Callable, Sized
from typing import Any

from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import BatchRebalanceSampler

from ..data.collator import EvaluationCollator, TrainingStreamCollator
from ..data.sampler import BalancedSampler, EvaluationSampler, EvaluationStream, TrainingStream


class RowLoadingTrainer(Trainer):
    """A [`~transformers.Trainer`] that reads streams pass after pass, and evaluates every row once.

    The batches of a loader stay on the host: the trainer moves one micro-batch at a time.
    """

    def get_train_dataloader(self) -> DataLoader:
        """Return the training batches; those of a stream do not end, and start with the ones after a resumed step.

        `Trainer` would transform every row of a stream in every process, and resume at the start of its first pass.
        """
        if self.train_dataset is None or isinstance(self.train_dataset, Sized):
            loader = super().get_train_dataloader()
            loader.device = None  # accelerate would move the whole batch there, and the next one
            return loader
        args = self.args
        processes = (args.train_batch_size * args.world_size, args.world_size, args.process_index)
        stream = TrainingStream(self.train_dataset, *processes, drop_last=args.dataloader_drop_last)
        collate = TrainingStreamCollator(self.data_collator)
        return self._loader(stream, collate, args.dataloader_num_workers, batch_size=None)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        args, dataset, column = self.args, self.train_dataset, self.args.length_column_name
        if args.train_sampling_strategy not in ("group_by_length", "batch_rebalance"):
            return super()._get_train_sampler(train_dataset)
        if not (isinstance(dataset, Dataset) and column in dataset.column_names):
            raise ValueError(
                f"train_sampling_strategy='{args.train_sampling_strategy}' needs the length of every row before "
                f"training: use a Dataset with a stored column '{column}' (length_column_name), such as one that "
                "`unime prepare` wrote"
            )
        # As stored: `Trainer` would transform every row, which reads its images, to see its length.
        sampler = super()._get_train_sampler(dataset.with_format(None).select_columns(column))
        sampler.lengths = list(sampler.lengths)  # not a lazy column, which reads a file for each value
        if not isinstance(sampler, BatchRebalanceSampler):
            return sampler
        seed = args.seed if args.data_seed is None else args.data_seed
        sizes = (sampler.effective_batch_size, sampler.dp_size, sampler.grad_accum)
        return BalancedSampler(sampler.lengths, *sizes, seed=seed, rank=sampler.rank, drop_last=sampler.drop_last)

    def _loader(self, dataset: Any, collate: Callable, num_workers: int, **batches: Any) -> DataLoader:
        """Return a loader of this process's batches, which accelerate must not divide again."""
        return DataLoader(
            dataset,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            **batches,
        )

    def get_eval_dataloader(self, eval_dataset: str | Dataset | IterableDataset | None = None) -> DataLoader:
        """Return the evaluation batches: every row once, on any number of processes.

        `Trainer` would apply `dataloader_drop_last`, which is meant for training, or repeat rows to fill a batch.

        Args:
            eval_dataset (`str`, `Dataset` or `IterableDataset`, *optional*): The rows, or the name of a set of the
                trainer's `eval_dataset`.

        Raises:
            ValueError: There is no evaluation set.
        """
        dataset = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise ValueError("there is nothing to evaluate: pass an eval_dataset")
        args = self.args
        processes = (args.eval_batch_size * args.world_size, args.world_size, args.process_index)
        collate = EvaluationCollator(self.data_collator, next(iter(dataset)))
        if isinstance(dataset, Sized):
            sampler = EvaluationSampler(len(dataset), *processes)
            return self._loader(dataset, collate, args.dataloader_num_workers, batch_sampler=sampler)
        # Several workers would each read a part of the stream, and end it with a short batch.
        num_workers = min(1, args.dataloader_num_workers)
        return self._loader(EvaluationStream(dataset, *processes), collate, num_workers, batch_size=None)

    def get_test_dataloader(self, test_dataset: Dataset | IterableDataset) -> DataLoader:
        """Return the batches for `predict`, like [`get_eval_dataloader`]."""
        return self.get_eval_dataloader(test_dataset)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        stream = kwargs["train_dataloader"].dataset
        if isinstance(stream, TrainingStream):  # `Trainer` skips the batches that it has seen, without a look at them
            stream.num_seen_batches = kwargs["steps_trained_in_current_epoch"]
        # `Trainer` checks `max_steps` only after a step: resumed at its end, it would take one step too many.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        if self.state.global_step == 0:  # `Trainer` would end here and save an untrained model
            raise ValueError(
                f"train_dataset ended before one batch of {self.args.train_batch_size} rows: lower the batch size"
            )
