"""The items that benchmarks embed, the same from the same seed: texts with a heavy tail, images, and mixtures."""

import random
from collections.abc import Sequence
from typing import Any

from PIL import Image

from unime.openmoji.catalogue import catalogue
from unime.openmoji.dataset import openmoji_rows


Items = Sequence[str | Image.Image | dict[str, Any]]

SHORTEST, LONGEST = 4, 240  # words, which are about 5 to 400 tokens
MEDIAN, SPREAD = 18, 1.0  # of the log-normal law that the number of words follows
IMAGE_SIDES = (96, 128, 160, 192)  # pixels
REPEATED = 0.3  # share of a corpus that occurs in it before
# Forty tokens of the embedded world's tokenizer.
INSTRUCTION = (
    "Represent the given caption to find the image that shows the same objects in the same places, each on a tile of "
    "the colour that it names:"
)


def texts(number: int, seed: int = 0) -> list[str]:
    """Texts of words drawn by Zipf's law from the names of emoji; most are short, a few very long."""
    rng = random.Random(f"texts {seed}")
    words = list(dict.fromkeys(word for emoji in catalogue() for word in emoji.name.lower().split()))
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    lengths = (round(MEDIAN * rng.lognormvariate(0, SPREAD)) for _ in range(number))
    return [" ".join(rng.choices(words, weights, k=min(max(length, SHORTEST), LONGEST))) for length in lengths]


def images(number: int, seed: int = 0) -> list[Image.Image]:
    """Scenes of the embedded world, scaled to sides of several lengths."""
    rng = random.Random(f"images {seed}")
    scenes = [row["positive"]["image"] for row in openmoji_rows("test", number, seed, tasks=["scene_t2i"])]
    return [scene.resize((rng.choice(IMAGE_SIDES), rng.choice(IMAGE_SIDES))) for scene in scenes]


def mixed(number: int, seed: int = 0) -> list[str | Image.Image | dict[str, Any]]:
    """Texts, images, and both together, in turn."""
    said, seen = texts(number, seed), images(number, seed)
    kinds = (lambda i: said[i], lambda i: seen[i], lambda i: {"image": seen[i], "text": said[i]})
    return [kinds[i % 3](i) for i in range(number)]


def with_repetitions(items: Items, seed: int = 0) -> list[Any]:
    """As many items, of which the share `REPEATED` are others of them again, in random order."""
    rng = random.Random(f"repetitions {seed}")
    own = list(items[: len(items) - round(REPEATED * len(items))])
    repeated = own + rng.choices(own, k=len(items) - len(own))
    rng.shuffle(repeated)
    return repeated
