"""Example queries and heat maps, shown by the page when it searches the OpenMoji images."""

from PIL import Image

from ..corpus.corpus import open_corpus
from ..openmoji.catalogue import catalogue
from ..openmoji.scenes import Placed, Scene
from ..openmoji.vocabulary import COLOUR_NAMES, objects


WORDS = ("pizza", "rocket", "guitarra", "vulkan", "voilier", "pingouin")
DRAWINGS = ("pizza", "rocket", "guitar", "volcano", "sailboat", "penguin")
# The same two objects in four arrangements, so that the images differ only in the arrangement.
ARRANGEMENTS = tuple(f"a pizza {place} a rocket" for place in ("to the left of", "to the right of", "above", "below"))
CELLS = ((3, 5), (5, 3), (1, 7), (7, 1))  # cells of the pizza and of the rocket, in reading order of a 3 x 3 grid


def queries() -> dict[str, tuple[str, Image.Image | None]]:
    """Return example queries: title -> (text, image)."""
    astronaut, health_worker, pizza = drawings_named("woman astronaut", "health worker", "pizza")
    return {
        "pizza": ("pizza", None),
        "guitarra": ("guitarra", None),
        "soccer ball": ("soccer ball", None),
        "an image": ("", pizza),
        "astronaut + dark skin": ("with dark skin tone", astronaut),
        "health worker + light skin": ("with light skin", health_worker),
    }


def heat_maps() -> dict[str, tuple[tuple[str, ...], list[Image.Image]]]:
    """Return example heat maps: title -> (texts, images)."""
    return {
        "Words in five languages": (WORDS, drawings_named(*DRAWINGS)),
        "One pair, four arrangements": (ARRANGEMENTS, [_scene(*cells).render() for cells in CELLS]),
    }


def drawings_named(*names: str) -> list[Image.Image]:
    """Return OpenMoji drawings by name, RGB on white."""
    corpus, indices = open_corpus("openmoji"), {emoji.name: emoji.index for emoji in catalogue()}
    return [corpus[indices[name]].item()["image"] for name in names]


def _scene(pizza_cell: int, rocket_cell: int) -> Scene:
    indices = {entry.name: index for index, entry in enumerate(objects())}
    white = COLOUR_NAMES.index("white")
    return Scene((Placed(indices["pizza"], pizza_cell, white), Placed(indices["rocket"], rocket_cell, white)))
