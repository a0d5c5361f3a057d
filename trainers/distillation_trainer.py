"""Stage 1: textual discriminative knowledge distillation (UniME, arXiv 2504.17432, §3.2)."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from numpy.typing import ArrayLike
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel

from ..data.collator import DistillationCollator
from .adapter import restrict_to
from .distillation_config import DistillationConfig
from .distributed import gather
from .embedding_trainer import Batch, EmbeddingTrainer
from .losses import distillation_kl


class DistillationTrainer(EmbeddingTrainer):
    """Teaches the language model of a UniME model the similarities that a text embedder sees.

    Rows have `text`, and `teacher` (the embedding of the text, see [`precompute_teacher`]) unless a teacher is given.
    Only the language model is trained, fully or through adapters: everything else stays as it is, bit for bit.

    Args:
        model ([`UniMEModel`]): The model.
        args ([`DistillationConfig`]): The settings.
        teacher (`Callable`, *optional*):
            Maps a list of texts to their embeddings `(texts, dimensions)` as training goes, such as
            `SentenceTransformer.encode`; without it the rows must have the column `teacher`.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapters to train; whatever modules it targets, those outside the language model are left out.
        kwargs: As in [`EmbeddingTrainer`].
    """

    args: DistillationConfig
    columns = ("text", "teacher")
    collator_class = DistillationCollator

    def __init__(
        self,
        model: PreTrainedModel,
        args: DistillationConfig,
        train_dataset: Dataset | IterableDataset | None = None,
        teacher: Callable[[list[str]], ArrayLike] | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ):
        self.teacher = teacher
        if teacher is not None:
            self.columns = ("text",)
        language_model = model.backbone.get_decoder()
        if peft_config is None:
            model.requires_grad_(False)
            language_model.requires_grad_(True)
        else:
            prefix = next(name for name, module in model.named_modules() if module is language_model)
            peft_config = restrict_to(peft_config, prefix)
        super().__init__(model, args, train_dataset, peft_config=peft_config, **kwargs)
        inside = {id(parameter) for parameter in language_model.parameters()}
        outside = [n for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in inside]
        if outside:
            raise ValueError(f"stage 1 trains the language model only, but {outside[0]} lies outside: leave it out")

    def batch_loss(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare the texts of all processes with each other, in the student's eyes and in the teacher's."""
        text = batch["text"]
        if "teacher" in batch:
            known = batch["teacher"]
        else:
            known = torch.as_tensor(self.teacher(batch["texts"]), dtype=torch.float32, device=text.device)[text]
        student, _ = gather(embeddings[text])
        teacher, _ = gather(known)
        loss = distillation_kl(
            student,
            teacher,
            student_temperature=self.args.student_temperature,
            teacher_temperature=self.args.teacher_temperature,
            kl_direction=self.args.kl_direction,
        )
        return loss, {}
