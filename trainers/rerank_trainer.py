"""The reranker of UniME-V2 (arXiv 2510.13515): an image-text model that answers which candidate meets a query."""

import shutil
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput

from ..adapters import load_adapter
from ..checkpoint_safety import TRAINING_RECORD
from ..data.rerank_collator import GENERATIVE_OBJECTIVES, RerankCollator
from ..data.row_conversion import as_rows
from ..data.rows import Rows
from ..judging import answer_positions, label_tokens
from ..modeling_unime import keep_batch_statistics
from ..rerank_answers import FILLER
from ..reranker import load_reranker, save_reranker
from .adapter import merge_adapter, without_zero3
from .checkpointing import resume_and_train
from .distributed import (
    align_micro_batches,
    gather,
    is_sharded,
    mean_gradients,
    prepare_without_wrapping,
    require_one_device,
)
from .embedding_trainer import check_rows
from .nonfinite import nonfinite_error
from .rerank_config import RerankConfig
from .resumable_trainer import ResumableTrainer
from .row_loading_trainer import RowLoadingTrainer


Batch = Mapping[str, Any]


def ranking_loss(log_odds: Tensor, num_candidates: Tensor) -> Tensor:
    """Return the cross-entropy of each row's first candidate over the row, summed over the rows.

    Args:
        log_odds (`Tensor` of shape `(candidates,)`): Log-odds of "Yes" for the candidates of all rows.
        num_candidates (`Tensor` of shape `(rows,)`): Candidates of each row; the first of them is its positive.
    """
    rows = log_odds.split(num_candidates.tolist())
    padded = pad_sequence(rows, batch_first=True, padding_value=-torch.inf)
    first = torch.zeros(len(rows), dtype=torch.long, device=log_odds.device)
    return cross_entropy(padded, first, reduction="sum")


