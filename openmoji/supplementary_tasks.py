"""Supplementary tasks of the OpenMoji benchmark: the same emoji without skin tones, on dark, and by another artist.

Skin tones carry the main name and subcategory tasks: most of their emoji are people, who differ in the tone. These
tasks have emoji without one, each drawing as large as the image. `plain` is white, `dark` differs from it in the
background only, and `unseen` in the artist: EmojiOne, whose drawings no training may use. It had no emoji after 2016,
so all three are limited to those; a few differ, where EmojiOne lacks one.

Names and subcategories have a `baseline`, that of `drawing_features`, if the packages of all styles are present.
"""

import logging
import random
from collections.abc import Callable

from ..eval.tasks import RetrievalTask
from .catalogue import Emoji, catalogue, same_drawing
from .dataset import in_style
from .drawing_features import class_mean_scores
from .items import CLASSIFY, IDENTIFY, IMAGE_OF_TEXT, IMAGE_TARGET, item
from .names import emoji_with_category
from .scenes import Scene
from .styles import HELD_OUT_STYLE, OPENMOJI, PACKAGES, has_drawing, is_available, style_drawings
from .task_builders import both_directions, captioned_scenes, composed_task, retrieval_task
from .views import BACKGROUNDS, DARK_BACKGROUNDS, View
from .vocabulary import objects


logger = logging.getLogger(__name__)

LAST_VERSION = 3.0  # of emoji, 2016: what EmojiOne 2 draws


def supplementary_tasks(split: str, size: int, source: Callable[[str], random.Random]) -> list[RetrievalTask]:
    """Build the supplementary tasks, with 2/5 of `size` names and scenes.

    Without the drawings of EmojiOne there is no `unseen`; a message says how to get them.

    Args:
        split (`str`): "train", "validation" or "test".
        size (`int`): Size of the benchmark.
        source (`Callable`): Takes a name, returns a random source.
    """
    count = 2 * size // 5
    names, members = _distinct_names(source("plain_name")), _members(split, source("plain_subcategory"))[:size]
    tasks = _drawn_tasks("plain", names[:count], members, OPENMOJI)
    tasks += _drawn_tasks("dark", names[:count], members, OPENMOJI, dark=True)
    missing = [style for style in PACKAGES if not is_available(style)]
    if missing:
        parts = ["the untrained baseline", *(["the tasks in an unseen style"] if HELD_OUT_STYLE in missing else [])]
        logger.warning(
            "the OpenMoji benchmark leaves out %s: the drawings of %s are missing; fetch them with `make styles`, or "
            "npm pack --pack-destination %s %s",
            " and ".join(parts),
            ", ".join(missing),
            PACKAGES[missing[0]].archive.parent,
            " ".join(f"{PACKAGES[style].name}@{PACKAGES[style].version}" for style in missing),
        )
    if HELD_OUT_STYLE in missing:
        return tasks
    drawn = has_drawing(HELD_OUT_STYLE)
    tasks += _drawn_tasks(
        "unseen",
        [entry for entry in names if drawn[entry.index]][:count],
        [entry for entry in members if drawn[entry.index]],
        HELD_OUT_STYLE,
    )

    def accepts(scene: Scene) -> bool:
        return all(drawn[objects()[placed.object].image] for placed in scene.placed)

    scenes = captioned_scenes(split, count, source("unseen_scene"), accepts)
    specs = [in_style(scene.spec, HELD_OUT_STYLE) for scene, _ in scenes]
    tasks += both_directions("unseen_scene", "unseen", specs, [caption.text for _, caption in scenes])

    def sources(target: Emoji, split: str) -> list[Emoji]:
        """Return the role without a tone; the candidates are OpenMoji's, as EmojiOne draws few tones."""
        return [catalogue()[target.base]] if target.tone is not None and drawn[target.base] else []

    def view(entry: Emoji, rng: random.Random) -> str:
        return in_style(View.whole(entry.index).spec, HELD_OUT_STYLE)

    composed = composed_task("unseen_composed", "unseen", split, count, source("unseen_composed"), sources, view)
    return [*tasks, composed]


def _distinct_names(rng: random.Random) -> list[Emoji]:
    """Return all emoji without a skin tone in random order, with different names and drawings."""
    by_name = {
        entry.name: entry
        for entry in catalogue()
        if entry.tone is None and entry.version <= LAST_VERSION and same_drawing()[entry.index] == entry.index
    }
    return rng.sample(list(by_name.values()), len(by_name))


def _members(split: str, rng: random.Random) -> list[Emoji]:
    """Return the emoji without a skin tone whose categories belong to the split, in random order."""
    members = [entry for entry in emoji_with_category(split) if entry.tone is None and entry.version <= LAST_VERSION]
    return rng.sample(members, len(members))


def _drawn_tasks(
    prefix: str, named: list[Emoji], members: list[Emoji], style: str, dark: bool = False
) -> list[RetrievalTask]:
    """Build the tasks to find the drawing of a name, the name of a drawing, and its subcategory."""

    def spec(entry: Emoji) -> str:
        background = len(BACKGROUNDS) + entry.index % len(DARK_BACKGROUNDS) if dark else 0
        return in_style(View.whole(entry.index, background).spec, style)

    named = _distinct_drawings(named, style)
    images, names, one_each = [spec(entry) for entry in named], [entry.name for entry in named], range(len(named))
    trained = [entry for entry in emoji_with_category("train") if entry.tone is None]
    subcategories = list(dict.fromkeys(entry.subcategory for entry in trained))
    answers = [subcategories.index(entry.subcategory) for entry in members]
    name_baselines: tuple[float | None, float | None] = (None, None)
    subcategory_baseline = None
    if not dark and all(map(is_available, PACKAGES)):
        indices = [entry.index for entry in named]
        name_baselines = class_mean_scores(style, [[index] for index in indices], indices, one_each)
        classes = [[entry.index for entry in trained if entry.subcategory == name] for name in subcategories]
        subcategory_baseline = class_mean_scores(style, classes, [entry.index for entry in members], answers)[1]
    return [
        retrieval_task(
            f"{prefix}_name_t2i",
            prefix,
            [item(name, instruction=IMAGE_OF_TEXT) for name in names],
            [item(image=image, instruction=IMAGE_TARGET) for image in images],
            [[index] for index in one_each],
            baseline=name_baselines[0],
        ),
        retrieval_task(
            f"{prefix}_name_i2t",
            prefix,
            [item(image=image, instruction=IDENTIFY) for image in images],
            [item(name) for name in names],
            [[index] for index in one_each],
            baseline=name_baselines[1],
        ),
        retrieval_task(
            f"{prefix}_subcategory",
            prefix,
            [item(image=spec(entry), instruction=CLASSIFY) for entry in members],
            [item(name) for name in subcategories],
            [[answer] for answer in answers],
            baseline=subcategory_baseline,
        ),
    ]


def _distinct_drawings(entries: list[Emoji], style: str) -> list[Emoji]:
    """Return the first emoji of each drawing; artists may draw two emoji alike."""
    pixels = style_drawings(style)
    return list({pixels[entry.index].tobytes(): entry for entry in reversed(entries)}.values())[::-1]
