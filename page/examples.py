"""What the page opens with where it shows the OpenMoji world: queries, and texts with images to be compared."""

from PIL import Image

from ..corpus.corpus import open_corpus
from ..openmoji.catalogue import catalogue
from ..openmoji.scenes import Placed, Scene
from ..openmoji.vocabulary import COLOUR_NAMES, objects


WORDS = ("pizza", "rocket", "guitarra", "vulkan", "voilier", "pingouin")
SHOWN = ("pizza", "rocket", "guitar", "volcano", "sailboat", "penguin")
# One pair of objects in all four places, so that nothing but the arrangement tells the images apart.
ARRANGEMENTS = tuple(f"a pizza {where} a rocket" for where in ("to the left of", "to the right of", "above", "below"))
CELLS = ((3, 5), (5, 3), (1, 7), (7, 1))  # of the pizza and of the rocket, in reading order of 3 x 3


def queries() -> dict[str, tuple[str, Image.Image | None]]:
    """Title -> (text, image)."""
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
    """Title -> (texts, images)."""
    return {
        "Words of five languages": (WORDS, drawings_named(*SHOWN)),
        "One pair, four arrangements": (ARRANGEMENTS, [_scene(*cells).render() for cells in CELLS]),
    }


def drawings_named(*names: str) -> list[Image.Image]:
    """Images of the world by their names, RGB on white."""
    world, places = open_corpus("openmoji"), {emoji.name: emoji.index for emoji in catalogue()}
    return [world[places[name]].item()["image"] for name in names]


def _scene(pizza: int, rocket: int) -> Scene:
    number = {entry.name: position for position, entry in enumerate(objects())}
    white = COLOUR_NAMES.index("white")
    return Scene((Placed(number["pizza"], pizza, white), Placed(number["rocket"], rocket, white)))
