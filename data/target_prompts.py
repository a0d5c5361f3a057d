"""Target prompts: instructions for candidates that have none, by kind of candidate, as in B3 (arXiv 2505.11293).

A model that was trained with target prompts must be evaluated with them.
"""

from collections.abc import Mapping


CLASS, REPLY, CAPTION = "Represent the class label:", "Represent the answer:", "Represent the image caption:"

# The kind of the candidates without an instruction in each meta-task of MMEB.
BY_META_TASK = {"classification": CLASS, "vqa": REPLY, "retrieval": CAPTION}


def with_instruction(item: Mapping, prompt: str | None) -> dict:
    """Return the item, with the prompt as its instruction if it has none."""
    return {**item, "instruction": item.get("instruction") or prompt}
