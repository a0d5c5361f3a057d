"""Line charts as plain geometry, so that a report draws them as inline SVG without any library."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


WIDTH, HEIGHT = 480, 240  # user units of the drawing area
SMOOTHING = 0.8  # weight of the past in the exponential mean


@dataclass(frozen=True)
class Line:
    """A curve: what was measured and its running mean, as `points` of SVG polylines, and the mean's last value."""

    title: str
    raw: str
    smooth: str
    end: tuple[float, float]
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves over one pair of axes; a tick is its position in user units and its label."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def curve(log_history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """Returns the `(step, value)` points of what a `transformers.Trainer` logged under a key."""
    return [(entry["step"], entry[key]) for entry in log_history if key in entry]


def line_chart(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Chart | None:
    """Lays out curves in the drawing area.

    Args:
        title (`str`): What is measured.
        curves (`Mapping`): Title of each line -> its `(x, y)` points, in order of x. Points that are not finite are
            left out.

    Returns:
        `Chart`, or `None` if there is nothing to draw.
    """
    curves = {name: [point for point in points if math.isfinite(point[1])] for name, points in curves.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return None
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    x_ticks, y_ticks = _round_numbers(min(0, *xs), max(xs)), _round_numbers(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(across * WIDTH, 1), round((1 - up) * HEIGHT, 1)

    def line(name: str, points: Sequence[tuple[float, float]]) -> Line:
        raw, smooth = _points(place(*point) for point in points), _running_mean(points)
        placed = [place(*point) for point in smooth]
        return Line(name, raw, _points(placed), placed[-1], f"{smooth[-1][1]:.3g}")

    return Chart(
        title,
        [line(name, points) for name, points in curves.items()],
        [(place(x, y_ticks[0])[0], f"{x:,g}") for x in x_ticks],
        [(place(x_ticks[0], y)[1], f"{y:g}") for y in y_ticks],
    )


def _points(placed: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in placed)


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Exponential mean without the pull towards zero at the start (Adam's bias correction)."""
    mean, weight, smooth = 0.0, 0.0, []
    for x, y in points:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * y
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append((x, mean / weight))
    return smooth


def _round_numbers(low: float, high: float) -> list[float]:
    """About five round numbers, evenly spaced, that enclose a range."""
    span = high - low or abs(high) or 1.0
    magnitude = 10 ** math.floor(math.log10(span / 4))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= span / 4)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [round(index * step, 10) for index in range(first, last + 1)]
