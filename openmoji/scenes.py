"""Scenes: objects of the vocabulary on coloured tiles in a 3 x 3 grid, 96 x 96 pixels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .styles import OPENMOJI
from .vocabulary import COLOURS, sprites


GRID = 3
CELLS = GRID * GRID
CELL_SIZE = 32
POSITIONS = (
    "at the top left",
    "at the top centre",
    "at the top right",
    "at the middle left",
    "in the centre",
    "at the middle right",
    "at the bottom left",
    "at the bottom centre",
    "at the bottom right",
)
RELATIONS = ("left of", "right of", "above", "below")

_BACKGROUND_GREY = 225
_PALETTE = np.array(list(COLOURS.values()), dtype=np.uint8)


@dataclass(frozen=True)
class Placed:
    """An object of a scene: its id in the vocabulary, its cell (0 to 8, reading order), and its tile's colour id."""

    object: int
    cell: int
    colour: int


@dataclass(frozen=True)
class Scene:
    """The content of a scene image. All objects are different and each has its own cell."""

    placed: tuple[Placed, ...]

    @property
    def spec(self) -> str:
        """Return the scene as a short string, such as "scene 12.0.3 45.4.1" (object.cell.colour).

        Equal images have equal specs.
        """
        ordered = sorted(self.placed, key=lambda placed: placed.cell)
        return "scene " + " ".join(f"{placed.object}.{placed.cell}.{placed.colour}" for placed in ordered)

    @classmethod
    def from_spec(cls, spec: str) -> "Scene":
        """Parse a spec."""
        return cls(tuple(Placed(*map(int, part.split("."))) for part in spec.split()[1:]))

    def find(self, object: int) -> Placed | None:
        """Return the placed object with an id, or `None` if the scene does not contain it."""
        return next((placed for placed in self.placed if placed.object == object), None)

    def at(self, cell: int) -> Placed | None:
        """Return the object in a cell, or `None` if the cell is empty."""
        return next((placed for placed in self.placed if placed.cell == cell), None)

    def empty_cells(self) -> list[int]:
        """Return the cells without an object, in reading order."""
        taken = {placed.cell for placed in self.placed}
        return [cell for cell in range(CELLS) if cell not in taken]

    def related(self, relation: str, reference: int) -> list[Placed]:
        """Return all objects in a relation of `RELATIONS` to a reference object; "left of" implies the same row."""
        other = self.find(reference)
        return [placed for placed in self.placed if other and relation_of(placed.cell, other.cell) == relation]

    def render(self, style: str = OPENMOJI) -> Image.Image:
        """Draw the image in a style, 96 x 96 RGB."""
        canvas = np.full((GRID * CELL_SIZE, GRID * CELL_SIZE, 3), _BACKGROUND_GREY, dtype=np.uint8)
        for placed in self.placed:
            row, column = divmod(placed.cell, GRID)
            top, left = row * CELL_SIZE, column * CELL_SIZE
            _draw_tile(canvas[top : top + CELL_SIZE, left : left + CELL_SIZE], placed, style)
        return Image.fromarray(canvas)

    def crop(self, cell: int) -> Image.Image:
        """Crop one cell of the image, 32 x 32 RGB."""
        row, column = divmod(cell, GRID)
        left, top = column * CELL_SIZE, row * CELL_SIZE
        return self.render().crop((left, top, left + CELL_SIZE, top + CELL_SIZE))


def _draw_tile(cell: np.ndarray, placed: Placed, style: str) -> None:
    drawing = sprites(style)[placed.object]
    inset = (CELL_SIZE - len(drawing)) // 2
    cell[1:-1, 1:-1] = _PALETTE[placed.colour]
    cell[inset:-inset, inset:-inset] = drawing


def crop_spec(placed: Placed) -> str:
    """Return the crop of an object's cell as a string; equal crops have equal strings."""
    return f"crop {placed.object}.{placed.colour}"


def render_crop(spec: str, style: str = OPENMOJI) -> Image.Image:
    """Draw the image of a `crop_spec`, equal to that of `Scene.crop`."""
    cell = np.full((CELL_SIZE, CELL_SIZE, 3), _BACKGROUND_GREY, dtype=np.uint8)
    object, colour = map(int, spec.split()[1].split("."))
    _draw_tile(cell, Placed(object, 0, colour), style)
    return Image.fromarray(cell)


def relation_of(cell: int, reference: int) -> str | None:
    """Return the relation of a cell to a reference cell in the same row or column; `None` if they share neither."""
    row, column = divmod(cell, GRID)
    other_row, other_column = divmod(reference, GRID)
    if row == other_row and column != other_column:
        return "left of" if column < other_column else "right of"
    if column == other_column and row != other_row:
        return "above" if row < other_row else "below"
    return None
