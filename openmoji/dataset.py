"""The OpenMoji world: real named images and scenes of them as training rows, texts and conversations, from a seed.

    rows("train", 100_000)           queries, positives and hard negatives of all tasks (stage 2)
    texts("train", 50_000)           distinct texts (stage 1)
    conversations("train", 50_000)   images with prompts and answers (the backbone)

Equal arguments give equal rows in every process. They are made once and kept in the cache folder; images are kept
as short specs and drawn when a row is read. The splits hold out object pairs, skin tone x role, and the categories of
some emoji: see `splits`.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
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
from .names import categorised, named, texts_of
from .perturbations import any_false_caption
from .questions import sample_expression, sample_question
from .scene_tasks import TASKS
from .scenes import Scene, render_crop
from .splits import check_split
from .views import View


DATASET_VERSION = 2

_ITEM = {"text": Value("string"), "image": Value("string"), "instruction": Value("string")}
_ROW = Features(
    {"query": _ITEM, "positive": _ITEM, "negatives": List(_ITEM), "task": Value("string"), "label": Value("string")}
)
_CONVERSATION = Features({"image": Value("string"), "prompt": Value("string"), "answer": Value("string")})


def draw_image(spec: str) -> Image.Image:
    """The image that a spec describes: a scene or a view of one emoji (96 x 96), or a crop (32 x 32); RGB."""
    if spec.startswith("scene "):
        return Scene.from_spec(spec).render()
    if spec.startswith("view "):
        return View.from_spec(spec).render()
    if spec.startswith("crop "):
        return render_crop(spec)
    raise ValueError(f"{spec!r} is no image of the OpenMoji world: it must begin with scene, view or crop")


def load_item(stored: dict) -> dict:
    """A stored item as models take it: without its empty keys, its image drawn."""
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
) -> Dataset:
    """Training rows of the given tasks (all of `TASKS` if None), mixed by their weights.

    Columns: `query`, `positive` (items), `negatives` (at most `negatives` hard ones, items), `task`, `label`. With
    `target_prompts` texts that are searched for have an instruction, as images do; evaluate with the same.
    """
    check_split(split)
    chosen = list(tasks or TASKS)
    for task in chosen:
        if task not in TASKS:
            raise ValueError(f"the OpenMoji world has no task {task!r}: choose from {', '.join(TASKS)}")
    key = {"kind": "rows", "split": split, "size": size, "seed": seed, "tasks": chosen, "negatives": negatives}
    key["target_prompts"] = target_prompts
    return _cached(key, _make_rows, _ROW).with_transform(_draw_rows)


def openmoji_texts(split: str, size: int, seed: int = 0) -> Dataset:
    """Distinct texts of all kinds in one column `text`: names, captions true and false, questions, categories."""
    check_split(split)
    key = {"kind": "texts", "split": split, "size": size, "seed": seed}
    return _cached(key, _make_texts, Features({"text": Value("string")}))


def openmoji_conversations(split: str, size: int, seed: int = 0) -> Dataset:
    """Generative rows: `image` (an image or None), `prompt`, `answer`."""
    check_split(split)
    key = {"kind": "conversations", "split": split, "size": size, "seed": seed}
    return _cached(key, _make_conversations, _CONVERSATION).with_transform(_draw_conversations)


def _cached(key: dict, make: Callable[[dict], Iterator[dict]], features: Features) -> Dataset:
    """What `make(key)` yields, read from the cache if it was made before by the same versions."""
    identity = json.dumps([key, DATASET_VERSION, sources_version()], sort_keys=True)
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def batches() -> Iterator[dict[str, list]]:
        made = make(key)
        while some := list(islice(made, 1000)):
            yield {name: [row.get(name) for row in some] for name in features}

    return cached_table(cache_folder() / f"{key['kind']}-{fingerprint}.arrow", features, batches)


def _random_source(key: dict, index: int) -> random.Random:
    """A random source of one row's own: a row does not depend on the rows before it."""
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
        yield row


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
        return [rng.choice(texts_of(rng.choice(named(split))))[1]]
    if kind == "category":
        entry = rng.choice(categorised(split))
        return [entry.subcategory, entry.category]
    if kind == "caption":
        scene = sample_scene(split, rng.randint(2, 4), rng)
        caption = sample_caption(scene, rng)
        # A false caption beside the true one: near-duplicates that a student must keep apart as its teacher does.
        return [caption.text, any_false_caption(caption, scene, split, rng).text]
    if kind == "long":
        return [LongCaption(sample_scene(split, 9, rng), sample_wording(rng)).text]
    if kind == "question":
        question = sample_question(split, rng)
        return [question.text, question.answer]
    return [sample_expression(split, rng).text]


def _draw_rows(batch: dict[str, list]) -> dict[str, list]:
    """Draws whichever columns were read."""
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
