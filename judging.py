"""Ask an image-text model about a query and candidates, and read the probability of its answer "Yes".

The prompts are those of UniME-V2 (arXiv 2510.13515) as its code has them (GaryGuTC/UniME-v2, `src/model_utils.py`).
Any generative image-text model of transformers can answer them: the *judge* that scores hard negatives, and the
reranker.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from .image_input_unime import images_before_processor
from .processing_unime import BREAK_UP, TEMPLATE_HEAD, Item, chat_template, normalize_item


PAIRWISE_PROMPT = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the requirements of "
    "the query. If it does, respond with 'Yes'; if it doesn't, respond with 'No'."
)
LISTWISE_PROMPT = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, etc. Each "
    "candidate is independent of the others. Evaluate each candidate against the query, and respond with the number "
    "corresponding to the candidate that best meets the requirements of the query."
)
# Qwen2.5-VL's generation configuration has this repetition penalty. The published scores are read behind it.
PUBLISHED_REPETITION_PENALTY = 1.05
Conversation = list[dict[str, Any]]

# Writes the parts in their order into the frame of the backbone's own template, which may put all images first.
# Control tokens inside texts are broken up by a space.
_TEMPLATE = "{%- set frame = FRAME -%}" + BREAK_UP
_TEMPLATE += """\
{{- frame.start -}}
{%- for part in messages[0]['content'] -%}
{%- if part['type'] == 'image' -%}{{- frame.image -}}
{%- else -%}{{- break_up(part['text']) -}}
{%- endif -%}
{%- endfor -%}
{{- frame.end -}}
"""


def pairwise_messages(query: Item, candidate: Item) -> Conversation:
    """Return the question whether a candidate meets the requirements of a query, as one user turn.

    As in the released code, nothing separates the parts, a part that an item lacks is left out, and an item's images
    stand before its text. The texts and images of an interleaved item keep their order. An instruction stands before
    the item's first text.

    Args:
        query (`str`, `PIL.Image`, `list` or `dict`): The query.
        candidate (`str`, `PIL.Image`, `list` or `dict`): The candidate.

    Returns:
        `list[dict]`: The conversation, with images as `{"type": "image", "image": PIL.Image}`.

    Raises:
        ValueError: An item is malformed or has a video, or one of its images is damaged.
    """
    return _user_turn([f"{PAIRWISE_PROMPT}Query:", *_parts(query, 0), "Candidate:", *_parts(candidate, 1)])


def listwise_messages(query: Item, candidates: Sequence[Item]) -> Conversation:
    """Return the question which of several candidates, numbered from 1, meets the requirements of a query best.

    Args:
        query (`str`, `PIL.Image`, `list` or `dict`): The query.
        candidates (`list`): The candidates.

    Raises:
        ValueError: There is no candidate, an item is malformed, or one of its images is damaged.
    """
    if not candidates:
        raise ValueError("there is no candidate to choose from: give at least one")
    parts = [f"{LISTWISE_PROMPT}Query:", *_parts(query, 0), "Candidates:"]
    for number, candidate in enumerate(candidates, start=1):
        parts += [f"({number}) ", *_parts(candidate, number)]
    return _user_turn(parts)


def _parts(item: Item, index: int) -> list[Any]:
    """Return the texts and images of an item, its instruction before the first text."""
    normalized = normalize_item(item, index)
    if any(isinstance(part, tuple) for part in normalized["content"]):
        raise ValueError("the prompt has no place for a video: give its frames as the item's images")
    parts = [part if isinstance(part, str) else normalized["images"][part] for part in normalized["content"]]
    if instruction := (normalized["instruction"] or "").rstrip():
        first = next((place for place, part in enumerate(parts) if isinstance(part, str)), len(parts))
        text = parts[first] if first < len(parts) else ""
        parts[first : first + 1] = [f"{instruction} {text}" if text else instruction]
    return parts


def _user_turn(parts: Sequence[Any]) -> Conversation:
    content: list[dict[str, Any]] = []
    for part in parts:
        if not isinstance(part, str):
            content.append({"type": "image", "image": part})
        elif content and content[-1]["type"] == "text":  # some servers separate two texts by a line feed
            content[-1]["text"] += part
        else:
            content.append({"type": "text", "text": part})
    return [{"role": "user", "content": content}]


def conversation_images(conversation: Conversation) -> list[Any]:
    """Return the images of a conversation in their order."""
    return [part["image"] for part in conversation[0]["content"] if part["type"] == "image"]


def prompt_frame(processor: ProcessorMixin) -> dict[str, Any]:
    """Return what a backbone's chat template writes around texts and images, and the control tokens of its texts.

    Args:
        processor (`ProcessorMixin`): Processor with the backbone's template, or with UniME's.

    Raises:
        ValueError: The backbone has no image token, or its template has no place for texts and images.
    """
    template = processor.chat_template or ""
    if TEMPLATE_HEAD not in template:
        template = chat_template(processor)
    frame, _ = json.JSONDecoder().raw_decode(template[template.index(TEMPLATE_HEAD) + len(TEMPLATE_HEAD) :])
    return frame


def prompt_template(processor: ProcessorMixin) -> str:
    """Return the chat template that renders these conversations for a backbone.

    It writes what the backbone's own template writes around a text, and each image where it stands.

    Args:
        processor (`ProcessorMixin`): As in [`prompt_frame`].

    Raises:
        ValueError: See there.
    """
    return _TEMPLATE.replace("FRAME", json.dumps(prompt_frame(processor), ensure_ascii=False))


def render(processor: ProcessorMixin, conversations: Sequence[Conversation]) -> list[str]:
    """Return conversations as the model reads them, up to where its answer begins.

    Args:
        processor (`ProcessorMixin`): Processor of the model.
        conversations (`list`): Conversations of one user turn.
    """
    template = prompt_template(processor)
    return processor.apply_chat_template(list(conversations), chat_template=template, tokenize=False)


def prompt_tensors(
    processor: ProcessorMixin,
    texts: Sequence[str],
    images: Sequence[Sequence[Any]],
    padding_side: str = "left",
    add_special_tokens: bool | None = None,
) -> BatchFeature:
    """Return the inputs of the model for rendered conversations.

    Args:
        processor (`ProcessorMixin`): Processor of the model.
        texts (`list[str]`): Rendered conversations.
        images (`list[list[PIL.Image]]`): Images of each.
        padding_side (`str`, *optional*, defaults to `"left"`): Side of the padding; the answer follows the last token.
        add_special_tokens (`bool`, *optional*): Whether the tokenizer adds its own tokens to the ends of a text. By
            default it does unless the texts begin with one, as in `apply_chat_template`.
    """
    options: dict[str, Any] = {"padding": True, "padding_side": padding_side, "return_tensors": "pt"}
    bos = processor.tokenizer.bos_token
    if add_special_tokens is None:
        add_special_tokens = bos is None or not texts[0].startswith(bos)
    options["add_special_tokens"] = add_special_tokens
    if "mm_token_type_ids" in processor.model_input_names:  # Cosmos3's processor waits to be asked
        options["return_mm_token_type_ids"] = True
    if any(images):
        options["images"] = [images_before_processor(processor, row) for row in images]
    return processor(text=list(texts), **options)


def label_tokens(processor: ProcessorMixin) -> list[int]:
    """Return the first tokens of the answers "Yes" and "No", which have no space before them.

    Raises:
        ValueError: Both answers begin with the same token.
    """
    yes, no = (processor.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("Yes", "No"))
    if yes == no:
        raise ValueError("'Yes' and 'No' begin with the same token: this tokenizer cannot tell the answers apart")
    return [yes, no]


def label_probabilities(logits: Tensor, input_ids: Tensor, labels: Sequence[int], repetition_penalty: float) -> Tensor:
    """Return the softmax over the labels of the first answered token, behind a repetition penalty.

    As `RepetitionPenaltyLogitsProcessor` of transformers does, the penalty divides the positive logits of tokens that
    the prompt contains, and multiplies the negative ones.

    Args:
        logits (`Tensor` of shape `(batch, vocabulary)`): Logits behind the last token of each prompt.
        input_ids (`Tensor` of shape `(batch, tokens)`): The prompts.
        labels (`Sequence[int]`): Tokens of the labels.
        repetition_penalty (`float`): The penalty; 1 changes nothing, and 1.05 is that of the published scores.

    Returns:
        `Tensor` of shape `(batch, labels)` and type float32.
    """
    scores = logits[:, list(labels)].float()
    penalized = torch.where(scores < 0, scores * repetition_penalty, scores / repetition_penalty)
    in_prompt = (input_ids[:, :, None] == torch.tensor(labels, device=input_ids.device)).any(dim=1)
    return torch.where(in_prompt, penalized, scores).softmax(dim=1)


def answer_positions(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the positions of the tokens of left-padded prompts, `(batch, tokens)` or with axes before, as `generate`.

    Args:
        model (`PreTrainedModel`): The model.
        tensors (`Mapping[str, Tensor]`): Its inputs.
    """
    return model._prepare_position_ids_for_generation(tensors["input_ids"], dict(tensors))
