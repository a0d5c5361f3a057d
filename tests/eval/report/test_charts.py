"""Charts as SVG for the report: points, labels, escaping, and nothing that points outside."""

import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from unime.eval.report.charts import curve, line_chart


COLORS = {"UniME": "highlight", "CLIP": "other-0"}


def texts(svg: str) -> list[str]:
    return [element.text for element in ElementTree.fromstring(svg).iter("text")]


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


def test_titles_are_escaped_and_not_read_as_formulas():
    title = '<script>$x^2$ & "#010101"</script>'
    chart = line_chart(title, {title: [(1, 1.0)]}, {}, "loss")
    assert "<script" not in chart.svg
    assert ElementTree.fromstring(chart.svg).get("aria-label") == f"{title}: {title}"


def test_svg_can_be_inlined_several_times_and_points_nowhere_outside():
    charts = [line_chart("Loss", {"UniME": [(1, 1.0), (2, 0.5)]}, COLORS, f"chart-{index}").svg for index in (0, 1)]
    page = "".join(charts)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == 2 == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', page)) == set(ids)
    assert all(part not in page for part in ("http", "url(", "<?xml", "<!DOCTYPE", "<style", "<metadata", "font"))
    assert all(chart.startswith("<svg viewBox=") for chart in charts)


def test_every_color_belongs_to_the_style_sheet():
    svg = line_chart("Loss", {title: [(1, 1.0), (2, 0.5)] for title in COLORS}, COLORS, "loss").svg
    values = set(re.findall(r"(?:stroke|fill): ([^;\"]*)", svg))
    assert values == {"none", "var(--highlight)", "var(--other-0)", "var(--hair)"}


def test_equal_data_gives_equal_svg():
    def draw() -> str:
        return line_chart("Loss", {"UniME": [(1, 1.0), (2, 0.5)]}, COLORS, "loss").svg

    assert draw() == draw()


@pytest.mark.slow
def test_matplotlib_is_imported_when_a_chart_is_drawn():
    code = "import sys; import unime.eval.report.html_report; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
