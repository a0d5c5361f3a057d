"""Builders of tasks that several groups of the OpenMoji benchmark share."""

import random
from collections.abc import Callable, Sequence

from ..eval.lazy_items import LazyItems
from ..eval.tasks import RetrievalTask
from .captions import Caption, sample_caption, sample_scene
from .catalogue import Emoji, sources_version
from .dataset import DATASET_VERSION, draw_image
from .items import CHANGED_IMAGE, IMAGE_OF_TEXT, IMAGE_TARGET, TEXT_OF_IMAGE, item
from .names import emoji_with_tone, other_tones, tone_request
from .scenes import Scene
from .styles import styles_version
from .views import View


def lazy_items(items: Sequence[dict]) -> LazyItems:
    """Wrap items that hold image specs; an image is drawn when its item is read."""
    version = f"{DATASET_VERSION}/{sources_version()}"

    def key(spec: str) -> str:
        style = spec.partition(" @")[2]
        return f"{version}/{spec}" + (f"/{styles_version([style])}" if style else "")

    return LazyItems(items, draw_image, key)


def retrieval_task(
    name: str,
    meta_task: str,
    queries: list[dict],
    candidates: list[dict],
    positives: list[list[int]],
    pools: list[list[int]] | None = None,
    baseline: float | None = None,
) -> RetrievalTask:
    """Build a task of items whose images are specs."""
    return RetrievalTask(
        name, meta_task, lazy_items(queries), lazy_items(candidates), positives, pools, baseline=baseline
    )


def both_directions(name: str, meta_task: str, specs: list[str], texts: list[str]) -> list[RetrievalTask]:
    """Build the tasks text to image and image to text of images that each have one text."""
    positives = [[index] for index in range(len(specs))]
    text_queries = [item(text, instruction=IMAGE_OF_TEXT) for text in texts]
    image_queries = [item(image=spec, instruction=TEXT_OF_IMAGE) for spec in specs]
    images = [item(image=spec, instruction=IMAGE_TARGET) for spec in specs]
    return [
        retrieval_task(f"{name}_t2i", meta_task, text_queries, images, positives),
        retrieval_task(f"{name}_i2t", meta_task, image_queries, [item(text) for text in texts], positives),
    ]


def sampled_view(entry: Emoji, rng: random.Random) -> str:
    """Return the spec of a random view of an emoji."""
    return View.sample(entry.index, rng).spec


def captioned_scenes(
    split: str, size: int, rng: random.Random, accepts: Callable[[Scene], bool] = lambda scene: True
) -> list[tuple[Scene, Caption]]:
    """Sample scenes that are accepted, with captions; each caption is true of its own scene only."""
    chosen, with_object = [], {}
    while len(chosen) < size:
        scene = sample_scene(split, rng.randint(2, 4), rng)
        if not accepts(scene):
            continue
        caption = sample_caption(scene, rng)
        # Only scenes that share an object can share a caption.
        sharing = [pair for placed in scene.placed for pair in with_object.get(placed.object, ())]
        if not any(caption.holds(other) or other_caption.holds(scene) for other, other_caption in sharing):
            chosen.append((scene, caption))
            for placed in scene.placed:
                with_object.setdefault(placed.object, []).append((scene, caption))
    return chosen


def composed_task(
    name: str,
    meta_task: str,
    split: str,
    size: int,
    rng: random.Random,
    sources: Callable[[Emoji, str], list[Emoji]],
    source_view: Callable[[Emoji, random.Random], str],
) -> RetrievalTask:
    """Build a composed task: an image and a skin tone; candidates include the same role in its other tones.

    Args:
        name (`str`): Name of the task.
        meta_task (`str`): Its meta-task.
        split (`str`): Split of the targets.
        size (`int`): Number of queries and of candidates.
        rng (`random.Random`): Random source.
        sources (`Callable`): Takes a target and the split, returns the emoji that a query may show.
        source_view (`Callable`): Takes an emoji and the random source, returns the spec of a query's image.
    """
    targets = [entry for entry in emoji_with_tone(split) if sources(entry, split)]
    rng.shuffle(targets)
    candidates = dict.fromkeys(targets[:size])
    for target in targets:
        for other in other_tones(target, split):
            if len(candidates) < size:
                candidates.setdefault(other)
    position = {entry: index for index, entry in enumerate(candidates)}
    # There are fewer held-out tones than queries: repeat them, each time with another source image.
    requested = [targets[index % min(len(targets), size)] for index in range(size)]
    return retrieval_task(
        name,
        meta_task,
        [
            item(
                tone_request(target.tone, rng.randrange(3)),
                source_view(rng.choice(sources(target, split)), rng),
                CHANGED_IMAGE,
            )
            for target in requested
        ],
        [item(image=sampled_view(entry, rng), instruction=IMAGE_TARGET) for entry in candidates],
        [[position[target]] for target in requested],
    )
