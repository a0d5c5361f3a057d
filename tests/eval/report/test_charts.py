"""Charts as SVG for the report: points, labels, escaping, and nothing that points outside."""

import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from unime.eval.report.charts import curve, line_chart, radar


COLORS = {"UniME": "highlight", "CLIP": "other-0"}


def texts(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter("text")]


def polygons(svg: str, group: str) -> list[list[tuple[float, float]]]:
    """Return the corners of each outline, relative to the center and in units of the radius."""
    root = ElementTree.fromstring(svg)
    circle = numbers(next(root.iter("path")))  # the background: a circle, which begins at its right end
    across = [x for x, _ in circle]
    center, radius = ((max(across) + min(across)) / 2, circle[0][1]), (max(across) - min(across)) / 2
    groups = [element for element in root.iter("g") if element.get("class") == group]
    return [
        [
            (round((x - center[0]) / radius, 2) + 0.0, round((y - center[1]) / radius, 2) + 0.0)
            for x, y in numbers(element.find("path"))
        ]
        for element in groups
    ]


def numbers(path: ElementTree.Element) -> list[tuple[float, float]]:
    values = [float(value) for value in re.findall(r"-?[\d.]+", path.get("d"))]
    return list(zip(values[::2], values[1::2], strict=True))


def test_a_curve_holds_the_steps_that_logged_the_key():
    history = [{"step": 5, "loss": 2.0}, {"step": 5, "eval_loss": 1.0}, {"step": 10, "loss": 1.0}]
    assert curve(history, "loss") == [(5, 2.0), (10, 1.0)]


def test_a_line_chart_has_its_points_between_round_ticks():
    chart = line_chart("Loss", {"Stage 1": [(0, 0.0), (50, 0.0), (100, 1.0)]}, {"Stage 1": "other-3"}, "loss")
    assert chart.title == "Loss"
    assert texts(chart.svg) == ["0", "25", "50", "75", "100", "0.00", "0.25", "0.50", "0.75", "1.00"]
    # Weights of the bias-corrected mean: 0.2 for the last point, 0.8 x 0.2 and 0.64 x 0.2 for those before.
    assert chart.last == {"Stage 1": f"{0.2 / 0.488:.3g}"}
    raw, mean, end = (
        numbers(path)
        for path in ElementTree.fromstring(chart.svg).iter("path")
        if "var(--other-3)" in path.get("style") and path.get("id") is None
    )
    (left, bottom), (middle, _), (right, top) = raw
    assert left < middle < right and bottom > top and middle == pytest.approx((left + right) / 2)
    assert end == [mean[-1]] and end[0][1] == pytest.approx(bottom + (top - bottom) * 0.2 / 0.488, abs=1e-3)


def test_a_constant_line_and_a_single_point_are_drawn():
    chart = line_chart("Loss", {"a": [(1, 2.0), (2, 2.0)], "b": [(1, 2.0)]}, {}, "loss")
    assert chart.last == {"a": "2", "b": "2"}


def test_points_that_are_not_finite_are_left_out():
    chart = line_chart("Loss", {"a": [(1, 1.0), (2, math.nan), (3, 2.0)], "b": [(1, math.inf)]}, {}, "loss")
    assert list(chart.last) == ["a"]
    raw = next(path for path in ElementTree.fromstring(chart.svg).iter("path") if "opacity" in path.get("style"))
    assert len(numbers(raw)) == 2


def test_a_chart_without_points_is_left_out():
    assert line_chart("Loss", {"a": []}, {}, "loss") is None


def test_four_axes_point_up_right_down_and_left():
    svg = radar(["up", "right", "down", "left"], {"UniME": [100, 50, 25, 0]}, {}, COLORS, "radar")
    assert texts(svg) == ["20", "40", "60", "80", "100", "up", "right", "down", "left"]
    assert polygons(svg, "outline") == [[(0, -1), (0.5, 0), (0, 0.25), (0, 0), (0, -1)]]
    anchors = [element.get("style") for element in ElementTree.fromstring(svg).iter("text")][-4:]
    assert anchors == [f"text-anchor: {anchor}" for anchor in ("middle", "start", "middle", "end")]


def test_three_axes_are_a_third_of_a_turn_apart():
    svg = radar(["Replace", "Swap", "Add"], {"UniME": [100, 100, 100]}, {}, COLORS, "radar")
    # sin and cos of 120 degrees are 0.866 and -0.5.
    assert polygons(svg, "outline") == [[(0, -1), (0.87, 0.5), (-0.87, 0.5), (0, -1)]]


