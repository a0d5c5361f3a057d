"""Stage 1: textual discriminative knowledge distillation (UniME, arXiv 2504.17432, §3.2)."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from datasets import Dataset, IterableDataset
from numpy.typing import ArrayLike
from peft import PeftConfig
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from ..data.collator import DistillationCollator
from ..data.row_conversion import as_texts
from .distillation_config import DistillationConfig
from .distributed import gather
from .embedding_trainer import Batch, EmbeddingTrainer
from .losses import distillation_kl
from .trained_weights import restrict_to


class DistillationTrainer(EmbeddingTrainer):
    """A trainer that distills the text similarities of a teacher into the language model of a UniME model.

    Rows are texts, or dicts with `text`, and with `teacher` (the teacher's embedding of the text, see
    [`precompute_teacher`]) unless `teacher` is given. Only the language model is trained, fully or through adapters;
    all other weights stay unchanged.

    Args:
        model ([`UniMEModel`]): The model.
        args ([`DistillationConfig`]): The training arguments.
        train_dataset (`Dataset`, `IterableDataset` or a list of texts, *optional*): Training rows.
        teacher (`Callable`, *optional*): Maps a list of texts to their embeddings `(texts, dimensions)` during
            training, such as `SentenceTransformer.encode`. Without it the rows need the column `teacher`.
        peft_config ([`~peft.PeftConfig`], *optional*): Adapters to train. Modules outside the language model get none,
            even if its `target_modules` match them.
        kwargs: Passed to [`EmbeddingTrainer`].

    Raises:
        ValueError: `peft_config` trains weights outside the language model, such as those of `modules_to_save`.
    """

    args: DistillationConfig
    columns: tuple[str, ...] = ("text", "teacher")
    convert_rows = staticmethod(as_texts)
    collator_class = DistillationCollator

    def __init__(
        self,
        model: PreTrainedModel,
        args: DistillationConfig,
        train_dataset: Dataset | IterableDataset | Sequence[str] | None = None,
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
            raise ValueError(
                f"stage 1 trains the language model only, but {outside[0]} lies outside: remove it from peft_config"
            )

    def compute_loss(
        self, model: Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Return the loss of a batch; an online teacher embeds its texts once, however often the loss is computed."""
        return super().compute_loss(model, self._with_teacher(inputs), return_outputs, num_items_in_batch)

    def _with_teacher(self, batch: Batch) -> Batch:
        if "teacher" in batch:
            return batch
        teach = cast(Callable[[list[str]], ArrayLike], self.teacher)
        embeddings = torch.as_tensor(teach(batch["texts"]), dtype=torch.float32, device=batch["text"].device)
        return {**batch, "teacher": embeddings[batch["text"]]}

    def batch_loss(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare the student's and the teacher's similarities among the texts of all processes."""
        student, _ = gather(embeddings[batch["text"]])
        teacher, _ = gather(self._with_teacher(batch)["teacher"])
        loss = distillation_kl(
            student,
            teacher,
            student_temperature=self.args.student_temperature,
            teacher_temperature=self.args.teacher_temperature,
            kl_direction=self.args.kl_direction,
        )
        return loss, {}
