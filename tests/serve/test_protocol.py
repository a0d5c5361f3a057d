"""Requests are read into items as OpenAI and vLLM mean them."""

import json

import pytest

from unime.serve.limits import Limits
from unime.serve.protocol import Asked, read_items, read_request


def read(**body: object) -> list[Asked]:
    return read_items(read_request(json.dumps(body).encode()), Limits(max_items=3, max_characters=20))


def user(*parts: object) -> dict:
    return {"role": "user", "content": list(parts)}


CAT = {"type": "image_url", "image_url": {"url": "data:cat"}}
HAT = {"type": "image_url", "image_url": {"url": "data:hat", "detail": "low"}}
SAID = {"type": "text", "text": "a cat"}


def test_texts():
    assert read(input="a cat") == [Asked("a cat")]
    assert read(input=["a cat", ""]) == [Asked("a cat"), Asked("")]


def test_a_conversation_is_one_item_as_messages_or_as_input():
    conversation = [{"role": "system", "content": "Find it."}, user(CAT, SAID, HAT), {"role": "user", "content": "!"}]
    item = Asked("a cat\n!", ("data:cat", "data:hat"), "Find it.")
    assert read(messages=conversation) == read(input=conversation) == [item]


def test_lists_of_conversations_and_texts_keep_their_order():
    assert read(messages=[[user(SAID)], [user(CAT)]]) == [Asked("a cat"), Asked(None, ("data:cat",))]
    assert read(input=["a dog", [user(CAT)], "a hat"]) == [Asked("a dog"), Asked(None, ("data:cat",)), Asked("a hat")]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "give either 'input' or 'messages'"),
        ({"input": "a", "messages": [user(SAID)]}, "give either 'input' or 'messages'"),
        ({"input": []}, "'input' must be a text"),
        ({"input": {}}, "'input' must be a text"),
        ({"messages": "a cat"}, "'messages' must be"),
        ({"input": ["a"] * 4}, "'input' has 4 items, the limit is 3"),
        ({"input": ["a", "b" * 21]}, "item 1 has 21 characters, the limit is 20"),
        (
            {"messages": [{"role": "system", "content": "b" * 11}, user({"type": "text", "text": "c" * 10})]},
            "item 0 has",
        ),
        ({"input": ["a", 5]}, "item 1 is made of token ids"),
        ({"input": [[5, 6], [7]]}, "item 0 is made of token ids"),
        ({"input": ["a", None]}, "item 1 must be a text or a conversation .*, got null"),
        ({"input": ["a", {"text": "b"}]}, "item 1 must be .*, got an object"),
        ({"input": [[]]}, "item 0 must be .*, got a list"),
        ({"input": [0.5]}, "item 0 must be .*, got a number"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "item 0: a message must be .* 'user' or 'system'"),
        ({"messages": [[user(SAID)], [user(SAID), "a"]]}, "item 1: a message must be"),
        ({"messages": [{"role": "system", "content": "a"}]}, "item 0 has no text and no image"),
        ({"messages": [{"role": "system", "content": [CAT]}, user(SAID)]}, "item 0: the system message"),
        ({"messages": [{"role": "user"}]}, "item 0: the content of a message"),
        ({"messages": [{"role": "user", "content": []}]}, "item 0: the content of a message"),
        ({"messages": [{"role": "user", "content": 5}]}, "item 0: the content of a message"),
        ({"messages": [user({"type": "image_url", "image_url": "data:cat"})]}, "item 0: the content of a message"),
        ({"messages": [user({"type": "video_url", "video_url": {"url": "a"}})]}, "item 0: the content of a message"),
        ({"input": "a", "encoding_format": "hex"}, "'encoding_format': input should be 'float' or 'base64'"),
        ({"input": "a", "dimensions": "many"}, "'dimensions': input should be a valid integer"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "'truncate_prompt_tokens': input should be -1"),
        ({"input": "a", "normalize": False}, "no field 'normalize': leave it out"),
    ],
)
def test_what_is_wrong_is_one_sentence(body: dict, reason: str):
    with pytest.raises(ValueError, match=reason) as caught:
        read(**body)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"input": "\\ud800"}', b"[]", b"null"])
def test_bodies_that_are_no_json_objects(body: bytes):
    with pytest.raises(ValueError, match="^the body(: input should be an object| is not valid JSON)"):
        read_request(body)