def test_the_center_may_be_chance_and_lower_scores_are_drawn_there():
    axes = ["a", "b", "c", "d"]
    svg = radar(axes, {"UniME": [75, 50, 40, 100]}, {"UniME": [100, 60, 100, 100]}, COLORS, "radar", center=50)
    assert texts(svg)[:5] == ["60", "70", "80", "90", "100"]
    assert polygons(svg, "outline") == [[(0, -0.5), (0, 0), (0, 0), (-1, 0), (0, -0.5)]]
    assert polygons(svg, "reference")[0][:2] == [(0, -1), (0.2, 0)]


def test_a_score_below_zero_is_drawn_in_the_center():
    svg = radar(["a", "b", "c"], {"UniME": [-20, 0, 0]}, {}, COLORS, "radar")
    assert polygons(svg, "outline") == [[(0, 0)] * 4]


def test_the_highlight_is_drawn_last():
    svg = radar(["a", "b", "c"], {"UniME": [1, 2, 3], "CLIP": [3, 2, 1]}, {}, COLORS, "radar")
    assert svg.rindex("stroke: var(--highlight)") > svg.rindex("stroke: var(--other-0)")


@pytest.mark.parametrize("title", ["a label of thirty-three characters", "short"])
def test_the_view_box_has_room_for_every_label(title: str):
    svg = radar(["up", title, "down", "left"], {"UniME": [1, 2, 3, 4]}, {}, COLORS, "radar")
    root = ElementTree.fromstring(svg)
    left, top, width, height = map(float, root.get("viewBox").split())
    assert (left, top) == (0, 0)
    label = next(element for element in root.iter("text") if element.text == title)
    assert float(label.get("x")) + 7 * len(title) < width  # at least 7 units per character of 15 units
    assert all(0 < float(element.get("y")) < height for element in root.iter("text"))


def test_two_axes_are_refused():
    with pytest.raises(ValueError, match="a radar chart needs at least three axes, got 2; draw bars"):
        radar(["t2i", "i2t"], {"UniME": [1, 2]}, {}, COLORS, "radar")


@pytest.mark.parametrize("row", [[1, 2], [1, 2, math.nan]])
def test_an_outline_that_lacks_a_score_is_refused(row: list[float]):
    with pytest.raises(ValueError, match="the outline 'CLIP' has the scores .*; give 3 finite ones, one per axis"):
        radar(["a", "b", "c"], {"UniME": [1, 2, 3]}, {"CLIP": row}, COLORS, "radar")


def test_titles_are_escaped_and_not_read_as_formulas():
    title = '<script>$x^2$ & "#010101"</script>'
    svg = radar([title, "b", "c"], {"UniME": [1, 2, 3]}, {title: [1, 2, 3]}, COLORS, "radar")
    assert title in texts(svg) and "<script" not in svg
    assert title in ElementTree.fromstring(svg).get("aria-label")
    chart = line_chart(title, {title: [(1, 1.0)]}, {}, "loss")
    assert ElementTree.fromstring(chart.svg).get("aria-label") == f"{title}: {title}"


def test_svg_can_be_inlined_several_times_and_points_nowhere_outside():
    charts = [line_chart("Loss", {"UniME": [(1, 1.0), (2, 0.5)]}, COLORS, f"chart-{index}").svg for index in (0, 1)]
    charts.append(radar(["a", "b", "c"], {"UniME": [1, 2, 3]}, {}, COLORS, "radar"))
    page = "".join(charts)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == 3 == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', page)) == set(ids)
    assert all(part not in page for part in ("http", "url(", "<?xml", "<!DOCTYPE", "<style", "<metadata", "font"))
    assert all(chart.startswith("<svg viewBox=") for chart in charts)


def test_every_color_belongs_to_the_style_sheet():
    svg = radar(["a", "b", "c"], {"UniME": [1, 2, 3], "CLIP": [1, 2, 3]}, {"CLIP": [1, 2, 3]}, COLORS, "radar")
    svg += line_chart("Loss", {"UniME": [(1, 1.0), (2, 0.5)]}, COLORS, "loss").svg
    values = set(re.findall(r"(?:stroke|fill): ([^;\"]*)", svg))
    assert values == {"none", "var(--highlight)", "var(--other-0)", "var(--soft)", "var(--hair)"}


def test_equal_data_gives_equal_svg():
    def draw() -> str:
        return radar(["a", "b", "c"], {"UniME": [1, 2, 3]}, {}, COLORS, "radar")

    assert draw() == draw()


@pytest.mark.slow
def test_matplotlib_is_imported_when_a_chart_is_drawn():
    code = "import sys; import unime.eval.report.html_report; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
