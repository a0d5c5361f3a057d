"""A reranker: an image-text model that says how well candidates meet a query, or which of them meets it best."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, PreTrainedModel, ProcessorMixin

from .checkpoint_safety import check_integrity, forbid_remote_code, give_weights_the_umask
from .image_size import ImageSize, set_image_size
from .judge_model import JudgeModel
from .judging import answer_positions, conversation_images, listwise_messages, prompt_tensors, render
from .modeling_unime import require_all_weights
from .processing_unime import Item
from .rerank_answers import FILLER, answer_tokens, position_answer, with_answers
from .rerank_cross_encoder import save_with_cross_encoder


def load_reranker(
    path: str, image_size: ImageSize | None = None, **kwargs: Any
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a reranker, or any image-text model with a language-model head, and its processor.

    Args:
        path (`str`): Folder or Hub id of the model.
        image_size (`int`, `dict` or `str`, *optional*): The size at which the model reads images, see
            [`set_image_size`]. Defaults to the one that was saved with it.
        kwargs: Passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, ...).

    Returns:
        `tuple[PreTrainedModel, ProcessorMixin]`: The model, in evaluation mode, and its processor.

    Raises:
        ValueError: It is no image-text model of transformers, its weights are a pickle, incomplete or damaged, or it
            requires code of its own.
    """
    check_integrity(path)
    options = {"trust_remote_code": False}
    with forbid_remote_code(path):
        model, report = AutoModelForImageTextToText.from_pretrained(
            path, use_safetensors=True, output_loading_info=True, **options, **kwargs
        )
        processor = AutoProcessor.from_pretrained(path, **options)
    require_all_weights(path, report["missing_keys"])
    set_image_size(processor, image_size)
    return model.eval(), processor


