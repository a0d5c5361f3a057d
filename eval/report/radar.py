"""Radar charts as plain geometry, so that a report draws them as inline SVG without any library."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


RADIUS = 170  # user units from the centre, which is the origin, to the full score; y points down
RINGS = 5
BESIDE, ABOVE = 16, 26  # from the end of a spoke to its label, across and up
LETTER, MARGIN = 10, 14  # room for a letter of a label, and above and below all of them
HALF_WIDTH = 276  # at least, so that charts on one page have one scale


@dataclass(frozen=True)
class Spoke:
    """An axis: its title, its outer end, and the middle of its label with SVG's `text-anchor`."""

    title: str
    end: tuple[float, float]
    label: tuple[float, float]
    anchor: str


@dataclass(frozen=True)
class Outline:
    """The scores of one model: its title and the corners, one per axis."""

    title: str
    corners: list[tuple[float, float]]

    @property
    def points(self) -> str:
        """The corners as `points` of an SVG polygon."""
        return " ".join(f"{x:g},{y:g}" for x, y in self.corners)


@dataclass(frozen=True)
class Radar:
    """Outlines over shared axes that start upwards and go round clockwise; `rings` are those of equal scores."""

    spokes: list[Spoke]
    rings: list[Outline]
    outlines: list[Outline]
    references: list[Outline]
    low: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """SVG's `viewBox` with room for the labels, as wide to the left as to the right."""
        ends = [
            abs(spoke.label[0]) + LETTER * len(spoke.title) * (0.5 if spoke.anchor == "middle" else 1)
            for spoke in self.spokes
        ]
        across = max(HALF_WIDTH, *ends)
        heights = [spoke.label[1] for spoke in self.spokes]
        top, bottom = min(heights) - MARGIN, max(heights) + MARGIN
        return -across, top, 2 * across, bottom - top


def radar(
    axes: Sequence[str],
    scores: Mapping[str, Sequence[float]],
    references: Mapping[str, Sequence[float]] | None = None,
    low: float = 0,
) -> Radar:
    """Lays out scores around the origin.

    Args:
        axes (`Sequence[str]`): Title of each axis, at least three.
        scores (`Mapping`): Title of each outline -> its score on each axis, in per cent.
        references (`Mapping`, *optional*): The same of what the outlines are compared with; titles may repeat.
        low (`float`, *optional*, defaults to 0): The score in the centre, in per cent; lower ones are drawn there too.

    Raises:
        ValueError: There are fewer than three axes, or an outline has not one finite score per axis.
    """
    if len(axes) < 3:
        raise ValueError(f"a radar has at least three axes, these are {len(axes)}: draw bars.")
    references = references or {}
    for title, row in [*scores.items(), *references.items()]:
        if len(row) != len(axes) or not all(map(math.isfinite, row)):
            raise ValueError(
                f"the outline '{title}' has the scores {list(row)}; give {len(axes)} finite ones, one per axis."
            )
    angles = [2 * math.pi * number / len(axes) for number in range(len(axes))]  # clockwise from the top

    rings = [low + (100 - low) * number / RINGS for number in range(1, RINGS + 1)]

    def place(angle: float, across: float, up: float) -> tuple[float, float]:
        # Adding 0 turns -0.0, which SVG would show as "-0", into 0.0.
        return round(across * math.sin(angle), 1) + 0.0, round(-up * math.cos(angle), 1) + 0.0

    def outline(title: str, row: Sequence[float]) -> Outline:
        distances = [RADIUS * min(max(score - low, 0) / (100 - low), 1) for score in row]
        return Outline(
            title, [place(angle, distance, distance) for angle, distance in zip(angles, distances, strict=True)]
        )

    return Radar(
        [
            Spoke(
                title,
                place(angle, RADIUS, RADIUS),
                place(angle, RADIUS + BESIDE, RADIUS + ABOVE),
                _anchor(math.sin(angle)),
            )
            for title, angle in zip(axes, angles, strict=True)
        ],
        [outline(f"{ring:g}", [ring] * len(axes)) for ring in rings],
        [outline(title, row) for title, row in scores.items()],
        [outline(title, row) for title, row in references.items()],
        low,
    )


def _anchor(across: float) -> str:
    """Labels grow away from the chart, and those above and below it to both sides."""
    if abs(across) < 0.1:
        return "middle"
    return "start" if across > 0 else "end"
