"""Items and instructions of the OpenMoji tasks, the same in training and evaluation.

Rows store images as specs (see `dataset.draw_image`). The instructions are those of MMEB's tasks with the same inputs
and outputs (Jiang et al., 2024).
"""

import random

from ..data.target_prompts import CAPTION, CLASS, REPLY


CLASSIFY = "Represent the given image for classification"
CATEGORISE = "Identify the category of the object shown in the image"
IDENTIFY = "Identify the object shown in the image"
IMAGE_OF_TEXT = "Find me an everyday image that matches the given caption:"
TEXT_OF_IMAGE = "Find an image caption describing the given everyday image."
CHANGED_IMAGE = "Given an image, find a similar everyday image with the described changes:"
QUESTION = "Represent the given image with the following question:"
CROP = "Select the portion of the image that follows the language expressions."
IMAGE_TARGET = "Represent the given image."
CROP_TARGET = "Represent the given cropped image of the object"

# OpenMoji task -> instruction of its candidates. The other tasks have image candidates, which always have one.
BY_OPENMOJI_TASK = {
    **dict.fromkeys(("subcategory", "category", "name_i2t", "people_i2t"), CLASS),
    **dict.fromkeys(("scene_i2t", "arrangement_i2t", "relation_i2t", "long_i2t"), CAPTION),
    "question": REPLY,
}


def item(text: str | None = None, image: str | None = None, instruction: str | None = None) -> dict:
    """Return an item with all three keys, as rows store it; `image` is a spec."""
    return {"text": text, "image": image, "instruction": instruction}


def image_target(spec: str) -> dict:
    """Return the item of a candidate image."""
    return item(image=spec, instruction=IMAGE_TARGET)


def sample_up_to(options: list, count: int, rng: random.Random) -> list:
    """Sample `count` options, or all of them if there are fewer."""
    return rng.sample(options, min(count, len(options)))