class RerankTrainer(RowLoadingTrainer, ResumableTrainer):
    """A trainer that teaches a generative image-text model to choose among candidates.

    Rows are those of [`ContrastiveTrainer`], and each needs a negative that differs from its positives: mined ones are
    what a reranker meets. See [`RerankConfig`] for the objectives, [`RerankCollator`] for what is drawn at random, and
    `unime.judging` for the prompts. Only the answers have a loss, which is the mean over their tokens in the whole
    batch, over all processes.

    Args:
        model (`PreTrainedModel`): Image-text model with a language-model head, see [`load_reranker`].
        args ([`RerankConfig`]): The training arguments.
        train_dataset (`Dataset`, `IterableDataset`, list of `dict`, *optional*): Training rows.
        eval_dataset (`Dataset`, `IterableDataset` or a `dict` of them, *optional*): Rows of which [`evaluate`] gives
            the loss, with the same draws each time.
        processing_class (`ProcessorMixin`): Processor of the model.
        peft_config ([`~peft.PeftConfig`], *optional*): Train adapters instead of the model's weights.
        callbacks (`list[TrainerCallback]`, *optional*): Callbacks of the training loop.
        optimizers (`tuple`, *optional*): Optimizer and learning rate scheduler.

    Raises:
        ValueError: A dataset is empty or lacks a column, or one process has several GPUs.
    """

    args: RerankConfig
    data_collator: RerankCollator

    def __init__(
        self,
        model: PreTrainedModel,
        args: RerankConfig,
        train_dataset: Rows | list[dict[str, Any]] | None = None,
        eval_dataset: Any = None,
        processing_class: ProcessorMixin | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ):
        if processing_class is None:
            raise ValueError("RerankTrainer needs processing_class to render the rows: pass the model's processor")
        collator = RerankCollator(processing_class, args.objective, args.num_candidates, args.seed, model.dtype)
        if peft_config is not None:
            set_seed(args.seed)  # `Trainer` sets it only after the adapter's weights are drawn
            model = get_peft_model(model, peft_config)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=_open(train_dataset, "train_dataset"),
            eval_dataset={name: _open(rows, name) for name, rows in eval_dataset.items()}
            if isinstance(eval_dataset, dict)
            else _open(eval_dataset, "eval_dataset"),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        require_one_device(self.args)
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by the labels of all steps and processes
        self._loss_shifts_labels = False
        self._label_tokens = [] if args.objective in GENERATIVE_OBJECTIVES else label_tokens(processing_class)
        self._sums: list[Tensor] = []  # of an evaluation
        # Sharded models reduce their gradients themselves.
        self._averages_gradients = self.accelerator.use_distributed and not (
            self.is_fsdp_enabled or self.is_deepspeed_enabled
        )
        if self._averages_gradients:
            prepare_without_wrapping(self.accelerator)

    def compute_loss(
        self, model: Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Return this process's part of the loss, scaled so that the mean over the processes is the loss.

        Raises:
            ValueError: The loss is not finite; the message names the step and the rows.
        """
        total, count = self._loss_sum(model, inputs), len(inputs["labels"])
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        if not loss.isfinite():
            raise nonfinite_error(f"the loss is {loss.item()}", self.state.global_step + 1, inputs["provenance"])
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return loss

    def _loss_sum(self, model: Module, inputs: Batch) -> Tensor:
        """Return the sum of the loss over the labels of this process's rows."""
        keep_batch_statistics(model)
        micro_batches, rows = inputs["micro_batches"], None
        if is_sharded(self.model) or self.is_deepspeed_enabled:
            micro_batches, rows = align_micro_batches(micro_batches)
        generative = self.args.objective in GENERATIVE_OBJECTIVES
        value = self._answer_losses if generative else self._log_odds
        values = torch.cat([value(model, tensors) for tensors in send_to_device(micro_batches, self.args.device)])
        if rows is not None:  # without those of micro-batches that only keep the processes together
            values = values[rows.to(values.device)]
        if generative:
            return values.sum()
        values = values[torch.argsort(inputs["order"])]
        if self.args.objective == "ranking":
            return ranking_loss(values, inputs["num_candidates"])
        return binary_cross_entropy_with_logits(values, inputs["scores"], reduction="sum")

    def _answer_losses(self, model: Module, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of each conversation, summed over the tokens of its answer, `(conversations,)`."""
        answers = tensors["answers"]
        # The logits of the token before an answer predict its first token.
        logits = self._logits(model, tensors, answers.shape[1] + 1)[:, :-1]
        losses = cross_entropy(logits.transpose(1, 2), answers, ignore_index=FILLER, reduction="none")
        return losses.sum(dim=1)

    def _log_odds(self, model: Module, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the log-odds of "Yes" against "No" as the first token of each answer, `(conversations,)`."""
        yes, no = self._logits(model, tensors, 1)[:, -1, self._label_tokens].unbind(dim=1)
        return yes - no

    def _logits(self, model: Module, tensors: Mapping[str, Tensor], positions: int) -> Tensor:
        inputs = {name: tensor for name, tensor in tensors.items() if name != "answers"}
        places = answer_positions(self._embedder, inputs)
        return model(**inputs, position_ids=places, use_cache=False, logits_to_keep=positions).logits.float()

    def training_step(self, model: Module, inputs: Batch, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Add the gradients of a batch; at the last one of a step, take their mean over all processes."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._averages_gradients and self.accelerator.sync_gradients:
            mean_gradients(self.model.parameters())
        return loss

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self.data_collator.epoch.fill_(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | IterableDataset | None = None) -> DataLoader:
        """Return the evaluation batches of the rows, or of the trainer's own `eval_dataset` or a named set of it."""
        named = eval_dataset is None or isinstance(eval_dataset, str)
        return super().get_eval_dataloader(eval_dataset if named else _open(eval_dataset, "eval_dataset"))

    def prediction_step(
        self, model: Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Return the loss of an evaluation batch; there are no logits and no labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            total = self._loss_sum(model, inputs)
        count = total.new_tensor(len(inputs["labels"]))
        part = torch.stack([total * (count > 0), count])[None]  # a process without rows has run those of another one
        total, count = gather(part)[0].sum(dim=0)
        self._sums.append(torch.stack([total, count]))
        return total / count, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the loss is the mean over all labels of the set."""
        self._sums = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, count = torch.stack(self._sums).sum(dim=0)
        output.metrics[f"{metric_key_prefix}_loss"] = (total / count).item()
        return output

    def _save_full_model(self, directory: str) -> None:
        weights = self._gathered_weights()
        if self.args.should_save:
            save_reranker(self.model, self.processing_class, directory, weights)


def _open(dataset: Any, name: str) -> Any:
    if dataset is not None:
        dataset = as_rows(dataset, name)
        check_rows(name, dataset, ("query", "positive", "negatives"))
    return dataset


def train_reranker(trainer: RerankTrainer, base_model: str, **kwargs: Any) -> None:
    """Train, resuming from the last complete checkpoint, and save a model that loads like the one it started from.

    An adapter is saved in `output_dir/adapter`, and the model with the adapter merged in `output_dir`.

    Args:
        trainer ([`RerankTrainer`]): The trainer; its `args.output_dir` is where everything is saved.
        base_model (`str`): Folder or Hub id that the model was loaded from.
        kwargs: Passed to [`load_reranker`] for the weights to merge into (`dtype`, ...).
    """
    resume_and_train(trainer)
    output = trainer.args.output_dir
    if not isinstance(trainer.model, PeftModel):
        trainer.save_model()
        return
    trainer.save_model(f"{output}/adapter")
    if trainer.args.should_save:
        with without_zero3():
            model, _ = load_reranker(base_model, **kwargs)
            merged = merge_adapter(load_adapter(model, f"{output}/adapter"))
        save_reranker(merged, trainer.processing_class, output)
        shutil.copy(f"{output}/adapter/{TRAINING_RECORD}", output)
