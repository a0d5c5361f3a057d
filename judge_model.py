"""Judge candidates of queries with a generative image-text model.

All candidates of a query follow the same tokens: the prompt and the query with its images. Their keys and values are
computed once and shared by the candidates, where that gives the same scores.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, Cache, DynamicCache, PreTrainedModel, ProcessorMixin

from .encoding_unime import TEXT_ONLY_DECODER_FAMILIES, PrefixLayer
from .image_tokens_unime import count_image_tokens
from .judging import (
    PUBLISHED_REPETITION_PENALTY,
    answer_positions,
    conversation_images,
    label_probabilities,
    label_tokens,
    pairwise_messages,
    prompt_tensors,
    render,
)
from .processing_unime import Item, to_item_dict


_MARK = "\0"  # stands for a candidate, to find where it begins
# What stands before a candidate: a tokenizer may treat the beginning of a text otherwise, such as by adding a space.
_ANCHOR = "Candidate:"


class JudgeModel:
    """A model that answers whether a candidate meets the requirements of a query.

    Args:
        model (`PreTrainedModel`): Generative image-text model, such as of `AutoModelForImageTextToText`, in evaluation
            mode.
        processor (`ProcessorMixin`): Its processor.
        repetition_penalty (`float`, *optional*, defaults to 1.05): Repetition penalty, see [`label_probabilities`].
            The published scores of UniME-V2 have 1.05; 1 reads the model's own probabilities.
        batch_tokens (`int`, *optional*, defaults to 16384): Tokens of a forward pass: rows times tokens of the longest
            row, without those that the candidates share. A single pair may exceed it.
        share_query (`bool`, *optional*, defaults to `True`): Whether the tokens that the candidates of a query share
            pass through the model once. The scores are equal up to rounding. Families whose layers are not all causal
            attention, or that the tests do not compare, read each pair as a whole.

    Raises:
        ValueError: The model does not generate text, or its tokenizer cannot tell "Yes" from "No".
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        repetition_penalty: float = PUBLISHED_REPETITION_PENALTY,
        batch_tokens: int = 16384,
        share_query: bool = True,
    ):
        if not model.can_generate():
            raise ValueError(
                f"{type(model).__name__} does not generate text: load the judge by AutoModelForImageTextToText"
            )
        self.model, self.processor = model, processor
        self.repetition_penalty, self.batch_tokens = repetition_penalty, batch_tokens
        self.labels = label_tokens(processor)
        self._anchor = self._tokens(_ANCHOR, add_special=False)
        self.share_query = share_query and model.config.model_type in TEXT_ONLY_DECODER_FAMILIES

    def __call__(self, query: Item, candidates: Sequence[Item]) -> list[float]:
        """Return the probability of "Yes" for each candidate.

        Args:
            query (`str`, `PIL.Image`, `list` or `dict`): The query.
            candidates (`list`): The candidates.

        Raises:
            ValueError: An item is malformed, an image is damaged or has a shape that the processor rejects, a pair is
                longer than the model reads, or its score is not finite.
        """
        conversations = [pairwise_messages(query, candidate) for candidate in candidates]
        texts = render(self.processor, conversations)
        images = [conversation_images(conversation) for conversation in conversations]
        num_query_images = len(to_item_dict(query)["images"])
        start = render(self.processor, [pairwise_messages(query, _MARK)])[0].rpartition(_MARK)[0]
        shared = [n for n, text in enumerate(texts) if self._continues(start, text, len(images[n]), num_query_images)]
        if not self.share_query or len(shared) < 2:
            shared = []
        scores = torch.full((len(texts),), torch.nan)
        if shared:
            prefix = self._inputs([start], [images[0][:num_query_images]])
            ends = {place: _ANCHOR + texts[place][len(start) :] for place in shared}
            prefix_length = prefix["input_ids"].shape[1] - len(self._anchor)
            end_images = {place: images[place][num_query_images:] for place in shared}
            cache = self._prefill(prefix)
            for places in self._batches(ends, end_images, prefix_length):
                inputs = self._inputs([ends[n] for n in places], [end_images[n] for n in places], add_special=False)
                inputs["attention_mask"] = self._without_anchor(inputs["attention_mask"])
                scores[places] = self._score_after(prefix, cache, inputs, [len(end_images[n]) for n in places])
        rest = [place for place in range(len(texts)) if place not in set(shared)]
        for places in self._batches({n: texts[n] for n in rest}, {n: images[n] for n in rest}):
            inputs = self._inputs([texts[n] for n in places], [images[n] for n in places])
            scores[places] = self._score(inputs)
        if not scores.isfinite().all():
            bad = int((~scores.isfinite()).nonzero()[0])
            raise ValueError(f"the score of candidate {bad} is not finite: judge in bfloat16 or float32")
        return scores.tolist()

    def _continues(self, start: str, text: str, num_images: int, num_query_images: int) -> bool:
        """Return whether the tokens of a pair are those of the shared start and then those of the rest."""
        both_have_images = 0 < num_query_images < num_images or 0 == num_query_images and num_images > 1
        if both_have_images and type(self.processor).__name__ == "LlavaOnevisionProcessor":
            return False  # it reads an image in less detail if there are several
        end = self._tokens(_ANCHOR + text[len(start) :], add_special=False)
        anchor, end = end[: len(self._anchor)], end[len(self._anchor) :]
        return anchor == self._anchor and self._tokens(start) + end == self._tokens(text)

    def _without_anchor(self, mask: Tensor) -> Tensor:
        """Return a mask that takes the anchor, at the beginning of each left-padded row, for padding too."""
        first = mask.argmax(dim=1, keepdim=True)
        return mask * (torch.arange(mask.shape[1], device=mask.device) >= first + len(self._anchor))

    def _tokens(self, text: str, add_special: bool = True) -> list[int]:
        bos = self.processor.tokenizer.bos_token
        add_special = add_special and not (bos is not None and text.startswith(bos))
        return self.processor.tokenizer(text, add_special_tokens=add_special)["input_ids"]

    def _length(self, text: str, images: Sequence[Any]) -> int:
        sizes = [image.size for image in images]
        return len(self._tokens(text)) - len(images) + count_image_tokens(self.processor, sizes)

    def _batches(
        self, texts: Mapping[int, str], images: Mapping[int, Sequence[Any]], prefix_length: int = 0
    ) -> list[list[int]]:
        """Group pairs of similar length under the token budget; a batch has images in all rows or in none."""
        limit = self.model.config.get_text_config().max_position_embeddings
        lengths = {place: self._length(texts[place], images[place]) for place in texts}
        for place, length in lengths.items():
            if prefix_length + length > limit:
                raise ValueError(
                    f"candidate {place} and its query have {prefix_length + length} tokens, but the judge reads "
                    f"{limit}: shorten the texts or give smaller images"
                )
        batches: list[list[int]] = []
        for place in sorted(texts, key=lambda place: (bool(images[place]), lengths[place])):
            batch = batches[-1] if batches else []
            alike = batch and bool(images[batch[0]]) == bool(images[place])
            if alike and (len(batch) + 1) * lengths[place] <= self.batch_tokens:
                batch.append(place)
            else:
                batches.append([place])
        return batches

    def _inputs(
        self, texts: Sequence[str], images: Sequence[Sequence[Any]], add_special: bool | None = None
    ) -> BatchFeature:
        tensors = prompt_tensors(self.processor, texts, images, add_special_tokens=add_special)
        return tensors.to(self.model.device, dtype=self.model.dtype)

    @torch.inference_mode()
    def _score(self, inputs: BatchFeature) -> Tensor:
        positions = answer_positions(self.model, inputs)
        output = self.model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=1)
        return self._probabilities(output.logits, inputs["input_ids"])

    @torch.inference_mode()
    def _prefill(self, prefix: BatchFeature) -> Cache:
        """Return the keys and values of the shared start, which batches do not change."""
        cache = DynamicCache()  # created without a configuration: sliding-window layers would drop tokens
        positions = answer_positions(self.model, prefix)
        self.model(**prefix, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in cache.layers])

    @torch.inference_mode()
    def _score_after(
        self, prefix: BatchFeature, cache: Cache, inputs: BatchFeature, num_images: Sequence[int]
    ) -> Tensor:
        """Score what follows the shared start, with its padding between both; `num_images` are those of each row."""
        rows = len(inputs["input_ids"])
        whole = {
            name: torch.cat([prefix[name].expand(rows, -1), inputs[name]], dim=1)
            for name in ("input_ids", "attention_mask", "mm_token_type_ids")
            if name in inputs
        }
        if "mm_token_type_ids" in whole:  # Qwen-VL: the sizes of all images of each row
            no_images = inputs["input_ids"].new_empty(0, 3)
            start = prefix.get("image_grid_thw", no_images)
            own = inputs.get("image_grid_thw", no_images).split(list(num_images))
            if sum(num_images) or len(start):
                whole["image_grid_thw"] = torch.cat([grid for row in own for grid in (start, row)])
        shared_tokens = prefix["input_ids"].shape[1]
        positions = answer_positions(self.model, whole)[..., shared_tokens:]
        inputs = BatchFeature({**inputs, "attention_mask": whole["attention_mask"], "position_ids": positions})
        output = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return self._probabilities(output.logits, whole["input_ids"])

    def _probabilities(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        return label_probabilities(logits[:, -1], input_ids, self.labels, self.repetition_penalty)[:, 0].cpu()


__all__ = ["JudgeModel"]
