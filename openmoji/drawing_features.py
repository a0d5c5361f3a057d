"""An untrained baseline for drawings: gradient histograms and colours, compared with the mean drawing of each class.

It knows which emoji a name belongs to, from the drawings of the other artists, and where each drawing ends, from its
transparency. A model that has learned more than shapes and colours should score higher.
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..eval.metrics import pessimistic_ranks, recall_at_k
from .catalogue import cache_folder, cached_array, catalogue, sources_version
from .styles import HELD_OUT_STYLE, STYLES, has_drawing, style_drawings, styles_version


SIZE = 48  # pixels per side that a drawing is scaled to
CELL = 8  # pixels per side of a histogram
CELLS = SIZE // CELL  # per side; four neighbours are normalized together
ORIENTATIONS = 9  # unsigned, as in the source of the histograms
COLOUR_CELLS = 4  # per side
DIMENSIONS = (CELLS - 1) ** 2 * 4 * ORIENTATIONS + 3 * COLOUR_CELLS**2
CHUNK = 256  # drawings at a time, which bounds the memory
_VERSION = 2


@functools.cache
def style_features(style: str) -> np.ndarray:
    """Return the features of a style, `(number of emoji, 948)` float16 in catalogue order; 0 for skin tones."""
    name = f"features-{_VERSION}-{style}-{styles_version([style])}-{sources_version()}"

    def computed() -> np.ndarray:
        pixels = style_drawings(style)
        features = np.zeros((len(pixels), DIMENSIONS), dtype=np.float16)
        plain = [entry.index for entry in catalogue() if entry.tone is None and has_drawing(style)[entry.index]]
        for start in range(0, len(plain), CHUNK):
            chunk = plain[start : start + CHUNK]
            features[chunk] = drawing_features(pixels[chunk])
        return features

    return cached_array(cache_folder(), name, computed)


def drawing_features(drawings: np.ndarray) -> np.ndarray:
    """Return histograms of oriented gradients (Dalal and Triggs, 2005) and mean colours, both of unit length.

    Args:
        drawings (`np.ndarray` of shape `(n, height, width, 4)`): RGBA in uint8. Each is cropped to its opaque part.

    Returns:
        `np.ndarray` of shape `(n, 948)`: float32.
    """
    images = np.stack([_cropped(drawing) for drawing in drawings])
    across, down = np.zeros_like(images), np.zeros_like(images)
    across[:, :, 1:-1] = images[:, :, 2:] - images[:, :, :-2]
    down[:, 1:-1] = images[:, 2:] - images[:, :-2]
    strongest = (across**2 + down**2).argmax(axis=-1)[..., None]  # the colour channel with the largest gradient
    across, down = (np.take_along_axis(values, strongest, axis=-1)[..., 0] for values in (across, down))
    orientation = (np.arctan2(down, across) % np.pi / np.pi * ORIENTATIONS).astype(int) % ORIENTATIONS
    row = np.arange(SIZE) // CELL
    cells = np.arange(len(images))[:, None, None] * CELLS**2 + (row[:, None] * CELLS + row)
    sums = np.bincount(
        (cells * ORIENTATIONS + orientation).ravel(),
        weights=np.hypot(across, down).ravel(),
        minlength=len(images) * CELLS**2 * ORIENTATIONS,
    )
    histograms = sums.astype(np.float32).reshape(len(images), CELLS, CELLS, ORIENTATIONS)
    blocks = np.concatenate(
        [histograms[:, top : top + CELLS - 1, left : left + CELLS - 1] for top in (0, 1) for left in (0, 1)], axis=-1
    )
    gradients = _unit(blocks, smallest=0.1).reshape(len(images), -1)
    patch = SIZE // COLOUR_CELLS
    patches = images.reshape(len(images), COLOUR_CELLS, patch, COLOUR_CELLS, patch, 3)
    colours = 1 - patches.mean(axis=(2, 4)).reshape(len(images), -1)
    return np.concatenate([_unit(gradients), _unit(colours)], axis=1)


def class_mean_scores(
    style: str, classes: Sequence[Sequence[int]], test: Sequence[int], answers: Sequence[int]
) -> tuple[float, float]:
    """Return hit@1 of the baseline as `(class to drawing, drawing to class)`; ties count as wrong.

    Args:
        style (`str`): Style of the drawings to recognise. The classes are learned from the other styles, except for
            the held-out one.
        classes (`Sequence[Sequence[int]]`): Indices of the emoji of each class, without skin tones.
        test (`Sequence[int]`): Indices of the emoji to recognise, without skin tones.
        answers (`Sequence[int]`): The class of each.
    """
    others = [other for other in STYLES if other not in (style, HELD_OUT_STYLE)]

    def features(members: Sequence[int]) -> np.ndarray:
        drawn = [[index for index in members if has_drawing(other)[index]] for other in others]
        return np.concatenate([style_features(other)[some] for other, some in zip(others, drawn, strict=True)])

    return class_mean_hits([features(members) for members in classes], style_features(style)[list(test)], answers)


def class_mean_hits(classes: Sequence[np.ndarray], shown: np.ndarray, answers: Sequence[int]) -> tuple[float, float]:
    """Return hit@1 of the mean of each class as `(class to shown, shown to class)`; ties count as wrong.

    Args:
        classes (`Sequence[np.ndarray]`): Features of the members of each class, `(members, dimensions)`; a class
            without members is never right.
        shown (`np.ndarray` of shape `(n, dimensions)`): Features of what to recognise.
        answers (`Sequence[int]`): The class of each.
    """
    centre = np.concatenate(classes).astype(np.float32).mean(axis=0)
    means = [part.astype(np.float32).mean(axis=0) if len(part) else centre for part in classes]
    similarities = _unit(np.stack(means) - centre) @ _unit(shown.astype(np.float32) - centre).T
    places = {answer: [place for place, other in enumerate(answers) if other == answer] for answer in answers}
    class_ranks = pessimistic_ranks(similarities[list(places)], list(places.values()))
    shown_ranks = pessimistic_ranks(similarities.T, [[answer] for answer in answers])
    return recall_at_k(class_ranks, 1), recall_at_k(shown_ranks, 1)


def _cropped(drawing: np.ndarray) -> np.ndarray:
    """Return the opaque part of a drawing on white, as large as possible, `(SIZE, SIZE, 3)` float32 from 0 to 1."""
    image = Image.fromarray(np.asarray(drawing))
    box = image.getchannel("A").getbbox()
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    if box is not None:
        scale = SIZE / max(box[2] - box[0], box[3] - box[1])
        width, height = (max(1, round(scale * (box[side + 2] - box[side]))) for side in (0, 1))
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
        canvas.paste(image, ((SIZE - width) // 2, (SIZE - height) // 2), image)
    return np.asarray(canvas, dtype=np.float32) / 255


def _unit(vectors: np.ndarray, smallest: float = 1e-6) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + smallest)
