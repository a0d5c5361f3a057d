"""What the trainers of both stages share: gradient caching, one loss over all processes, logging, saving."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import normalize
from transformers import PreTrainedModel, ProcessorMixin, Trainer, TrainerCallback, set_seed

from ..batching_unime import micro_batches
from ..checkpoint import save_checkpoint
from ..checkpoint_safety import forbid_remote_code
from ..modeling_unime import UniMEModel
from .adapter import make_publishable
from .checkpointing import removing_unfinished, write_training_record
from .distributed import align_micro_batches, deepspeed_backward, is_sharded, sum_gradients, sum_when_reducing
from .embedding_config import EmbeddingConfig
from .gradient_cache import (
    BackwardMicroBatch,
    CachedVisionFeatures,
    GraphCacheBudget,
    MicroBatch,
    backward_micro_batch,
    cached_loss,
    vision_is_frozen,
    with_last_layer_shortcut,
)
from .nonfinite import all_finite, check_finite_weights, nonfinite_error


Batch = Mapping[str, Any]


def check_rows(name: str, dataset: Dataset | IterableDataset, columns: Sequence[str], batch_size: int) -> None:
    """Look at the first row, and at how many there are if that is known.

    Args:
        name (`str`): What errors call the dataset.
        dataset (`Dataset` or `IterableDataset`): The rows.
        columns (`Sequence[str]`): What each row must have.
        batch_size (`int`): Rows of a batch, of which there must be one at least.

    Raises:
        ValueError: There is no row, it lacks a column, or the rows do not fill a batch.
    """
    # The first row, not `column_names`: a transform may make the rows from other columns.
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(f"{name} is empty")
    missing = [column for column in columns if column not in row]
    if missing:
        raise ValueError(
            f"{name} lacks the column(s) {', '.join(missing)}: this trainer needs {', '.join(columns)}, and found "
            f"{', '.join(row)}"
        )
    if isinstance(dataset, Sized) and len(dataset) < batch_size:
        raise ValueError(f"{name} has {len(dataset)} rows, fewer than one batch of {batch_size}: lower the batch size")


class EmbeddingTrainer(Trainer, ABC):
    """A [`~transformers.Trainer`] whose loss compares the embeddings of a whole batch, over all processes.

    A subclass says which columns it needs, how its batches are made, and what the loss of their embeddings is.

    Args:
        model (`PreTrainedModel` or `Module`): Called with the tensors of a micro-batch; its output has `.embeddings`.
        args ([`EmbeddingConfig`]): The settings.
        train_dataset (`Dataset`, *optional*): Training rows.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*): Rows for `eval_loss`.
        processing_class (`ProcessorMixin`, *optional*): UniME's processor; renders the items and is saved.
        data_collator (`Callable`, *optional*): Makes batches; by default made from `processing_class`.
        peft_config ([`~peft.PeftConfig`], *optional*): Train adapters instead of the model.
        callbacks (`list[TrainerCallback]`, *optional*): Callbacks.
        optimizers (`tuple`, *optional*): Optimizer and scheduler.
    """

    columns: tuple[str, ...]
    collator_class: Callable[[Callable], Callable]

    def __init__(
        self,
        model: PreTrainedModel | Module,
        args: EmbeddingConfig,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: ProcessorMixin | None = None,
        data_collator: Callable[[list[dict[str, Any]]], Batch] | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ):
        evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
        for name, dataset in {"train_dataset": train_dataset, **evaluated}.items():
            if dataset is not None:
                batch_size = args.train_batch_size if dataset is train_dataset else args.eval_batch_size
                check_rows(name, dataset, self.columns, batch_size)
        if isinstance(train_dataset, IterableDataset) and args.dataloader_drop_last:
            # `Trainer` leaves out a short last batch, which may hold no negative at all, of a stored dataset only.
            size = args.train_batch_size * args.world_size
            train_dataset = train_dataset.map(dict, batched=True, batch_size=size, drop_last_batch=True)
        if data_collator is None:
            if processing_class is None:
                raise ValueError(f"{type(self).__name__} needs processing_class (or a data_collator) to render items")
            prepare = partial(
                micro_batches, processing_class, micro_batch_tokens=args.micro_batch_tokens, max_length=args.max_length
            )
            data_collator = type(self).collator_class(prepare)
        if peft_config is not None:
            set_seed(args.seed)  # as `Trainer` does, too late for the first weights of an adapter
            model = get_peft_model(model, peft_config)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise ValueError(
                "gradient caching runs a model several times per step, which FSDP1 does not allow: launch with FSDP2 "
                "(fsdp_version: 2), DeepSpeed, or plain data parallelism (distributed_type: MULTI_GPU)"
            )
        self._inputs: Batch = {}  # of the step that is being taken
        self._statistics: dict[str, dict[str, list[Tensor]]] = {"train": defaultdict(list), "eval": defaultdict(list)}

    @abstractmethod
    def batch_loss(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the scalars to log.

        Args:
            embeddings (`Tensor` of shape `(items, dimensions)`): This process's embeddings, in the order of the items.
            batch (`Mapping`): What the collator made.
        """

    def compute_loss(
        self, model: Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a batch; its backward goes through the micro-batches one by one.

        Raises:
            ValueError: The loss is not finite; the message names the step and the rows.
        """
        back = deepspeed_backward(model) if self.is_deepspeed_enabled else backward_micro_batch
        return self._loss(model, inputs, self.args.graph_cache_gb, back)

    def _loss(self, model: Module, inputs: Batch, gigabytes: float, back: BackwardMicroBatch) -> Tensor:
        statistics = self._statistics["train" if self.model.training else "eval"]
        micro_batches, to_item_order = inputs["micro_batches"], torch.argsort(inputs["order"])
        together = is_sharded(self.model) or self.is_deepspeed_enabled
        if together:
            micro_batches, rows = align_micro_batches(micro_batches)
            to_item_order = rows[to_item_order]

        def loss_fn(embeddings: Tensor) -> Tensor:
            embeddings = embeddings[to_item_order]
            loss, scalars = self.batch_loss(embeddings, inputs)
            for name, value in scalars.items():
                statistics[name].append(value)
            cuts = [self.batch_loss(cut, inputs)[0] for cut in self._cut(embeddings)]
            loss = torch.stack([loss, *cuts]).mean()
            if not loss.isfinite():  # in all processes: it is the same loss
                spoilt = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
                what = f"the loss is {loss.item()}"
                provenance = [inputs["provenance"][item] for item in spoilt]
                raise nonfinite_error(what, self.state.global_step + 1, provenance)
            return loss

        def embed(tensors: MicroBatch) -> Tensor:
            # The module itself, not the `model` that DistributedDataParallel wraps: its gradients are summed once per
            # step below, and processes may have any number and kind of micro-batches.
            return (model if self.is_deepspeed_enabled else self.model)(**tensors).embeddings

        embedder = self._embedder
        if isinstance(embedder, UniMEModel):
            if not (self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.activation_checkpointing):
                embed = with_last_layer_shortcut(embedder, embed)
            if torch.is_grad_enabled() and vision_is_frozen(embedder.backbone):
                embed = CachedVisionFeatures(embedder.backbone, embed)
        memory = GraphCacheBudget(gigabytes, self.model, together)
        return cached_loss(embed, micro_batches, loss_fn, memory, back)

    @property
    def _embedder(self) -> Module:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _cut(self, embeddings: Tensor) -> list[Tensor]:
        """The embeddings at each of the Matryoshka dimensions, normalised again."""
        chosen, whole = self.args.matryoshka_dims or [], embeddings.shape[1]
        if any(dimensions >= whole for dimensions in chosen):
            raise ValueError(f"matryoshka_dims {chosen} must be smaller than the model's {whole} dimensions")
        return [normalize(embeddings[:, :dimensions], dim=-1) for dimensions in chosen]

    def training_step(self, model: Module, inputs: Batch, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Add the gradients of a batch, summed over all processes."""
        self._inputs = inputs
        if self.is_deepspeed_enabled:  # `Trainer` would send the loss through the engine, as if it were a micro-batch
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            loss.backward()
            model.step()
            return loss.detach()
        if is_sharded(self.model):  # sums the gradients itself, after each micro-batch: it never holds them whole
            sum_when_reducing(self.model)
            return super().training_step(model, inputs, num_items_in_batch)
        loss = super().training_step(model, inputs, num_items_in_batch)
        sum_gradients(self.model.parameters())
        return loss

    def _get_grad_norm(self, model: Module, grad_norm: Tensor | float | None = None) -> Tensor | float:
        # `Trainer` asks before the optimizer's step, which it would take whatever the gradient is.
        norm = super()._get_grad_norm(model, grad_norm)
        # A gradient scaler provokes overflows and passes these steps over.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            what = f"the norm of the gradient is {float(norm)}"
            raise nonfinite_error(what, self.state.global_step + 1, self._spoiling(model))
        return norm

    def _spoiling(self, model: Module) -> list[str]:
        """Name the items of the micro-batch whose backward gives the first gradient that is not finite."""
        inputs, finite = self._prepare_inputs(self._inputs), []

        def watched(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
            backward_micro_batch(embeddings, gradient, last)
            finite.append(all_finite(parameter.grad for parameter in self.model.parameters()))

        provenance = inputs["provenance"]
        if is_sharded(self.model) or self.is_deepspeed_enabled:  # their micro-batches run in all processes together
            return provenance
        self.model.zero_grad()
        with self.compute_loss_context_manager():
            loss = self._loss(model, inputs, 0, watched)
        loss.backward()
        if False not in finite:
            return []
        sizes = [len(tensors["input_ids"]) for tensors in inputs["micro_batches"]]
        return [provenance[item] for item in inputs["order"].split(sizes)[finite.index(False)].tolist()]

    def prediction_step(
        self, model: Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Return the loss of an evaluation batch; there are no logits and no labels."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, adding the means of the scalars that were collected since the last time."""
        mode, prefix = ("train", "") if self.model.training else ("eval", "eval_")
        means = {prefix + name: torch.stack(values).mean().item() for name, values in self._statistics[mode].items()}
        self._statistics[mode].clear()
        super().log({**logs, **means}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint that loads everywhere, or the adapter where one is trained.

        The folders that the trainer writes on its way (`_internal_call`) are those of any `Trainer`: made to resume.

        Raises:
            ValueError: A weight is not finite; nothing is written.
        """
        if not is_sharded(self.model):
            check_finite_weights(self.model.named_parameters(), self.state.global_step)
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        directory = output_dir or self.args.output_dir
        if isinstance(self.model, PeftModel):
            super().save_model(directory)
            if self.args.should_save:
                make_publishable(directory)
        else:
            self._save_checkpoint_of_all(directory)
        if self.args.should_save:
            write_training_record(self, self._embedder, directory)

    def _save_checkpoint_of_all(self, directory: str) -> None:
        model, weights = self.model, None
        if is_sharded(model) or self.is_deepspeed_enabled:
            weights = self.accelerator.get_state_dict(self.model_wrapped)  # all processes give, the first one gets
        if is_sharded(model):  # FSDP2 changed its class
            with torch.device("meta"):
                model = UniMEModel(model.config)
        if self.args.should_save:
            save_checkpoint(model, self.processing_class, directory, state_dict=weights)

    def _save_checkpoint(self, model: Module, trial: Any) -> None:
        with removing_unfinished(Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # What comes after this, `trainer_state.json`, says that the checkpoint is complete: of all processes.
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Module | None = None) -> None:
        if not isinstance(self.model, PreTrainedModel) or is_sharded(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # `save_pretrained` may write a backbone's weights under their historical names. `Trainer` would look for the
        # present names, find none, warn, and train on from random weights; `from_pretrained` knows both.
        with forbid_remote_code(resume_from_checkpoint):
            saved, report = type(self.model).from_pretrained(
                resume_from_checkpoint, use_safetensors=True, output_loading_info=True
            )
        if report["missing_keys"]:
            raise ValueError(f"{resume_from_checkpoint} lacks weights, such as {min(report['missing_keys'])}")
        self.model.load_state_dict(saved.state_dict())

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # `Trainer` asks whether all steps are done only after a step: started again at its end, it takes one more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        if self.state.global_step == 0:  # `Trainer` would end here, and save the model as if it were trained
            raise ValueError(
                f"train_dataset ended before one batch of {self.args.train_batch_size} rows: lower the batch size"
            )

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)
