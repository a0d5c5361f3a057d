"""Scenes: objects of the vocabulary on coloured tiles in a 3 x 3 grid, 96 x 96 pixels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

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

_EMPTY = 225
_PALETTE = np.array(list(COLOURS.values()), dtype=np.uint8)


@dataclass(frozen=True)
class Placed:
    """An object (id in the vocabulary) in a cell (0 to 8, reading order) on a tile of a colour (id)."""

    object: int
    cell: int
    colour: int


@dataclass(frozen=True)
class Scene:
    """An image by its content. No two objects are the same and no two share a cell."""

    placed: tuple[Placed, ...]

    @property
    def spec(self) -> str:
        """The scene as a short string, the same for equal images: "scene 12.0.3 45.4.1" (object.cell.colour)."""
        ordered = sorted(self.placed, key=lambda placed: placed.cell)
        return "scene " + " ".join(f"{placed.object}.{placed.cell}.{placed.colour}" for placed in ordered)

    @classmethod
    def from_spec(cls, spec: str) -> "Scene":
        """Reads what `spec` wrote."""
        return cls(tuple(Placed(*map(int, part.split("."))) for part in spec.split()[1:]))

    def find(self, object: int) -> Placed | None:
        """Where an object is, None if it is not in the scene."""
        return next((placed for placed in self.placed if placed.object == object), None)

    def at(self, cell: int) -> Placed | None:
        """What is in a cell, None if it is empty."""
        return next((placed for placed in self.placed if placed.cell == cell), None)

    def empty_cells(self) -> list[int]:
        """Cells without an object, in reading order."""
        taken = {placed.cell for placed in self.placed}
        return [cell for cell in range(CELLS) if cell not in taken]

    def related(self, relation: str, reference: int) -> list[Placed]:
        """All that stands in a relation of `RELATIONS` to the reference object: "left of" means in the same row."""
        there = self.find(reference)
        return [placed for placed in self.placed if there and relation_of(placed.cell, there.cell) == relation]

    def render(self) -> Image.Image:
        """The image, 96 x 96 RGB."""
        canvas = np.full((GRID * CELL_SIZE, GRID * CELL_SIZE, 3), _EMPTY, dtype=np.uint8)
        for placed in self.placed:
            row, column = divmod(placed.cell, GRID)
            top, left = row * CELL_SIZE, column * CELL_SIZE
            _draw_tile(canvas[top : top + CELL_SIZE, left : left + CELL_SIZE], placed)
        return Image.fromarray(canvas)

    def crop(self, cell: int) -> Image.Image:
        """One cell cut out of the image, 32 x 32 RGB."""
        row, column = divmod(cell, GRID)
        left, top = column * CELL_SIZE, row * CELL_SIZE
        return self.render().crop((left, top, left + CELL_SIZE, top + CELL_SIZE))


def _draw_tile(cell: np.ndarray, placed: Placed) -> None:
    drawing = sprites()[placed.object]
    inset = (CELL_SIZE - len(drawing)) // 2
    cell[1:-1, 1:-1] = _PALETTE[placed.colour]
    cell[inset:-inset, inset:-inset] = drawing


def crop_spec(placed: Placed) -> str:
    """The crop of an object's cell as a string; crops that look the same have the same string."""
    return f"crop {placed.object}.{placed.colour}"


def render_crop(spec: str) -> Image.Image:
    """The image of a `crop_spec`, equal to `Scene.crop`."""
    cell = np.full((CELL_SIZE, CELL_SIZE, 3), _EMPTY, dtype=np.uint8)
    object, colour = map(int, spec.split()[1].split("."))
    _draw_tile(cell, Placed(object, 0, colour))
    return Image.fromarray(cell)


def relation_of(cell: int, reference: int) -> str | None:
    """How a cell lies to another of the same row or column, None if they share neither."""
    row, column = divmod(cell, GRID)
    other_row, other_column = divmod(reference, GRID)
    if row == other_row and column != other_column:
        return "left of" if column < other_column else "right of"
    if column == other_column and row != other_row:
        return "above" if row < other_row else "below"
    return None
