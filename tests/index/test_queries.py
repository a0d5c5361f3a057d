"""Queries of an index."""

import pytest
from PIL import Image

from unime.checkpoint import PROMPTS
from unime.index.queries import query_item, query_items, shown_instruction
from unime.openmoji import items


def test_each_kind_of_query_gets_its_instruction():
    image = Image.new("RGB", (8, 8))
    assert query_item("dog") == {"text": "dog", "instruction": PROMPTS["text_to_image"]}
    assert query_item("dog", kind="text") == {"text": "dog"}
    assert query_item(image=image)["instruction"] == PROMPTS["image"]
    assert query_item(image=image, kind="text")["instruction"] == PROMPTS["image_to_text"]
    assert query_item("in red", image) == {"text": "in red", "image": image, "instruction": PROMPTS["composed"]}
    assert query_item("dog", instruction="Find:")["instruction"] == "Find:"
    assert query_item("dog", instruction="") == {"text": "dog"}
    for text in (None, "", "  "):
        with pytest.raises(ValueError, match="nothing to search for"):
            query_item(text)


def test_each_kind_of_entries_gets_its_query():
    items = query_items(["text", "image"], "dog")
    assert items == {"text": {"text": "dog"}, "image": {"text": "dog", "instruction": PROMPTS["text_to_image"]}}
    assert shown_instruction(items) == f"text: (one-word prompt); image: {PROMPTS['text_to_image']}"
    assert shown_instruction(query_items(["image", "image-text"], "dog")) == PROMPTS["text_to_image"]
    assert shown_instruction(query_items(["text", "image"], "dog", instruction="Find:")) == "Find:"
    assert shown_instruction({}) is None


def test_composed_queries_have_the_instruction_of_training():
    assert PROMPTS["composed"] == items.CHANGED_IMAGE
