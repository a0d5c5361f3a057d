"""Prompts of published evaluations, for items that carry no instruction: images and captions alone.

UniME reads them with its one-word prompts, UniME-V2 and VLM2Vec read images with an instruction and captions as they
are. On MMEB every query has its own instruction, and the papers' code reads texts alone (class names, answers) as they
are. Two-tower and text models have no prompts.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from ..presets import KEEP, find_preset
from ..processing_unime import Item, split_content
from .lazy_items import LazyItems
from .tasks import Task


@dataclass(frozen=True)
class Prompts:
    """The prompts of an evaluation.

    Args:
        name (`str`): Name of the prompts in results.
        image (`str`): Prompt of an image alone.
        text (`str`, *optional*, defaults to `"{text}"`): Prompt of a text alone. In tasks whose queries have
            instructions (MMEB) texts alone are read as they are.
        source (`str`, *optional*): Where the prompts were read.
        presets (`tuple[str, ...]`, *optional*): Presets of published embedders that have these prompts already.
    """

    name: str
    image: str
    text: str = "{text}"
    source: str = ""
    presets: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Return a name that changes with the prompts, for folders of embeddings."""
        digest = hashlib.blake2b(repr((self.image, self.text)).encode(), digest_size=8).hexdigest()
        return f"{self.name}-{digest}"

    def to_dict(self) -> dict[str, str]:
        """Return the prompts for the metadata of results."""
        return {key: value for key, value in asdict(self).items() if key != "presets"}

    def for_model(
        self, checkpoint: str, preset: str | None, processor: ProcessorMixin | None, tasks: Sequence[Task]
    ) -> list[Any]:
        """Return tasks with these prompts for a model.

        Args:
            checkpoint (`str`): Folder or Hub id of the model.
            preset (`str`, *optional*): Its preset, see [`find_preset`].
            processor (`ProcessorMixin`, *optional*): Its processor. The template of a published embedder gets the
                prompt of images in place of its own.
            tasks (`Sequence`): The tasks.

        Raises:
            ValueError: The prompts cannot be given to this published embedder.
        """
        if processor is None or not getattr(processor, "chat_template", None):
            return list(tasks)  # a two-tower or text model
        own = find_preset(checkpoint, preset)
        if own is None or own.name == KEEP:
            return [self._task(task, self.image) for task in tasks]
        if own.name in self.presets:
            return list(tasks)
        if "only_image" not in own.frame:
            raise ValueError(
                f"the prompts {self.name!r} cannot be given to {checkpoint}, which has those of its preset "
                f"{own.name!r}: leave --prompts out for it"
            )
        # Its template reads texts alone as they are.
        frame = own.frame | {"only_image": f" {self.image}"}
        replace(own, frame=frame, image_size=None, max_length=None).apply_to_processor(processor)
        return [self._task(task, None) for task in tasks] if self.text != "{text}" else list(tasks)

    def _task(self, task: Task, image_prompt: str | None) -> Task:
        items = [item for role in task.roles.values() for item in _stored(role)]
        text_prompt = "{text}" if any(_part(item, "instruction") for item in items) else self.text

        def with_prompts(role: Sequence[Item]) -> Sequence[Item]:
            changed: list[Any] = [with_prompt(item, image_prompt, text_prompt) for item in _stored(role)]
            return LazyItems(changed, role.read, role.identity) if isinstance(role, LazyItems) else changed

        roles = list(task.roles.values())
        of_roles = [field.name for field in fields(task) if any(getattr(task, field.name) is role for role in roles)]
        changes: dict[str, Any] = {name: with_prompts(getattr(task, name)) for name in of_roles}
        return replace(task, **changes)


def with_prompt(item: Any, image_prompt: str | None, text_prompt: str) -> Any:
    """Return an item with its prompt as the instruction; items that have one, text and image, or a video stay.

    A prompt that holds the text is an instruction with an empty text, which the chat template renders as it is.
    """
    if _part(item, "instruction") or _part(item, "video") is not None:
        return item
    text, images = (item, None) if isinstance(item, str) else (_part(item, "text"), _part(item, "image"))
    if _part(item, "content") is not None:
        content, images = split_content(item["content"])
        text = content[0] if len(content) == 1 and not images else None
    if text is not None and not images:
        return {"text": "", "instruction": text_prompt.replace("{text}", text)}
    if image_prompt is not None and text is None and images is not None and _part(item, "content") is None:
        return {"image": images, "instruction": image_prompt}
    return item


def _stored(items: Sequence[Item]) -> Sequence[Any]:
    return items.stored if isinstance(items, LazyItems) else items


def _part(item: Any, key: str) -> Any:
    return item.get(key) if isinstance(item, Mapping) else None


_FIND_CAPTION = "Find an image caption describing the given image."

PROMPTS = {
    prompts.name: prompts
    for prompts in (
        Prompts(
            "unime",
            "Summary above image in one word:",
            "{text}\nSummary above sentence in one word:",
            "deepglint/UniME, self_evaluate/retrieval_self.py",
            ("unime-llava-1.6", "unime-llava-onevision", "unime-phi-3.5"),
        ),
        Prompts(
            "unime-v2",
            _FIND_CAPTION,
            source="GaryGuTC/UniME-v2, Embedding/evaluation/utils/flickr_coco_sharegpt4v_urban1K.py and sugarcrepe.py",
            presets=("unime-v2-qwen2-vl", "unime-v2-llava-onevision"),
        ),
        Prompts(
            "vlm2vec",
            _FIND_CAPTION,
            source="TIGER-AI-Lab/VLM2Vec, branch v1, src/dataset.py: FlickrDataset",
            presets=("unime-v2-qwen2-vl", "unime-v2-llava-onevision"),
        ),
        Prompts(
            "e5-v",
            "Summary above image in one word: ",
            "{text}\nSummary above sentence in one word: ",
            "kongds/E5-V, retrieval.py",
            ("e5-v",),
        ),
    )
}


def find_prompts(name: str) -> Prompts:
    """Return the prompts of a name, or of a JSON file with `image`, and optionally `text` and `source`.

    Raises:
        ValueError: There are no such prompts.
    """
    if name in PROMPTS:
        return PROMPTS[name]
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        raise ValueError(f"there are no prompts {name!r}: choose from {', '.join(PROMPTS)}, or a .json file of them")
    try:
        prompts = Prompts(path.stem, **json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f'{path} holds no prompts ({error}): write {{"image": "...", "text": "{{text}}"}}') from None
    if not isinstance(prompts.image, str) or "{text}" not in prompts.text:
        raise ValueError(f"{path}: expected texts as image and text, and {{text}} in that of texts")
    return prompts


def prompts_of_preset(checkpoint: str, preset: str | None) -> str | None:
    """Return the name of the prompts that a published embedder has by its preset, if they are among `PROMPTS`."""
    own = find_preset(checkpoint, preset)
    names = [name for name, prompts in PROMPTS.items() if own is not None and own.name in prompts.presets]
    return names[0] if names else None
