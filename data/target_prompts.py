"""Instructions for candidates that have none, by what they are, as in B3 (arXiv 2505.11293).

A model that was trained with them is evaluated with them.
"""

from collections.abc import Mapping


CLASS, REPLY, CAPTION = "Represent the class label:", "Represent the answer:", "Represent the image caption:"

# By meta-task of MMEB: all candidates without an instruction that there are in it.
BY_META_TASK = {"classification": CLASS, "vqa": REPLY, "retrieval": CAPTION}


def with_instruction(item: Mapping, prompt: str | None) -> dict:
    """The item, with the prompt as its instruction if it has none."""
    return {**item, "instruction": item.get("instruction") or prompt}
