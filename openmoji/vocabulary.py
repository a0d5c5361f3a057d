"""The 300 objects that scenes are made of: short unambiguous names, and drawings that differ visibly at 24 pixels."""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .catalogue import catalogue, drawings
from .styles import OPENMOJI, has_drawing, style_drawings


NUM_OBJECTS = 300
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
# Clock faces, moons, sound levels or banknotes differ in a few pixels only.
_LOOKALIKES = {
    "time",
    "sky & weather",
    "sound",
    "mail",
    "money",
    "lock",
    "place building",
    "place religious",
}
_COLOUR_WORDS = {*COLOURS, "brown", "gold", "pink", "silver"}
_UNCOUNTABLE = {
    "bacon",
    "bread",
    "broccoli",
    "butter",
    "construction",
    "dna",
    "garlic",
    "ice",
    "luggage",
    "popcorn",
}
_UNCOUNTABLE |= {"sake", "salt", "soap", "spaghetti", "sushi", "wood"}
_NOT_OBJECTS = {
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
        """Return the name with its article."""
        # The article follows the pronunciation: "a unicorn", "a ewe", "an x-ray".
        vowel = self.name.startswith(("a", "e", "i", "o", "u", "x-")) and not self.name.startswith(("uni", "ewe"))
        return f"{'an' if vowel else 'a'} {self.name}"


def _is_short_singular_noun(name: str) -> bool:
    words = name.split()
    letters_only = name.replace(" ", "").replace("-", "").isalpha() and name.isascii()
    plural = words[-1].endswith("s") and not words[-1].endswith(("ss", "us", "is"))
    excluded = {"face", "nose", "and", "with", *_COLOUR_WORDS, *_UNCOUNTABLE, *_NOT_OBJECTS}
    return letters_only and name.islower() and len(words) <= 3 and not plural and excluded.isdisjoint(words)


def _sprite(drawing: np.ndarray) -> Image.Image:
    """Return the drawing without its transparent margin, scaled to fit a square sprite on white."""
    image = Image.fromarray(drawing)
    image = image.crop(image.getchannel("A").getbbox())
    scale = SPRITE_SIZE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (SPRITE_SIZE, SPRITE_SIZE), (255, 255, 255))
    canvas.paste(image, ((SPRITE_SIZE - width) // 2, (SPRITE_SIZE - height) // 2), image)
    return canvas


@functools.cache
def _selected_objects() -> tuple[tuple[SceneObject, ...], np.ndarray]:
    candidates = [
        entry
        for entry in catalogue()
        if entry.tone is None
        and entry.category in _CATEGORIES
        and entry.subcategory not in _LOOKALIKES
        and _is_short_singular_noun(entry.name)
    ]
    has_tones = {entry.base for entry in catalogue() if entry.tone}
    # Prefer short names; the hash spreads the selection over all subcategories.
    candidates.sort(key=lambda entry: (len(entry.name.split()), hashlib.sha256(entry.code.encode()).digest()))
    objects, sprites, coarse = [], [], []
    for entry in candidates:
        words = set(entry.name.split())
        # "dog" excludes "hot dog" and "guide dog", so that a word of a caption names one object only.
        if entry.index in has_tones or any(set(selected.name.split()) <= words for selected in objects):
            continue
        sprite = _sprite(drawings()[entry.index])
        small = np.asarray(sprite.resize((8, 8), Image.Resampling.BOX), dtype=np.float32)
        if any(np.abs(small - other).mean() < 22 for other in coarse):
            continue
        objects.append(SceneObject(entry.index, entry.name))
        sprites.append(np.asarray(sprite))
        coarse.append(small)
        if len(objects) == NUM_OBJECTS:
            break
    return tuple(objects), np.stack(sprites)


def objects() -> tuple[SceneObject, ...]:
    """Return the scene vocabulary; the position in this tuple is the id of an object."""
    return _selected_objects()[0]


@functools.cache
def sprites(style: str = OPENMOJI) -> np.ndarray:
    """Return a style's drawings of the objects on white, `(300, 24, 24, 3)` uint8; blank where it has none."""
    if style == OPENMOJI:
        return _selected_objects()[1]
    blank = Image.new("RGB", (SPRITE_SIZE, SPRITE_SIZE), (255, 255, 255))
    drawn = [entry.image if has_drawing(style)[entry.image] else None for entry in objects()]
    return np.stack([np.asarray(blank if image is None else _sprite(style_drawings(style)[image])) for image in drawn])
