"""The charts of a report as SVG, drawn by matplotlib, to be inlined into HTML.

Colors are the custom properties of the report's style sheet, so that charts follow its light and dark theme. Equal
data gives equal SVG.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree


SMOOTHING = 0.8  # weight of the past in the exponential mean
UNITS_PER_INCH = 72  # of matplotlib's SVG
# Colors for matplotlib -> the custom properties of the style sheet that replace them.
_COLORS = {
    "highlight": "#010101",
    **{f"other-{index}": f"#01020{index}" for index in range(5)},
    "hair": "#010302",
}
_PROPERTIES = {color: f"var(--{name})" for name, color in _COLORS.items()}
_SETTINGS = {
    "font.size": 13,  # as in the style sheet, which replaces the font: matplotlib computes the space for labels
    "svg.fonttype": "none",
    "svg.hashsalt": "unime",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class LineChart:
    """A line chart.

    Args:
        title (`str`): The measured quantity.
        svg (`str`): The chart, without title and legend.
        last (`Mapping[str, str]`): Title of each line -> last value of its running mean, rounded.
    """

    title: str
    svg: str
    last: Mapping[str, str]


def curve(log_history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """Return the `(step, value)` points that a `transformers.Trainer` logged under a key."""
    return [(entry["step"], entry[key]) for entry in log_history if key in entry]


def line_chart(
    title: str, curves: Mapping[str, Sequence[tuple[float, float]]], colors: Mapping[str, str], name: str
) -> LineChart | None:
    """Draw curves and their running means over steps.

    Args:
        title (`str`): The measured quantity.
        curves (`Mapping`): Title of each line -> its `(step, value)` points, by step. Points that are not finite are
            left out.
        colors (`Mapping[str, str]`): Title of each line -> its color: `highlight` (the default) or `other-0` to
            `other-4`.
        name (`str`): Prefix of the ids in the SVG, unique on the page.

    Returns:
        [`LineChart`], or `None` if there is nothing to draw.
    """
    curves = {line: [point for point in points if math.isfinite(point[1])] for line, points in curves.items()}
    curves = {line: points for line, points in curves.items() if points}
    if not curves:
        return None
    last = {}

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.spines[:].set_visible(False)
        axes.grid(axis="y", color=_COLORS["hair"], linewidth=1, clip_on=False)
        axes.tick_params(length=0, pad=8)
        axes.locator_params(nbins=5)
        axes.margins(x=0.02)
        for line, points in curves.items():
            steps, values = zip(*points, strict=True)
            means = _running_mean(values)
            last[line] = f"{means[-1]:.3g}"
            style = {"color": _COLORS[colors.get(line, "highlight")], "clip_on": False}
            axes.plot(steps, values, linewidth=1.2, alpha=0.3, **style)
            axes.plot(steps, means, linewidth=2.6, **style)
            axes.plot(steps[-1:], means[-1:], marker="o", markersize=7, **style)

    svg = _svg(draw, (480, 240), name, label=f"{title}: {', '.join(curves)}")
    return LineChart(title, svg, last)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Return the exponential mean with Adam's bias correction, so that it does not start near zero."""
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        means.append(mean / weight)
    return means


def _svg(draw: Callable[[Any], None], size: tuple[int, int], name: str, label: str) -> str:
    """Return the figure that `draw` fills as an `<svg>` element to inline into the report."""
    from matplotlib import rc_context  # imported when a chart is drawn
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(size[0] / UNITS_PER_INCH, size[1] / UNITS_PER_INCH), frameon=False)
        draw(figure)
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    svg = ElementTree.Element("svg", {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label})
    svg.extend(child for child in root if child.tag.endswith("}g"))  # without metadata and matplotlib's style sheet
    for element in svg.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        group = element.attrib.pop("id", None)
        if element.tag == "path" and group is not None:  # a marker
            element.set("id", f"{name}-{group}")
        if "href" in element.attrib:
            element.set("href", f"#{name}-{element.attrib['href'][1:]}")
        if "style" in element.attrib:
            style = dict(declaration.split(": ") for declaration in element.attrib["style"].split("; "))
            if element.tag == "text":  # the page sets font and color
                style = {"text-anchor": style.get("text-anchor", "start")}
            element.set("style", "; ".join(f"{key}: {_PROPERTIES.get(value, value)}" for key, value in style.items()))
    return ElementTree.tostring(svg, encoding="unicode")
