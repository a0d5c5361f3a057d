"""Requests of `POST /v1/embeddings`, read into what each item asks for.

Taken are OpenAI's texts, `input: "text"` or `input: ["text", ...]`, and vLLM's conversations, one or a list of them,
as `messages` or `input`. A conversation is one item: its `user` messages hold text and images, the `system` message
is the instruction.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .limits import Limits


class EmbeddingRequest(BaseModel):
    """The body of a request; an unknown field is refused, for it may be meant to change the vectors."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="The served model's id, see `/v1/models`.")
    input: Any = Field(None, description="A text, a list of texts, a conversation, or a list of conversations.")
    messages: Any = Field(None, description="A conversation, or a list of conversations; instead of `input`.")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32.")
    dimensions: int | None = Field(None, description="Leading dimensions to keep (Matryoshka).")
    truncate_prompt_tokens: Literal[-1] | None = Field(
        None, description="-1: shorten texts that are longer than what the model reads, instead of refusing them."
    )
    user: str | None = Field(None, description="Taken, as OpenAI does, and not used.")


@dataclass(frozen=True)
class Asked:
    """One item as it came: text, addresses of images (data or http URLs) and instruction."""

    text: str | None = None
    images: tuple[str, ...] = ()
    instruction: str | None = None


def read_request(body: bytes) -> EmbeddingRequest:
    """Read a body.

    Raises:
        ValueError: It is not JSON, or a field is not what it should be.
    """
    try:
        return EmbeddingRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ValueError(f"the body is not valid JSON ({first['msg'].removeprefix('Invalid JSON: ')})") from None
        if first["type"] == "extra_forbidden":
            known = ", ".join(EmbeddingRequest.model_fields)
            raise ValueError(f"this server has no field '{first['loc'][0]}': leave it out, it knows {known}") from None
        name = f"'{first['loc'][0]}'" if first["loc"] else "the body"
        raise ValueError(f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def read_items(request: EmbeddingRequest, limits: Limits) -> list[Asked]:
    """Read what is to be embedded.

    Raises:
        ValueError: There is nothing, too much, or an item that is neither text nor conversation; it names the item.
    """
    if (request.input is None) == (request.messages is None):
        raise ValueError("give either 'input' or 'messages'")
    given, name = (request.input, "input") if request.messages is None else (request.messages, "messages")
    if isinstance(given, str) and name == "input":
        given = [given]
    if not isinstance(given, list) or not given:
        raise ValueError(f"'{name}' must be a text, a conversation, or a non-empty list of them: see serve/README.md")
    if isinstance(given[0], dict):
        given = [given]
    if len(given) > limits.max_items:
        raise ValueError(f"'{name}' has {len(given)} items, the limit is {limits.max_items}: send several requests")
    return [_item(one, f"item {number}", limits) for number, one in enumerate(given)]


def _item(given: Any, where: str, limits: Limits) -> Asked:
    if isinstance(given, str):
        asked = Asked(text=given)
    elif isinstance(given, list) and given and isinstance(given[0], dict):
        asked = _conversation(given, where)
    elif isinstance(given, int) or (isinstance(given, list) and given and isinstance(given[0], int)):
        raise ValueError(
            f"{where} is made of token ids, which another model's tokenizer wrote: send the text itself (LangChain's "
            "OpenAIEmbeddings does with check_embedding_ctx_length=False)"
        )
    else:
        raise ValueError(f"{where} must be a text or a conversation (a list of messages), got {_kind(given)}")
    length = len(asked.text or "") + len(asked.instruction or "")
    if length > limits.max_characters:
        raise ValueError(f"{where} has {length} characters, the limit is {limits.max_characters}: shorten or split it")
    return asked


def _conversation(messages: list[Any], where: str) -> Asked:
    """Join messages as the chat template does: texts by line feeds, images in their order."""
    text, images, instruction = None, [], ""
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user"):
            raise ValueError(f"{where}: a message must be an object with the role 'user' or 'system'")
        content = message.get("content")
        parts = content if isinstance(content, list) and content else [{"type": "text", "text": content}]
        for part in parts:
            said, url = _part(part, where)
            if message["role"] == "system":
                if said is None:
                    raise ValueError(f"{where}: the system message is the instruction, and holds text alone")
                instruction += said
            elif said is None:
                images.append(url)
            else:
                text = f"{text}\n{said}" if text else said
    if text is None and not images:
        raise ValueError(f"{where} has no text and no image in a message of the role 'user'")
    return Asked(text, tuple(images), instruction or None)


def _part(part: Any, where: str) -> tuple[str | None, str | None]:
    """Return the text or the image's address of one part of a message."""
    match part:
        case {"type": "text", "text": str(said)}:
            return said, None
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return None, url
    raise ValueError(
        f"{where}: the content of a message must be a text or a list of parts such as "
        '{"type": "text", "text": "..."} and {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
    )


def _kind(given: Any) -> str:
    names = {dict: "an object", list: "a list", type(None): "null", bool: "a truth value", float: "a number"}
    return names[type(given)]
