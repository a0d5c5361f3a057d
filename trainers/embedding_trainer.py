"""The trainer that both stages build on: gradient caching, one loss over all processes, evaluation and logging."""

import logging
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import partial
from typing import Any

import torch
from accelerate.utils import DynamoBackend, send_to_device
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput

from ..batching_unime import count_items, micro_batches
from ..configuration_unime import matryoshka_dimensions
from ..data.rows import Rows
from ..modeling_unime import UniMEModel
from .activation_checkpointing import compute_last_adapter_first
from .automatic_graph_cache import AutomaticGraphCache, Memory, memory_of
from .distributed import (
    align_micro_batches,
    deepspeed_backward,
    gather,
    is_sharded,
    prepare_without_wrapping,
    require_one_device,
    sum_gradients,
    sum_when_reducing,
)
from .embedding_config import EmbeddingConfig
from .gradient_cache import (
    BackwardMicroBatch,
    CachedVisionFeatures,
    GraphCache,
    GraphCacheBudget,
    MicroBatch,
    backward_micro_batch,
    cached_loss,
    vision_is_frozen,
    with_inputs_on,
    with_last_layer_shortcut,
)
from .layer_compilation import compile_layers
from .liger_kernels import use_liger_kernels
from .nonfinite import all_finite, nonfinite_error
from .resumable_trainer import ResumableTrainer
from .row_loading_trainer import RowLoadingTrainer
from .throughput import ModelFlops, Throughput, count_tokens
from .trained_weights import fit_to_model, modules_without_gradient


logger = logging.getLogger(__name__)

FULL_MASK_ATTENTION = ("eager", "sdpa")

Batch = Mapping[str, Any]


def check_rows(name: str, dataset: Rows, columns: Sequence[str]) -> None:
    """Check the first row of a dataset.

    Args:
        name (`str`): The name of the dataset in error messages.
        dataset (`Dataset` or `IterableDataset`): The rows.
        columns (`Sequence[str]`): The columns that each row must have.

    Raises:
        ValueError: There is no row, or the first row lacks a column.
    """
    # The first row, not `column_names`: a transform may make the rows from other columns.
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(f"{name} is empty")
    given = {"positive" if column == "positives" else column for column in row}  # either of them is enough
    missing = [column for column in columns if column not in given]
    if missing:
        raise ValueError(
            f"{name} lacks the column(s) {', '.join(missing)}: this trainer needs {', '.join(columns)}, but the rows "
            f"have {', '.join(row)}"
        )


def check_packing(embedder: UniMEModel) -> None:
    """Refuse to pack the items of a family where that is not exact, and warn where it is slow.

    Args:
        embedder ([`UniMEModel`]): The model that will be trained.

    Raises:
        ValueError: The model is of a family that cannot be packed.
    """
    embedder.require_packing()
    attention = embedder.backbone.get_decoder().config._attn_implementation
    if attention in FULL_MASK_ATTENTION:
        logger.warning(
            f"packed=True with attn_implementation='{attention}' computes a mask of all tokens by all tokens of a "
            "micro-batch, and gets slower the more items it holds: use flash_attention_2, or set packed to false"
        )


