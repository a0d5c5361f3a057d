"""The 300 objects that scenes are made of: short unambiguous names, images that can be told apart at 24 pixels."""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .catalogue import catalogue, drawings


NUMBER_OF_OBJECTS = 300
SPRITE_SIZE = 24
COLOURS = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (226, 30, 40),
    "orange": (255, 140, 0),
    "yellow": (255, 226, 30),
    "green": (30, 160, 60),
    "blue": (30, 90, 230),
    "purple": (150, 50, 200),
}
COLOUR_NAMES = tuple(COLOURS)

_CATEGORIES = {"Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects"}
# Clock faces, moons, sound levels, banknotes and the like differ in a few pixels only.
_NEAR_TWINS = {"time", "sky & weather", "sound", "mail", "money", "lock", "place building", "place religious"}
_COLOUR_WORDS = {*COLOURS, "brown", "gold", "pink", "silver"}
_NOT_COUNTABLE = {"bacon", "bread", "broccoli", "butter", "construction", "dna", "garlic", "ice", "luggage", "popcorn"}
_NOT_COUNTABLE |= {"sake", "salt", "soap", "spaghetti", "sushi", "wood"}
_NO_THINGS = {
    "badminton",
    "bowling",
    "camping",
    "cooking",
    "foggy",
    "lacrosse",
    "performing",
    "skis",
    "tennis",
    "wedding",
}


@dataclass(frozen=True)
class SceneObject:
    """An object of the scene vocabulary: the index of its image in the catalogue and its English name."""

    image: int
    name: str

    @property
    def with_article(self) -> str:
        """The name after "a" or "an"."""
        # As spoken: "a unicorn", "a ewe", "an x-ray".
        vowel = self.name.startswith(("a", "e", "i", "o", "u", "x-")) and not self.name.startswith(("uni", "ewe"))
        return f"{'an' if vowel else 'a'} {self.name}"


def _is_short_singular_noun(name: str) -> bool:
    words = name.split()
    letters_only = name.replace(" ", "").replace("-", "").isalpha() and name.isascii()
    plural = words[-1].endswith("s") and not words[-1].endswith(("ss", "us", "is"))
    odd = {"face", "nose", "and", "with", *_COLOUR_WORDS, *_NOT_COUNTABLE, *_NO_THINGS}
    return letters_only and name.islower() and len(words) <= 3 and not plural and odd.isdisjoint(words)


def _trimmed(picture: np.ndarray) -> Image.Image:
    """The drawing without its transparent margin, as large as fits in a square sprite on white."""
    image = Image.fromarray(picture)
    image = image.crop(image.getchannel("A").getbbox())
    scale = SPRITE_SIZE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (SPRITE_SIZE, SPRITE_SIZE), (255, 255, 255))
    canvas.paste(image, [(SPRITE_SIZE - side) // 2 for side in image.size], image)
    return canvas


@functools.cache
def _chosen() -> tuple[tuple[SceneObject, ...], np.ndarray]:
    candidates = [
        entry
        for entry in catalogue()
        if entry.tone is None
        and entry.category in _CATEGORIES
        and entry.subcategory not in _NEAR_TWINS
        and _is_short_singular_noun(entry.name)
    ]
    has_tones = {entry.base for entry in catalogue() if entry.tone}
    # Short names first; a hash then spreads the choice over all subcategories.
    candidates.sort(key=lambda entry: (len(entry.name.split()), hashlib.sha256(entry.code.encode()).digest()))
    objects, sprites, coarse = [], [], []
    for entry in candidates:
        words = set(entry.name.split())
        # "dog" keeps out "hot dog" and "guide dog": a caption's word then names one object only.
        if entry.index in has_tones or any(set(chosen.name.split()) <= words for chosen in objects):
            continue
        sprite = _trimmed(drawings()[entry.index])
        small = np.asarray(sprite.resize((8, 8), Image.Resampling.BOX), dtype=np.float32)
        if any(np.abs(small - other).mean() < 22 for other in coarse):
            continue
        objects.append(SceneObject(entry.index, entry.name))
        sprites.append(np.asarray(sprite))
        coarse.append(small)
        if len(objects) == NUMBER_OF_OBJECTS:
            break
    return tuple(objects), np.stack(sprites)


def objects() -> tuple[SceneObject, ...]:
    """The scene vocabulary; a position in this tuple is an object's id."""
    return _chosen()[0]


def sprites() -> np.ndarray:
    """The objects' drawings on white, (300, 24, 24, 3) uint8."""
    return _chosen()[1]
