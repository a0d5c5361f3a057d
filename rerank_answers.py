"""The answers of a reranker as tokens: "Yes", "No", and the position of the best candidate."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import ProcessorMixin

from .processing_unime import TEMPLATE_HEAD


FILLER = -100  # stands in place of a token where answers differ in length, and is a label without a loss


def position_answer(place: int) -> str:
    """Return the answer that the candidate at a place, counted from 0, is the best: `"Ans: (1)"` for place 0."""
    return f"Ans: ({place + 1})"


def answer_tokens(processor: ProcessorMixin, answer: str) -> list[int]:
    """Return the tokens of an answer, without those that end it."""
    return processor.tokenizer(answer, add_special_tokens=False)["input_ids"]


def answer_end(processor: ProcessorMixin) -> list[int]:
    """Return the tokens that end an answer in the backbone's chat template, up to its first control token.

    That is `<|im_end|>` in Qwen's family, and the end-of-sequence token where the template writes no control token, or
    is not the backbone's own.

    Args:
        processor (`ProcessorMixin`): Processor of the model.
    """
    tokenizer, answer = processor.tokenizer, "Yes."
    if processor.chat_template is None or TEMPLATE_HEAD in processor.chat_template:
        return [tokenizer.eos_token_id]
    turns = [("user", "Is it?"), ("assistant", answer)]
    conversation = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    rendered = processor.apply_chat_template(conversation, tokenize=False)
    tokens = tokenizer(rendered.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    control = [place for place, token in enumerate(tokens) if token in tokenizer.added_tokens_decoder]
    return tokens[: control[0] + 1] if control else [tokenizer.eos_token_id]


def with_answers(prompts: Mapping[str, Tensor], answers: Tensor) -> dict[str, Tensor]:
    """Append the tokens of an answer to each left-padded prompt.

    Args:
        prompts (`Mapping[str, Tensor]`): Inputs of the model, such as of [`prompt_tensors`].
        answers (`Tensor` of shape `(batch, answer tokens)`): The answers, filled up on the right with `FILLER`, which
            the model does not see.

    Returns:
        `dict[str, Tensor]`: The inputs. Other values of a token, such as its type, are those of the prompt's last.
    """
    present = answers != FILLER
    shape = prompts["input_ids"].shape
    extended = dict(prompts)
    for name, tensor in prompts.items():
        if tensor.shape[:2] == shape:
            last = tensor[:, -1:].expand(-1, answers.shape[1], *tensor.shape[2:])
            extended[name] = torch.cat([tensor, last], dim=1)
    extended["input_ids"] = torch.cat([prompts["input_ids"], answers.where(present, prompts["input_ids"][:, -1:])], 1)
    extended["attention_mask"] = torch.cat([prompts["attention_mask"], present.to(prompts["attention_mask"])], dim=1)
    return extended


__all__ = ["FILLER", "answer_end", "answer_tokens", "position_answer", "with_answers"]
