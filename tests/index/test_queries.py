"""What is asked of an index."""

import pytest
from PIL import Image

from unime.checkpoint import PROMPTS
from unime.index.queries import query_item
from unime.openmoji import items


def test_a_query_gets_the_instruction_of_its_kind():
    picture = Image.new("RGB", (8, 8))
    assert query_item("dog") == {"text": "dog", "instruction": PROMPTS["text_to_image"]}
    assert query_item("dog", images=False) == {"text": "dog"}
    assert query_item(image=picture)["instruction"] == PROMPTS["image"]
    assert query_item(image=picture, images=False)["instruction"] == PROMPTS["image_to_text"]
    assert query_item("in red", picture) == {"text": "in red", "image": picture, "instruction": PROMPTS["composed"]}
    assert query_item("dog", instruction="Find:")["instruction"] == "Find:"
    assert query_item("dog", instruction="") == {"text": "dog"}
    for text in (None, "", "  "):
        with pytest.raises(ValueError, match="nothing to search for"):
            query_item(text)


def test_composed_queries_are_asked_as_they_are_trained():
    assert PROMPTS["composed"] == items.CHANGED_IMAGE
