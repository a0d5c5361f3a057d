"""The OpenMoji data: named drawings and scenes of them as training rows, texts and conversations, from a seed.

    openmoji_rows("train", 100_000)           queries, positives and hard negatives of all tasks (stage 2)
    openmoji_texts("train", 50_000)           distinct texts (stage 1)
    openmoji_conversations("train", 50_000)   images with prompts and answers (pre-training of the backbone)

Equal arguments give equal rows in every process. Rows are generated once and kept in the cache folder; images are
stored as short specs and drawn when a row is read, optionally in the styles of several artists (see `styles`). The
splits hold out object pairs, combinations of skin tone and role, and the categories of some emoji: see `splits`.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from datasets import Dataset, Features, List, Value
from PIL import Image

from ..data.target_prompts import with_instruction
from ..storage.arrow_cache import cached_table
from .captions import sample_caption, sample_scene
from .catalogue import cache_folder, sources_version
from .conversations import KINDS
from .items import BY_OPENMOJI_TASK
from .long_captions import LongCaption, sample_wording
from .names import emoji_with_category, emoji_with_name, localized_names
from .perturbations import any_false_caption
from .questions import sample_expression, sample_question
from .scene_tasks import TASKS
from .scenes import Scene, render_crop
from .splits import check_split
from .styles import OPENMOJI, check_training_styles, has_drawing, styles_version
from .views import TRANSPARENT, View
from .vocabulary import objects


DATASET_VERSION = 2

_ITEM = {"text": Value("string"), "image": Value("string"), "instruction": Value("string")}
_ROW = Features(
    {"query": _ITEM, "positive": _ITEM, "negatives": List(_ITEM), "task": Value("string"), "label": Value("string")}
)
_CONVERSATION = Features({"image": Value("string"), "prompt": Value("string"), "answer": Value("string")})


def draw_image(spec: str) -> Image.Image:
    """Draw the image that a spec describes: a scene or a view of one emoji (96 x 96), or a crop (32 x 32).

    It is RGB, or RGBA for a view on a transparent background. A spec that ends with "@" and a style is drawn in it.

    Raises:
        ValueError: The spec does not begin with "scene", "view" or "crop".
    """
    content, _, style = spec.partition(" @")
    style = style or OPENMOJI
    if content.startswith("scene "):
        return Scene.from_spec(content).render(style)
    if content.startswith("view "):
        return View.from_spec(content).render(style)
    if content.startswith("crop "):
        return render_crop(content, style)
    raise ValueError(f"{spec!r} is not the spec of an OpenMoji image: it must begin with scene, view or crop")


def in_style(spec: str, style: str, transparent: bool = False) -> str:
    """Return the spec in a style, or in OpenMoji's if the style lacks one of the emoji.

    Args:
        spec (`str`): A spec without a style.
        style (`str`): One of `styles.STYLES`.
        transparent (`bool`, *optional*, defaults to `False`): Make the background of a view transparent.
    """
    if spec.startswith("view "):
        view = View.from_spec(spec)
        spec, images = replace(view, background=TRANSPARENT).spec if transparent else spec, [view.image]
    else:
        images = [objects()[int(part.split(".")[0])].image for part in spec.split()[1:]]
    return spec if style == OPENMOJI or not has_drawing(style)[images].all() else f"{spec} @{style}"


def load_item(stored: dict) -> dict:
    """Convert a stored item into a model input: drop its empty keys and draw its image."""
    item = {key: value for key, value in stored.items() if value is not None}
    if "image" in item:
        item["image"] = draw_image(item["image"])
    return item


def openmoji_rows(
    split: str,
    size: int,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    negatives: int = 1,
    target_prompts: bool = False,
    styles: Sequence[str] | None = None,
    transparent: bool = False,
) -> Dataset:
    """Return training rows of the given tasks, mixed by the tasks' weights.

    The columns are `query`, `positive` (items), `negatives` (a list of items), `task` and `label`.

    Args:
        split (`str`): "train", "validation" or "test".
        size (`int`): Number of rows.
        seed (`int`, *optional*, defaults to 0): Seed of the sampling.
        tasks (`Sequence[str]`, *optional*): Names of tasks in `TASKS`. Default: all of them.
        negatives (`int`, *optional*, defaults to 1): Maximum number of hard negatives per row.
        target_prompts (`bool`, *optional*, defaults to `False`): Give text candidates an instruction, as images have.
            Evaluate with the same setting.
        styles (`Sequence[str]`, *optional*): Styles of `styles.STYLES` to draw the images in. The query of a row has
            one of them; its candidates, which differ in content only, another or the same. Default: OpenMoji's.
        transparent (`bool`, *optional*, defaults to `False`): Draw single emoji on a transparent background, which
            `image_augmentations` then paints; the model sees it white otherwise.

    Raises:
        ValueError: The split, a task or a style does not exist, or the style is held out.
        FileNotFoundError: The drawings of a style have not been fetched.
    """
    check_split(split)
    chosen = list(tasks or TASKS)
    for task in chosen:
        if task not in TASKS:
            raise ValueError(f"the OpenMoji data has no task {task!r}: choose from {', '.join(TASKS)}")
    key = {"kind": "rows", "split": split, "size": size, "seed": seed, "tasks": chosen, "negatives": negatives}
    key["target_prompts"] = target_prompts
    key |= _style_key(styles, transparent)
    return _cached(key, _make_rows, _ROW).with_transform(_draw_rows)


def openmoji_texts(split: str, size: int, seed: int = 0) -> Dataset:
    """Return distinct texts in one column `text`: names, true and false captions, questions, categories."""
    check_split(split)
    key = {"kind": "texts", "split": split, "size": size, "seed": seed}
    return _cached(key, _make_texts, Features({"text": Value("string")}))


def openmoji_conversations(split: str, size: int, seed: int = 0) -> Dataset:
    """Return generative rows: `image` (an image or `None`), `prompt`, `answer`."""
    check_split(split)
    key = {"kind": "conversations", "split": split, "size": size, "seed": seed}
    return _cached(key, _make_conversations, _CONVERSATION).with_transform(_draw_conversations)


def _style_key(styles: Sequence[str] | None, transparent: bool) -> dict:
    """Return what the styles add to the key of a table: nothing for the defaults."""
    key: dict = {"transparent": True} if transparent else {}
    if styles is not None:
        check_training_styles(styles)
        key |= {"styles": list(styles), "styles_version": styles_version(styles)}
    return key


def _cached(key: dict, make: Callable[[dict], Iterator[dict]], features: Features) -> Dataset:
    """Return the rows of `make(key)`, from the cache if the same versions generated them before."""
    identity = json.dumps([key, DATASET_VERSION, sources_version()], sort_keys=True)
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def batches() -> Iterator[dict[str, list]]:
        rows = make(key)
        while batch := list(islice(rows, 1000)):
            yield {name: [row.get(name) for row in batch] for name in features}

    return cached_table(cache_folder() / f"{key['kind']}-{fingerprint}.arrow", features, batches)


def _random_source(key: dict, index: int) -> random.Random:
    """Return the random source of one row, so that a row does not depend on the rows before it."""
    return random.Random(f"{DATASET_VERSION}/{key['kind']}/{key['split']}/{key['seed']}/{index}")


def _make_rows(key: dict) -> Iterator[dict]:
    weights = [TASKS[task][1] for task in key["tasks"]]
    for index in range(key["size"]):
        rng = _random_source(key, index)
        task = rng.choices(key["tasks"], weights)[0]
        row = TASKS[task][0](key["split"], key["negatives"], rng) | {"task": task}
        if key["target_prompts"]:
            row["positive"] = with_instruction(row["positive"], BY_OPENMOJI_TASK.get(task))
            row["negatives"] = [
                with_instruction(negative, BY_OPENMOJI_TASK.get(task)) for negative in row["negatives"]
            ]
        yield _row_in_styles(row, key, rng)


def _row_in_styles(row: dict, key: dict, rng: random.Random) -> dict:
    query_style, style = (rng.choice(key.get("styles", [OPENMOJI])) for _ in range(2))
    if row["task"] == "crop":  # a crop is a part of the query's image
        style = query_style

    def restyle(item: dict, style: str) -> dict:
        if item["image"] is None:
            return item
        return item | {"image": in_style(item["image"], style, "transparent" in key)}

    # A negative in a style of its own would be recognized by the style.
    return row | {
        "query": restyle(row["query"], query_style),
        "positive": restyle(row["positive"], style),
        "negatives": [restyle(negative, style) for negative in row["negatives"]],
    }


def _make_conversations(key: dict) -> Iterator[dict]:
    kinds, weights = list(KINDS), [weight for _, weight in KINDS.values()]
    for index in range(key["size"]):
        rng = _random_source(key, index)
        yield KINDS[rng.choices(kinds, weights)[0]][0](key["split"], rng)


def _make_texts(key: dict) -> Iterator[dict]:
    seen = set()
    index = 0
    while len(seen) < key["size"]:
        for text in _sample_texts(key["split"], _random_source(key, index)):
            if text not in seen and len(seen) < key["size"]:
                seen.add(text)
                yield {"text": text}
        index += 1


def _sample_texts(split: str, rng: random.Random) -> list[str]:
    kind = rng.choices(("name", "category", "caption", "long", "question", "expression"), (8, 1, 8, 3, 5, 3))[0]
    if kind == "name":
        return [rng.choice(localized_names(rng.choice(emoji_with_name(split))))[1]]
    if kind == "category":
        entry = rng.choice(emoji_with_category(split))
        return [entry.subcategory, entry.category]
    if kind == "caption":
        scene = sample_scene(split, rng.randint(2, 4), rng)
        caption = sample_caption(scene, rng)
        # Add a false caption: near-duplicates teach the student to separate what its teacher separates.
        return [caption.text, any_false_caption(caption, scene, split, rng).text]
    if kind == "long":
        return [LongCaption(sample_scene(split, 9, rng), sample_wording(rng)).text]
    if kind == "question":
        question = sample_question(split, rng)
        return [question.text, question.answer]
    return [sample_expression(split, rng).text]


def _draw_rows(batch: dict[str, list]) -> dict[str, list]:
    """Draw the images of the columns that were read."""
    drawn = dict(batch)
    for column in ("query", "positive"):
        if column in batch:
            drawn[column] = [load_item(stored) for stored in batch[column]]
    if "negatives" in batch:
        drawn["negatives"] = [[load_item(stored) for stored in row] for row in batch["negatives"]]
    return drawn


def _draw_conversations(batch: dict[str, list]) -> dict[str, list]:
    if "image" not in batch:
        return batch
    return batch | {"image": [None if spec is None else draw_image(spec) for spec in batch["image"]]}
