"""A trainer that saves and resumes whatever holds the weights: adapters, FSDP2 or DeepSpeed."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.nn import Module
from transformers import PreTrainedModel, Trainer

from ..checkpoint import save_checkpoint
from ..checkpoint_safety import forbid_remote_code, give_weights_the_umask
from ..modeling_unime import UniMEModel, require_all_weights
from .adapter import make_publishable
from .checkpointing import copy_to_every_node, removing_unfinished, write_training_record
from .distributed import gather_weights, is_sharded, only_saved_state_expected, without_loss_scaling
from .nonfinite import check_finite_weights


class ResumableTrainer(Trainer):
    """A [`~transformers.Trainer`] whose checkpoints are complete, finite and resume exactly.

    `save_model` writes a checkpoint that loads everywhere; the `checkpoint-*` folders are made to resume.
    """

    @property
    def _embedder(self) -> PreTrainedModel:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a checkpoint that loads everywhere, or the adapter if one is trained.

        The `checkpoint-*` folders of a training run (`_internal_call`) are those of any `Trainer`, made to resume.

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
            if is_sharded(self.model):  # `Trainer` would write no adapter
                weights = gather_weights(self.model, self.args.should_save, trained_only=True)
                self._save(directory, state_dict=weights)
            else:
                super().save_model(directory)
            if self.args.should_save:
                make_publishable(directory)
        else:
            self._save_full_model(directory)
        if self.args.should_save:
            write_training_record(self, self._embedder, directory)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        give_weights_the_umask(output_dir or self.args.output_dir)

    def _save_full_model(self, directory: str) -> None:
        model, weights = self.model, self._gathered_weights()
        if is_sharded(model):
            with torch.device("meta"):  # FSDP2 replaced the model's class
                model = UniMEModel(model.config)
        if self.args.should_save:
            save_checkpoint(model, self.processing_class, directory, state_dict=weights)

    def _gathered_weights(self) -> dict[str, Any] | None:
        """Return the whole weights of a sharded model, otherwise None; every process must call this."""
        if self.is_deepspeed_enabled:
            return self.accelerator.get_state_dict(self.model_wrapped)
        return gather_weights(self.model, self.args.should_save) if is_sharded(self.model) else None

    def _save_checkpoint(self, model: Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        with removing_unfinished(folder):
            super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if isinstance(self.model, PeftModel) and not is_sharded(self.model) and self.is_world_process_zero():
            make_publishable(checkpoint_folder)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.args.save_on_each_node:
            copy_to_every_node(Path(output_dir), self.args)
        # `trainer_state.json`, written next, marks the checkpoint as complete: all processes must have written theirs.
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Module | None = None) -> None:
        if not isinstance(self.model, PreTrainedModel) or is_sharded(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # `save_pretrained` may write a backbone's weights under historical names. `Trainer` would not find the present
        # names, warn, and continue from random weights; `from_pretrained` knows both.
        with forbid_remote_code(resume_from_checkpoint):
            saved, report = type(self.model).from_pretrained(
                resume_from_checkpoint, use_safetensors=True, output_loading_info=True
            )
        require_all_weights(resume_from_checkpoint, report["missing_keys"])
        self.model.load_state_dict(saved.state_dict())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with without_loss_scaling(self.optimizer) if is_sharded(self.model) else nullcontext():
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with only_saved_state_expected(self.model, checkpoint), without_loss_scaling(self.optimizer):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:  # its engine has the weights, perhaps as shards
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
