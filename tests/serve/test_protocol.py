"""Requests are parsed into items with the meaning that they have for OpenAI and vLLM."""

import json

import pytest

from unime.serve.limits import Limits
from unime.serve.protocol import EmbeddingRequest, ImageUrl, RequestItem, read_items, read_request


def read(**body: object) -> list[RequestItem]:
    return read_items(read_request(json.dumps(body).encode()), Limits(max_items=3, max_characters=20))


def user(*parts: object) -> dict:
    return {"role": "user", "content": list(parts)}


CAT = {"type": "image_url", "image_url": {"url": "data:cat"}}
HAT = {"type": "image_url", "image_url": {"url": "data:hat", "detail": "low"}}
TEXT = {"type": "text", "text": "a cat"}


def test_a_text_or_a_list_of_texts_is_accepted():
    assert read(input="a cat") == [RequestItem(("a cat",))]
    assert read(input=["a cat", "a dog"]) == [RequestItem(("a cat",)), RequestItem(("a dog",))]


def test_null_stands_for_the_default_of_every_field():
    fields = dict.fromkeys(EmbeddingRequest.model_fields)
    assert read(**fields | {"input": "a cat"}) == [RequestItem(("a cat",))]
    assert read_request(json.dumps(fields).encode()) == EmbeddingRequest()


def test_the_url_of_an_image_may_stand_alone():
    assert read(messages=[user({"type": "image_url", "image_url": "data:cat"})]) == read(messages=[user(CAT)])


def test_a_conversation_is_one_item_as_messages_or_as_input():
    conversation = [{"role": "system", "content": "Find it."}, user(CAT, TEXT, HAT), {"role": "user", "content": "!"}]
    item = RequestItem((ImageUrl("data:cat"), "a cat", ImageUrl("data:hat"), "!"), "Find it.")
    assert read(messages=conversation) == read(input=conversation) == [item]


def test_lists_of_conversations_and_texts_keep_their_order():
    cat = RequestItem((ImageUrl("data:cat"),))
    assert read(messages=[[user(TEXT)], [user(CAT)]]) == [RequestItem(("a cat",)), cat]
    assert read(input=["a dog", [user(CAT)], "a hat"]) == [
        RequestItem(("a dog",)),
        cat,
        RequestItem(("a hat",)),
    ]


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        ((TEXT, CAT, TEXT, HAT), ("a cat", "data:cat", "a cat", "data:hat")),
        ((CAT, TEXT, HAT), ("data:cat", "a cat", "data:hat")),
        ((TEXT, CAT, HAT), ("data:cat", "data:hat", "a cat")),  # one text before all images: as `text` and `image`
        ((TEXT, TEXT, CAT), ("data:cat", "a cat", "a cat")),
        ((TEXT, CAT, {"type": "text", "text": ""}), ("a cat", "data:cat", "")),
    ],
)
def test_parts_keep_their_order_unless_all_images_follow_the_only_text(parts: tuple, content: tuple):
    (item,) = read(messages=[user(*parts)])
    assert tuple(part if isinstance(part, str) else part.url for part in item.content) == content
    assert item == read(messages=[user(part) for part in parts])[0]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "give either 'input' or 'messages'"),
        ({"input": "a", "messages": [user(TEXT)]}, "give either 'input' or 'messages'"),
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
        ({"messages": [[user(TEXT)], [user(TEXT), "a"]]}, "item 1: a message must be"),
        ({"messages": [{"role": "system", "content": "a"}]}, "item 0 has no text and no image"),
        ({"messages": [{"role": "system", "content": [CAT]}, user(TEXT)]}, "item 0: the system message"),
        ({"messages": [{"role": "user"}]}, "item 0: the content of a message"),
        ({"messages": [{"role": "user", "content": []}]}, "item 0: the content of a message"),
        ({"messages": [{"role": "user", "content": 5}]}, "item 0: the content of a message"),
        ({"messages": [user({"type": "image_url", "image_url": None})]}, "item 0: the content of a message"),
        ({"input": ["a", ""]}, "item 1 is an empty text: leave it out"),
        ({"input": " \n"}, "item 0 is an empty text"),
        ({"messages": [{"role": "system", "content": "Find:"}, user({"type": "text", "text": ""})]}, "an empty text"),
        ({"messages": [user({"type": "video_url", "video_url": {"url": "a"}})]}, "item 0: the content of a message"),
        ({"input": "a", "encoding_format": "hex"}, "'encoding_format': input should be 'float' or 'base64'"),
        ({"input": "a", "dimensions": "many"}, "'dimensions': input should be a valid integer"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "'truncate_prompt_tokens': input should be -1"),
        ({"input": "a", "normalize": False}, "no field 'normalize': leave it out"),
    ],
)
def test_an_invalid_request_is_refused_in_one_sentence(body: dict, reason: str):
    with pytest.raises(ValueError, match=reason) as caught:
        read(**body)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"input": "\\ud800"}', b"[]", b"null"])
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes):
    with pytest.raises(ValueError, match="^the body(: input should be an object| is not valid JSON)"):
        read_request(body)