class EmbeddingTrainer(RowLoadingTrainer, ResumableTrainer, ABC):
    """A [`~transformers.Trainer`] with a loss that compares the embeddings of a whole batch, over all processes.

    A subclass defines the columns that it needs, its collator, and the loss of the embeddings of a batch.

    Args:
        model (`PreTrainedModel` or `Module`): Called with the tensors of a micro-batch; its output has `.embeddings`.
        args ([`EmbeddingConfig`]): The training arguments.
        train_dataset (`Dataset`, `IterableDataset` or [`TransformedStream`], *optional*): Training rows; a stream is
            read pass after pass until `max_steps`.
        eval_dataset (`Dataset`, `IterableDataset` or a `dict` of them, *optional*): Rows for [`evaluate`], or several
            sets by name.
        processing_class (`ProcessorMixin`, *optional*): UniME's processor; renders the items and is saved with the
            model. Required without a `data_collator`.
        data_collator (`Callable`, *optional*): Makes batches from rows; by default made from `processing_class`.
        peft_config ([`~peft.PeftConfig`], *optional*): Train adapters instead of the model's weights.
        callbacks (`list[TrainerCallback]`, *optional*): Callbacks of the training loop.
        optimizers (`tuple`, *optional*): Optimizer and learning rate scheduler.

    Raises:
        ValueError: `merge_dequantized` is set without quantized weights; a dataset is empty, lacks a column or is
            smaller than a batch; there is neither a processor nor a collator; one process has several GPUs; the
            training is sharded by FSDP1, or compiled and sharded; or `use_liger_kernel` is set for a device or a
            family that Liger's kernels do not support.
        MissingExtraError: `use_liger_kernel` is set and Liger is not installed.
    """

    columns: tuple[str, ...]
    convert_rows: Callable[[Any, str], Any]  # from a dataset and its name
    collator_class: Callable[[Callable], Callable]

    def __init__(
        self,
        model: PreTrainedModel | Module,
        args: EmbeddingConfig,
        train_dataset: Rows | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: ProcessorMixin | None = None,
        data_collator: Callable[[list[dict[str, Any]]], Batch] | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ):
        train_dataset = self._open(train_dataset, "train_dataset")
        eval_dataset = (
            {name: self._open(dataset, name) for name, dataset in eval_dataset.items()}
            if isinstance(eval_dataset, dict)
            else self._open(eval_dataset, "eval_dataset")
        )
        embedder = model.get_base_model() if isinstance(model, PeftModel) else model
        unime = embedder if isinstance(embedder, UniMEModel) else None
        if data_collator is None:
            if processing_class is None:
                raise ValueError(f"{type(self).__name__} needs processing_class (or a data_collator) to render items")
            prepare = partial(
                micro_batches,
                processing_class,
                micro_batch_tokens=args.micro_batch_tokens,
                max_length=args.max_length,
                packed=args.packed,
                config=None if unime is None else unime.config.backbone_config,
                dtype=None if unime is None else unime.dtype,  # to which the model casts pixels anyway
            )
            data_collator = type(self).collator_class(prepare)
        if peft_config is not None:
            set_seed(args.seed)  # `Trainer` sets it only after the adapter's weights are drawn
            model = get_peft_model(model, peft_config if unime is None else fit_to_model(peft_config, unime))
            if unime is not None:  # PEFT does not see what a wrapped backbone was loaded from
                model.active_peft_config.base_model_name_or_path = unime.name_or_path or unime.backbone.name_or_path
        if args.merge_dequantized and getattr(embedder, "hf_quantizer", None) is None:
            raise ValueError("merge_dequantized needs quantized weights: load the model in 4 bits, or remove it")
        if unime is not None:
            if train_dataset is not None:
                unime.config.matryoshka_dimensions = matryoshka_dimensions(unime.config, args.matryoshka_dims)
            if args.packed:
                check_packing(unime)
            if args.use_liger_kernel:
                use_liger_kernels(unime.backbone, args.liger_kernel_config, args.device)
            for name in modules_without_gradient(unime):  # no optimizer state, no weight decay: no gradient can come
                unime.get_submodule(name).requires_grad_(False)
            if args.activation_checkpointing:
                compute_last_adapter_first(unime.backbone)
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
        require_one_device(self.args)
        if isinstance(train_dataset, Sized) and len(train_dataset) < args.train_batch_size:
            raise ValueError(
                f"train_dataset has {len(train_dataset)} rows, fewer than one batch of {args.train_batch_size}: lower "
                "the batch size"
            )
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise ValueError(
                "gradient caching runs a model several times per step, which FSDP1 does not allow: launch with FSDP2 "
                "(fsdp_version: 2), DeepSpeed, or plain data parallelism (distributed_type: MULTI_GPU)"
            )
        if self.accelerator.use_distributed and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            prepare_without_wrapping(self.accelerator)
        self._compile()
        self._memory: Memory | None = None
        if math.isinf(args.graph_cache_gb):
            if not isinstance(self._embedder, UniMEModel):
                raise ValueError("graph_cache_gb=inf needs a UniMEModel to measure: set a number of gigabytes")
            self._memory = memory_of(self.args.device)
        self._automatic_graph_cache: AutomaticGraphCache | None = None
        self._current_batch: Batch = {}
        self._statistics: dict[str, dict[str, list[Tensor]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._throughput = Throughput()
        # Counted before the model is sharded.
        self._model_flops = ModelFlops(self._embedder) if isinstance(self._embedder, UniMEModel) else None

    def _compile(self) -> None:
        """Compile the layers of the backbone if `torch_compile` or accelerate's `dynamo_backend` is set."""
        plugin = self.accelerator.state.dynamo_plugin
        if plugin.backend == DynamoBackend.NO:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "torch_compile does not work with a model that FSDP2 or DeepSpeed shards: set it to false, and "
                "dynamo_backend to 'no' in the configuration of accelerate"
            )
        compile_layers(self._embedder.backbone, **plugin.to_kwargs())
        plugin.backend = DynamoBackend.NO  # accelerate would compile a wrapper around the model, which is not called

    @abstractmethod
    def batch_loss(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the scalars to log.

        Args:
            embeddings (`Tensor` of shape `(items, dimensions)`): This process's embeddings, in the order of the items.
            batch (`Mapping`): The output of the collator.
        """

    def compute_loss(
        self, model: Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a batch; its backward pass runs micro-batch by micro-batch.

        Raises:
            ValueError: The loss is not finite; the message names the step and the rows.
        """
        backward = deepspeed_backward(model) if self.is_deepspeed_enabled else backward_micro_batch
        return self._cached_loss(model, inputs, self._graph_cache(), backward)

    def _graph_cache(self) -> GraphCache:
        synchronize = self._runs_layers_together
        if self._memory is None:
            device = self.args.device if synchronize else None
            return GraphCacheBudget(self.args.graph_cache_gb, self.model, synchronize_on=device)
        if self._automatic_graph_cache is None:  # it learns in the first step
            self._automatic_graph_cache = AutomaticGraphCache(self._embedder.backbone, self._memory, synchronize)
        return self._automatic_graph_cache

    def _cached_loss(
        self, model: Module, inputs: Batch, graph_cache: GraphCache | None, backward: BackwardMicroBatch
    ) -> Tensor:
        statistics = self._statistics["train" if self.model.training else "eval"]
        micro_batches, to_item_order = inputs["micro_batches"], torch.argsort(inputs["order"])
        if self._runs_layers_together:
            micro_batches, rows = align_micro_batches(micro_batches)
            to_item_order = rows.to(to_item_order.device)[to_item_order]

        def loss_fn(embeddings: Tensor) -> Tensor:
            embeddings = embeddings[to_item_order]
            loss, scalars = self.batch_loss(embeddings, inputs)
            for name, value in scalars.items():
                statistics[name].append(value)
            truncated = [self.batch_loss(part, inputs)[0] for part in self._matryoshka_embeddings(embeddings)]
            loss = torch.stack([loss, *truncated]).mean()
            if not loss.isfinite():  # in all processes, as they compute the same loss
                items = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
                provenance = [inputs["provenance"][item] for item in items]
                raise nonfinite_error(f"the loss is {loss.item()}", self.state.global_step + 1, provenance)
            return loss

        def embed_full(tensors: MicroBatch) -> Tensor:
            return (model if self.is_deepspeed_enabled else self.model)(**tensors).embeddings

        embed: Callable[[MicroBatch], Tensor] = embed_full
        embedder = self._embedder
        if isinstance(embedder, UniMEModel):
            if not (self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.activation_checkpointing):
                embed = with_last_layer_shortcut(embedder, embed)
            if torch.is_grad_enabled() and vision_is_frozen(embedder.backbone):
                embed = CachedVisionFeatures(embedder.backbone, embed)
        device = self.args.device
        embed = with_inputs_on(device, embed)
        devices = {device}.union(parameter.device for parameter in self.model.parameters())
        return cached_loss(embed, micro_batches, loss_fn, graph_cache, backward, devices)

    def _open(self, dataset: Any, name: str) -> Any:
        """Return the rows of a dataset in the form that the collator reads, after checking the first of them."""
        if dataset is not None:
            dataset = self.convert_rows(dataset, name)
            check_rows(name, dataset, self.columns)
        return dataset

    @property
    def _runs_layers_together(self) -> bool:
        return is_sharded(self.model) or self.is_deepspeed_enabled

    def _matryoshka_embeddings(self, embeddings: Tensor) -> list[Tensor]:
        """Return the embeddings truncated to each of `matryoshka_dims` and normalized again."""
        dims, full = self.args.matryoshka_dims or [], embeddings.shape[1]
        if any(dimensions >= full for dimensions in dims):
            raise ValueError(f"matryoshka_dims {dims} must be smaller than the model's {full} dimensions")
        return [normalize(embeddings[:, :dimensions], dim=-1) for dimensions in dims]

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        # Micro-batches stay on the host: `with_inputs_on` copies each for its passes. No floats are cast to the type
        # of DeepSpeed's weights, which would round the scores and the teacher's embeddings.
        moved = {name: value for name, value in inputs.items() if name != "micro_batches"}
        return {**inputs, **send_to_device(moved, self.args.device, non_blocking=True)}

    def training_step(self, model: Module, inputs: Batch, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Add the gradients of a batch, summed over all processes."""
        self._current_batch = inputs
        self._throughput.add(inputs)
        if self.is_deepspeed_enabled:  # `Trainer` would backpropagate the loss through the engine itself
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            loss.backward()
            model.step()  # type: ignore[operator]
            return loss.detach()
        if is_sharded(self.model):  # FSDP2 reduces the gradients itself, after each micro-batch
            sum_when_reducing(self.model)
            return super().training_step(model, inputs, num_items_in_batch)
        loss = super().training_step(model, inputs, num_items_in_batch)
        sum_gradients(self.model.parameters())
        return loss

    def _get_grad_norm(self, model: Module, grad_norm: Tensor | float | None = None) -> Tensor | float:
        # `Trainer` calls this right before the optimizer's step, which it would take with any gradient.
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(norm) and self._loss_scale <= 1:
            what = f"the norm of the gradient is {float(norm)}"
            raise nonfinite_error(what, self.state.global_step + 1, self._provenance_of_nonfinite_gradient(model))
        return norm

    @property
    def _loss_scale(self) -> float:
        """Return the factor of the loss that fp16 training raises until it overflows; 1 in other training.

        An overflow is expected while it is larger than 1: the step is skipped and the factor is lowered.
        """
        if self.accelerator.scaler is not None:
            return self.accelerator.scaler.get_scale()
        if self.is_deepspeed_enabled:
            engine = self.model_wrapped
            # The engine has lowered its scale by now, and has raised an error if it could not.
            return math.inf if engine.fp16_enabled() and engine.dynamic_loss_scale() else 1.0
        return 1.0

    def _provenance_of_nonfinite_gradient(self, model: Module) -> list[str]:
        """Return where the items of the first micro-batch with a gradient that is not finite come from."""
        inputs, finite = self._prepare_inputs(self._current_batch), []

        def checked_backward(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
            backward_micro_batch(embeddings, gradient, last)
            finite.append(all_finite(parameter.grad for parameter in self.model.parameters()))

        provenance = inputs["provenance"]
        if self._runs_layers_together:  # one process alone cannot run its micro-batches again
            return provenance
        self.model.zero_grad()
        with self.compute_loss_context_manager():
            loss = self._cached_loss(model, inputs, None, checked_backward)
        loss.backward()
        if False not in finite:
            return []
        sizes = [count_items(tensors) for tensors in inputs["micro_batches"]]
        return [provenance[item] for item in inputs["order"].split(sizes)[finite.index(False)].tolist()]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the evaluation batches of the rows, or of the trainer's own `eval_dataset` or a named set of it."""
        named = eval_dataset is None or isinstance(eval_dataset, str)
        return super().get_eval_dataloader(eval_dataset if named else self._open(eval_dataset, "eval_dataset"))

    def prediction_step(
        self, model: Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """Return the loss of an evaluation batch; there are no logits and no labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss = self.compute_loss(model, inputs)
        num_rows, _ = gather(inputs["num_rows"])
        self._statistics["eval"]["loss"].append(loss)
        self._statistics["eval"]["num_rows"].append(num_rows.sum())
        return loss, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the metrics are the means over the rows of the loss and of the statistics of each batch."""
        self._statistics["eval"].clear()  # an evaluation that raised an error may have left some
        with self._throughput.paused():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        values = {name: torch.stack(values).float() for name, values in self._statistics["eval"].items()}
        num_rows = values.pop("num_rows")
        means = {name: (value * num_rows).sum() / num_rows.sum() for name, value in values.items()}
        output.metrics.update({f"{metric_key_prefix}_{name}": mean.item() for name, mean in means.items()})
        return output._replace(num_samples=int(num_rows.sum()))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log values; with those of training also the means of the statistics since the last call, and the speed."""
        if self.model.training:
            means = {name: torch.stack(values).mean().item() for name, values in self._statistics["train"].items()}
            self._statistics["train"].clear()
            logs = {**logs, **means}
        if "loss" in logs:
            logs |= self._throughput.rates(self.args.device)
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Return the operations of a training step of this process, see [`ModelFlops`]; 0 for other models."""
        return self._model_flops.of_batch(inputs["micro_batches"]) if self._model_flops is not None else 0

    def _track_num_input_tokens(self, inputs: Batch) -> None:
        if self.args.include_num_input_tokens_seen == "no":
            return
        tokens = count_tokens(inputs["micro_batches"], padding=self.args.include_num_input_tokens_seen == "all")
        counts, _ = gather(torch.tensor([tokens], device=self.args.device))
        self.state.num_input_tokens_seen += int(counts.sum())

    def _save_checkpoint(self, model: Module, trial: Any) -> None:
        with self._throughput.paused():
            super()._save_checkpoint(model, trial)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._throughput.start()
        super()._run_epoch(*args, **kwargs)
