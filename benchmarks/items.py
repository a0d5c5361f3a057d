"""Reproducible benchmark items: texts with a heavy-tailed length distribution, images, and mixtures."""

import random
from collections.abc import Sequence
from typing import Any

from PIL import Image

from unime.openmoji.catalogue import catalogue
from unime.openmoji.dataset import openmoji_rows


Items = Sequence[str | Image.Image | dict[str, Any]]

MIN_WORDS, MAX_WORDS = 4, 240  # about 5 to 400 tokens
MEDIAN_WORDS, WORDS_SIGMA = 18, 1.0  # log-normal distribution of the number of words
IMAGE_SIDES = (96, 128, 160, 192)  # pixels
REPEATED_SHARE = 0.3
# Forty tokens with the tokenizer of unime-tiny.
INSTRUCTION = (
    "Represent the given caption to find the image that shows the same objects in the same places, each on a tile of "
    "the colour that it names:"
)


def texts(size: int, seed: int = 0) -> list[str]:
    """Sample texts of words that follow Zipf's law, from the names of emoji; most are short, a few very long."""
    rng = random.Random(f"texts {seed}")
    words = list(dict.fromkeys(word for emoji in catalogue() for word in emoji.name.lower().split()))
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    lengths = (round(MEDIAN_WORDS * rng.lognormvariate(0, WORDS_SIGMA)) for _ in range(size))
    return [" ".join(rng.choices(words, weights, k=min(max(length, MIN_WORDS), MAX_WORDS))) for length in lengths]


def images(size: int, seed: int = 0) -> list[Image.Image]:
    """Sample OpenMoji scenes, scaled to several sizes."""
    rng = random.Random(f"images {seed}")
    scenes = [row["positive"]["image"] for row in openmoji_rows("test", size, seed, tasks=["scene_t2i"])]
    return [scene.resize((rng.choice(IMAGE_SIDES), rng.choice(IMAGE_SIDES))) for scene in scenes]


def mixed(size: int, seed: int = 0) -> list[str | Image.Image | dict[str, Any]]:
    """Return texts, images, and both together, in turn."""
    pairs = zip(texts(size, seed), images(size, seed), strict=True)
    return [(text, image, {"image": image, "text": text})[i % 3] for i, (text, image) in enumerate(pairs)]


def with_repetitions(items: Items, seed: int = 0) -> list[Any]:
    """Replace the share `REPEATED_SHARE` of the items by repetitions of the others, in random order."""
    rng = random.Random(f"repetitions {seed}")
    distinct = list(items[: len(items) - round(REPEATED_SHARE * len(items))])
    result = distinct + rng.choices(distinct, k=len(items) - len(distinct))
    rng.shuffle(result)
    return result
