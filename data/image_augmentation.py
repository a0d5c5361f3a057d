"""Random changes of training images: size and place, outline, colours, background, resolution.

    image_augmentations: [size, outline, colours, background, resolution]  # in the YAML of stage 2

What separates an object from its background is the image's transparency, so `size`, `outline` and `background` change
images with an alpha channel only; `colours` and `resolution` change every image. The collator applies them once per
batch, before the forward passes, so gradient caching embeds the same pixels twice.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial

from PIL import Image, ImageChops

from ..processing_unime import Item, to_rgb
from .rows import change_images


IMAGE_AUGMENTATIONS = ("size", "outline", "colours", "background", "resolution")
SIZES = (0.6, 1.05)  # of the longer side of an object, as a share of the frame
MAX_SHIFT = 0.05  # of the object's centre from that of the frame, as a share of the frame
OUTLINE_SHARE = 0.25  # of images that get an outline, and of images that lose thin lines
COLOUR_MIXING = 0.2  # largest weight that a colour channel takes from another
OUTLINE_WIDTH = 1 / 48  # of the frame: 2 of 96 pixels
TEXTURE_CELLS = 6  # per side of the coarsest texture
LOWEST_RESOLUTION = 0.4  # of the original one
RESOLUTION_SHARE = 0.3  # of images that lose resolution


class ImageAugmentation:
    """Random changes of the images of items, drawn from a seed.

    Args:
        kinds (`Sequence[str]`): Some of `IMAGE_AUGMENTATIONS`.
        seed (`int`, *optional*, defaults to 0): Seed of all changes.

    Raises:
        ValueError: A kind does not exist or is repeated.
    """

    def __init__(self, kinds: Sequence[str], seed: int = 0):
        check_augmentations(kinds)
        self.kinds, self.seed = tuple(kinds), seed

    def __call__(self, items: Sequence[Item], batch: Sequence[int]) -> list[Item]:
        """Return the items with changed images; texts, instructions and order stay.

        Args:
            items (`Sequence`): The items.
            batch (`Sequence[int]`): Hashes of the items. Together with the seed they determine all changes: a batch
                changes alike in every process and after resuming, and an image differently in every batch.
        """
        source = random.Random(f"{self.seed}/{'/'.join(map(str, batch))}")
        return [change_images(item, partial(self.image, source=source)) for item in items]

    def image(self, image: Image.Image, source: random.Random) -> Image.Image:
        """Return a changed copy of an image, RGB and of the same size."""
        if not image.has_transparency_data:
            changed = to_rgb(image)
            if "colours" in self.kinds:
                changed = _mix_colours(changed, source)
        else:
            changed = image.convert("RGBA")
            if "size" in self.kinds:
                changed = _change_size(changed, source)
            if "outline" in self.kinds:
                changed = _change_outline(changed, source)
            colours, opacity = changed.convert("RGB"), changed.getchannel("A")
            if "colours" in self.kinds:
                colours = _mix_colours(colours, source)
            background = Image.new("RGB", image.size, "white")
            if "background" in self.kinds:
                background = _background(image.size, source)
            changed = Image.composite(colours, background, opacity)
        if "resolution" in self.kinds and source.random() < RESOLUTION_SHARE:
            changed = _lose_resolution(changed, source)
        return changed


def check_augmentations(kinds: Sequence[str]) -> None:
    """Raise a `ValueError` for an unknown or repeated kind."""
    for kind in kinds:
        if kind not in IMAGE_AUGMENTATIONS:
            raise ValueError(f"there is no image augmentation {kind!r}: choose from {', '.join(IMAGE_AUGMENTATIONS)}")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"image_augmentations names a kind twice: {', '.join(kinds)}")


def _change_size(image: Image.Image, source: random.Random) -> Image.Image:
    """Scale the object to a random share of the frame, near its centre; a part of a large one may be outside."""
    box = image.getchannel("A").getbbox()
    if box is None:
        return image
    frame, box_size = image.size, (box[2] - box[0], box[3] - box[1])
    scale = source.uniform(*SIZES) * min(side / length for side, length in zip(frame, box_size, strict=True))
    size = [max(1, round(scale * length)) for length in box_size]
    shift = [round(source.uniform(-MAX_SHIFT, MAX_SHIFT) * side) for side in frame]
    corner = [(side - length) // 2 + offset for side, length, offset in zip(frame, size, shift, strict=True)]
    canvas = Image.new("RGBA", frame)
    canvas.paste(image.resize((size[0], size[1]), Image.Resampling.BICUBIC, box), (corner[0], corner[1]))
    return canvas


def _change_outline(image: Image.Image, source: random.Random) -> Image.Image:
    """Draw a dark outline around the object, remove its thin dark lines, or leave it as it is."""
    radius = max(1, round(min(image.size) * OUTLINE_WIDTH * source.uniform(0.5, 1)))
    choice, shade = source.random(), source.randrange(64)
    if choice < OUTLINE_SHARE:
        outline = Image.new("RGBA", image.size, (shade, shade, shade, 255))
        outline.putalpha(_extreme(image.getchannel("A"), radius, ImageChops.lighter))
        return Image.alpha_composite(outline, image)
    if choice < 2 * OUTLINE_SHARE:
        # The lightest colour around each pixel covers lines that are narrower than twice the radius.
        lighter = _extreme(to_rgb(image), radius, ImageChops.lighter)
        lighter.putalpha(_extreme(image.getchannel("A"), radius, ImageChops.darker))
        return lighter
    return image


def _extreme(image: Image.Image, radius: int, choose: Callable) -> Image.Image:
    """Return the largest or smallest value of the square around each pixel, many times faster than `ImageFilter`."""
    for across, down in ((1, 0), (0, 1)):
        line = image
        for offset in (offset for offset in range(-radius, radius + 1) if offset):
            left, top = across * offset, down * offset
            line = choose(line, image.crop((left, top, left + image.width, top + image.height)))
        image = line
    return image


def _mix_colours(image: Image.Image, source: random.Random) -> Image.Image:
    """Mix the colour channels by a random matrix near the identity, which keeps all greys."""
    matrix: list[float] = []
    for channel in range(3):
        row = [source.uniform(-COLOUR_MIXING, COLOUR_MIXING) + (channel == other) for other in range(3)]
        matrix += [*(weight / sum(row) for weight in row), 0.0]
    return image.convert("RGB", tuple(matrix))


def _background(size: tuple[int, int], source: random.Random) -> Image.Image:
    """Return a light, dark or coloured background, or a texture of two colours."""

    def colour(lowest: int, highest: int) -> tuple[int, ...]:
        return tuple(source.randint(lowest, highest) for _ in range(3))

    kind = source.choices(("light", "dark", "coloured", "textured"), (4, 3, 2, 2))[0]
    if kind != "textured":
        lowest, highest = {"light": (200, 255), "dark": (0, 80), "coloured": (0, 255)}[kind]
        return Image.new("RGB", size, colour(lowest, highest))
    cells = source.randint(2, TEXTURE_CELLS), source.randint(2, TEXTURE_CELLS)
    coarse = Image.frombytes("L", cells, source.randbytes(cells[0] * cells[1]))
    first, second = (Image.new("RGB", size, colour(0, 255)) for _ in range(2))
    mask = coarse.resize(size, source.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC)))
    return Image.composite(first, second, mask)


def _lose_resolution(image: Image.Image, source: random.Random) -> Image.Image:
    """Scale the image down and up again."""
    share = source.uniform(LOWEST_RESOLUTION, 1)
    methods = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
    small = image.resize(
        (max(1, round(image.width * share)), max(1, round(image.height * share))), source.choice(methods)
    )
    return small.resize(image.size, source.choice(methods[:2]))