def save_reranker(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    directory: str | Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Save a model and its processor in the form of the backbone, which sentence-transformers loads as a CrossEncoder.

    Args:
        model (`PreTrainedModel`): The model, with adapters merged.
        processor (`ProcessorMixin`): Its processor.
        directory (`str` or `Path`): Folder to write to.
        state_dict (`dict`, *optional*, defaults to the model's own): Weights to save, for a sharded model.
    """
    model.save_pretrained(directory, state_dict=state_dict)
    save_with_cross_encoder(processor, directory)
    give_weights_the_umask(directory)


@dataclass(frozen=True)
class RankedCandidate:
    """A candidate in the order of a reranker.

    Args:
        index (`int`): Its index among the candidates that were given.
        score (`float`): Its score, from 0 to 1; larger is better.
    """

    index: int
    score: float


class UniMEReranker:
    """A model that ranks the candidates of a query.

    Args:
        model (`PreTrainedModel`): Generative image-text model, in evaluation mode.
        processor (`ProcessorMixin`): Its processor.
        method (`str`, *optional*, defaults to `"pointwise"`): `"pointwise"` asks about each candidate, and its score
            is the probability of "Yes". `"listwise"` asks once which candidate is the best, and scores are the
            probabilities of the positions; the model should have been trained on lists of this length.
        batch_tokens (`int`, *optional*, defaults to 16384): Tokens of a forward pass, see [`JudgeModel`].

    Raises:
        ValueError: The method is unknown, the model does not generate text, or its tokenizer cannot tell "Yes" from
            "No".

    Example:
        reranker = UniMEReranker.from_pretrained("runs/reranker")
        best = reranker.rank("a cat on a sofa", [first_image, second_image])[0].index
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        method: Literal["pointwise", "listwise"] = "pointwise",
        batch_tokens: int = 16384,
    ):
        if method not in ("pointwise", "listwise"):
            raise ValueError(f"method must be 'pointwise' or 'listwise', got '{method}'")
        self.model, self.processor, self.method = model, processor, method
        if method == "pointwise":  # without the penalty of the published scores, which changes no order
            self._judge = JudgeModel(model, processor, repetition_penalty=1.0, batch_tokens=batch_tokens)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        method: Literal["pointwise", "listwise"] = "pointwise",
        image_size: ImageSize | None = None,
        device: str | torch.device = "cpu",
        **kwargs: Any,
    ) -> "UniMEReranker":
        """Load a reranker.

        Args:
            path (`str`): Folder or Hub id of a reranker, or of any generative image-text model.
            method (`str`, *optional*, defaults to `"pointwise"`): See the class.
            image_size (`int`, `dict` or `str`, *optional*): See [`load_reranker`].
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Device of the model.
            kwargs: Passed to `from_pretrained` (`dtype`, `attn_implementation`, ...).
        """
        model, processor = load_reranker(path, image_size, **kwargs)
        return cls(model.to(device), processor, method)

    def scores(self, query: Item, candidates: Sequence[Item]) -> list[float]:
        """Return the score of each candidate, see the class.

        Args:
            query (`str`, `PIL.Image`, `list` or `dict`): The query.
            candidates (`list`): The candidates.

        Raises:
            ValueError: An item is malformed, an image is damaged, the prompt is longer than the model reads, or a
                score is not finite.
        """
        if not candidates:
            return []
        if self.method == "pointwise":
            return self._judge(query, candidates)
        return self._position_probabilities(query, candidates).tolist()

    def rank(self, query: Item, candidates: Sequence[Item], top_n: int | None = None) -> list[RankedCandidate]:
        """Return the candidates by falling score; those of equal score keep their order.

        Args:
            query (`str`, `PIL.Image`, `list` or `dict`): The query.
            candidates (`list`): The candidates, such as the best ones of an embedder.
            top_n (`int`, *optional*): How many to return; all by default.
        """
        scores = self.scores(query, candidates)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return [RankedCandidate(index, scores[index]) for index in order[:top_n]]

    @torch.inference_mode()
    def _position_probabilities(self, query: Item, candidates: Sequence[Item]) -> Tensor:
        """Return the probability of each position if the model could give no other answers.

        Where the answers of several positions continue with different tokens, their probabilities are compared:
        `Ans: (1)` and `Ans: (10)` part only after the `1` where digits are single tokens. All these places are rows of
        one forward pass.
        """
        answers = [tuple(answer_tokens(self.processor, position_answer(place))) for place in range(len(candidates))]
        continuations: dict[tuple[int, ...], set[int]] = {}
        for answer in answers:
            for length, token in enumerate(answer):
                continuations.setdefault(answer[:length], set()).add(token)
        forks = [start for start, tokens in continuations.items() if len(tokens) > 1]
        if not forks:  # a single candidate
            return torch.ones(len(answers))
        conversation = listwise_messages(query, candidates)
        texts, images = render(self.processor, [conversation]) * len(forks), [conversation_images(conversation)]
        prompts = prompt_tensors(self.processor, texts, images * len(forks))
        starts = [torch.tensor(start, dtype=torch.long) for start in forks]
        inputs = with_answers(prompts, pad_sequence(starts, batch_first=True, padding_value=FILLER))
        limit = self.model.config.get_text_config().max_position_embeddings
        if inputs["input_ids"].shape[1] > limit:
            raise ValueError(
                f"the list of {len(candidates)} candidates has {inputs['input_ids'].shape[1]} tokens, but the model "
                f"reads {limit}: rerank fewer candidates, or use smaller images"
            )
        tensors = BatchFeature(inputs).to(self.model.device, dtype=self.model.dtype)
        positions = answer_positions(self.model, tensors)
        longest = max(map(len, forks))
        output = self.model(**tensors, position_ids=positions, use_cache=False, logits_to_keep=longest + 1)
        probabilities = torch.ones(len(answers))
        for start, logits in zip(forks, output.logits.float().cpu(), strict=True):
            tokens = sorted(continuations[start])
            chosen = dict(zip(tokens, logits[len(start), tokens].softmax(dim=0), strict=True))
            for place, answer in enumerate(answers):
                if answer[: len(start)] == start:
                    probabilities[place] *= chosen[answer[len(start)]]
        if not probabilities.isfinite().all():
            raise ValueError("a probability is not finite: load the reranker in bfloat16 or float32")
        return probabilities


__all__ = ["RankedCandidate", "UniMEReranker", "load_reranker", "save_reranker"]
