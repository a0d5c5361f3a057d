"""Views of single emoji: the same drawing in another size, at another position, on another light background."""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .catalogue import DRAWING_SIZE
from .styles import OPENMOJI, style_drawings


BACKGROUNDS = (
    (255, 255, 255),
    (236, 236, 236),
    (255, 236, 214),
    (255, 250, 205),
    (222, 245, 222),
    (214, 240, 250),
    (226, 228, 252),
    (250, 224, 236),
)
# After the light ones, which sampled views have: black, greys, and dark red, green, blue and violet.
DARK_BACKGROUNDS = ((0, 0, 0), (24, 24, 24), (48, 48, 48), (64, 16, 16), (12, 56, 28), (16, 28, 72), (48, 20, 72))
MIN_VIEW_PIXELS = round(0.85 * DRAWING_SIZE)
TRANSPARENT = -1  # in place of the index of a background


@dataclass(frozen=True)
class View:
    """A drawing of the catalogue, `size` pixels wide, with its corner at (`left`, `top`) in 96 x 96 pixels."""

    image: int
    size: int
    left: int
    top: int
    background: int

    @classmethod
    def sample(cls, image: int, rng: random.Random) -> "View":
        """Sample a view with random size (0.85 to 1 of the frame), position and background."""
        size = rng.randint(MIN_VIEW_PIXELS, DRAWING_SIZE)
        free = DRAWING_SIZE - size
        return cls(image, size, rng.randint(0, free), rng.randint(0, free), rng.randrange(len(BACKGROUNDS)))

    @classmethod
    def whole(cls, image: int, background: int = 0) -> "View":
        """Return the view in which the drawing fills the frame, on white by default."""
        return cls(image, DRAWING_SIZE, 0, 0, background)

    @property
    def spec(self) -> str:
        """Return the view as a short string: "view image.size.left.top.background"."""
        return f"view {self.image}.{self.size}.{self.left}.{self.top}.{self.background}"

    @classmethod
    def from_spec(cls, spec: str) -> "View":
        """Parse a spec."""
        return cls(*map(int, spec.split()[1].split(".")))

    def render(self, style: str = OPENMOJI) -> Image.Image:
        """Draw the image in a style, 96 x 96 RGB, or RGBA with a transparent background."""
        drawing = Image.fromarray(np.asarray(style_drawings(style)[self.image]))
        drawing = drawing.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if self.background == TRANSPARENT:
            canvas = Image.new("RGBA", (DRAWING_SIZE, DRAWING_SIZE))
            canvas.paste(drawing, (self.left, self.top))
            return canvas
        canvas = Image.new("RGB", (DRAWING_SIZE, DRAWING_SIZE), (*BACKGROUNDS, *DARK_BACKGROUNDS)[self.background])
        canvas.paste(drawing, (self.left, self.top), drawing)
        return canvas
