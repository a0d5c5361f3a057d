"""Parsing of `POST /v1/embeddings` requests into items.

The server accepts OpenAI's texts (`input: "text"` or `input: ["text", ...]`) and vLLM's conversations (one or a list,
as `messages` or `input`). A conversation is one item: its `user` messages hold texts and images, its `system` message
is the instruction. Texts and images have the order that the chat template gives them.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .limits import Limits


Body = TypeVar("Body", bound=BaseModel)


class EmbeddingRequest(BaseModel):
    """The body of a request; unknown fields are refused, because they may be meant to change the embeddings."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Id of the served model, see `/v1/models`.")
    input: Any = Field(None, description="A text, a list of texts, a conversation, or a list of conversations.")
    messages: Any = Field(None, description="A conversation, or a list of conversations; instead of `input`.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="float (the default), or base64: little-endian float32."
    )
    dimensions: int | None = Field(None, description="Number of leading dimensions to keep (Matryoshka).")
    truncate_prompt_tokens: Literal[-1] | None = Field(
        None,
        description="-1: truncate texts that are longer than the model's maximum length, instead of refusing them.",
    )
    user: str | None = Field(None, description="Accepted for compatibility with OpenAI; not used.")


@dataclass(frozen=True)
class ImageUrl:
    """The data URL or http(s) URL of an image."""

    url: str


@dataclass(frozen=True)
class RequestItem:
    """One item of a request before its images are read.

    Args:
        content (`tuple[str | ImageUrl, ...]`): Texts and images in their order.
        instruction (`str`, *optional*): Instruction.
    """

    content: tuple[str | ImageUrl, ...]
    instruction: str | None = None

    @property
    def texts(self) -> list[str]:
        """Return the texts."""
        return [part for part in self.content if isinstance(part, str)]

    @property
    def images(self) -> list[str]:
        """Return the URLs of the images."""
        return [part.url for part in self.content if isinstance(part, ImageUrl)]


def read_request(body: bytes) -> EmbeddingRequest:
    """Parse the body of an embedding request, see [`read_body`]."""
    return read_body(EmbeddingRequest, body)


def read_body(kind: type[Body], body: bytes) -> Body:
    """Parse the body of a request.

    Args:
        kind (`type`): What the request should be.
        body (`bytes`): JSON.

    Raises:
        ValueError: The body is not JSON, or a field has a wrong type or value.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ValueError(f"the body is not valid JSON ({first['msg'].removeprefix('Invalid JSON: ')})") from None
        if first["type"] == "extra_forbidden":
            fields = ", ".join(kind.model_fields)
            raise ValueError(
                f"this server has no field '{first['loc'][0]}': leave it out; valid fields are {fields}"
            ) from None
        name = f"'{first['loc'][0]}'" if first["loc"] else "the body"
        raise ValueError(f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def read_items(request: EmbeddingRequest, limits: Limits) -> list[RequestItem]:
    """Return the items of a request.

    Raises:
        ValueError: There are no items or too many, or an item is neither a text nor a conversation; the message names
            the item.
    """
    if (request.input is None) == (request.messages is None):
        raise ValueError("give either 'input' or 'messages'")
    content, name = (request.input, "input") if request.messages is None else (request.messages, "messages")
    if isinstance(content, str) and name == "input":
        content = [content]
    if not isinstance(content, list) or not content:
        raise ValueError(f"'{name}' must be a text, a conversation, or a non-empty list of them: see serve/README.md")
    if isinstance(content[0], dict):
        content = [content]
    if len(content) > limits.max_items:
        raise ValueError(f"'{name}' has {len(content)} items, the limit is {limits.max_items}: send several requests")
    return [read_item(value, f"item {number}", limits) for number, value in enumerate(content)]


def read_item(value: Any, name: str, limits: Limits) -> RequestItem:
    """Return a text or a conversation as an item.

    Args:
        value (`Any`): What the request holds.
        name (`str`): Name of the item in errors.
        limits ([`Limits`]): Limits on requests.

    Raises:
        ValueError: It is neither a text nor a conversation, it is empty, or too long.
    """
    if isinstance(value, str):
        item = RequestItem((value,))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        item = _read_conversation(value, name)
    elif isinstance(value, int) or (isinstance(value, list) and value and isinstance(value[0], int)):
        raise ValueError(
            f"{name} is made of token ids, which come from another model's tokenizer: send the text itself (in "
            "LangChain, OpenAIEmbeddings with check_embedding_ctx_length=False)"
        )
    else:
        raise ValueError(f"{name} must be a text or a conversation (a list of messages), got {_json_type(value)}")
    if not item.images and not any(text.strip() for text in item.texts):
        raise ValueError(f"{name} is an empty text: leave it out, or send a text or an image")
    length = sum(map(len, item.texts)) + len(item.instruction or "")
    if length > limits.max_characters:
        raise ValueError(f"{name} has {length} characters, the limit is {limits.max_characters}: shorten or split it")
    return item


def _read_conversation(messages: list[Any], name: str) -> RequestItem:
    """Join the content of messages, as the chat template does: images come first if no text follows them."""
    content: list[str | ImageUrl] = []
    instruction = ""
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user"):
            raise ValueError(f"{name}: a message must be an object with the role 'user' or 'system'")
        value = message.get("content")
        for part in value if isinstance(value, list) and value else [{"type": "text", "text": value}]:
            text_or_image = _read_part(part, name)
            if message["role"] == "user":
                content.append(text_or_image)
            elif isinstance(text_or_image, str):
                instruction += text_or_image
            else:
                raise ValueError(f"{name}: the system message is the instruction and may hold only text")
    if not content:
        raise ValueError(f"{name} has no text and no image in a message with the role 'user'")
    are_images = [isinstance(part, ImageUrl) for part in content]
    if are_images == sorted(are_images):  # no text follows an image
        content.sort(key=lambda part: isinstance(part, str))
    return RequestItem(tuple(content), instruction or None)


def _read_part(part: Any, name: str) -> str | ImageUrl:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:  # some clients send the URL itself
            return ImageUrl(url)
    raise ValueError(
        f"{name}: the content of a message must be a text or a list of parts such as "
        '{"type": "text", "text": "..."} and {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
    )


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", type(None): "null", bool: "a boolean", float: "a number"}
    return names[type(value)]
