"""Charts as geometry."""

import math

from unime.eval.report.line_chart import HEIGHT, WIDTH, curve, line_chart


def test_a_curve_holds_the_steps_that_logged_the_key():
    history = [{"step": 5, "loss": 2.0}, {"step": 5, "eval_loss": 1.0}, {"step": 10, "loss": 1.0}]
    assert curve(history, "loss") == [(5, 2.0), (10, 1.0)]


def test_a_chart_places_points_between_round_numbers():
    chart = line_chart("Loss", {"Stage 1": [(0, 0.0), (100, 1.0)]})
    assert chart.y_ticks == [(240.0, "0"), (180.0, "0.25"), (120.0, "0.5"), (60.0, "0.75"), (0.0, "1")]
    assert chart.x_ticks[0] == (0.0, "0") and chart.x_ticks[-1] == (480.0, "100")
    (line,) = chart.lines
    assert line.raw == f"0,{HEIGHT} {WIDTH},0"
    # Weights of the bias-corrected mean: 0.2 for the last point, 0.8 x 0.2 for the one before.
    assert line.last == f"{0.2 / 0.36:.3g}"


def test_a_constant_line_and_a_single_point_are_drawn():
    assert line_chart("Loss", {"a": [(1, 2.0), (2, 2.0)], "b": [(1, 2.0)]}).lines[1].last == "2"


def test_points_that_are_not_finite_are_left_out():
    chart = line_chart("Loss", {"a": [(1, 1.0), (2, math.nan), (3, 2.0)], "b": [(1, math.inf)]})
    assert [line.title for line in chart.lines] == ["a"]
    assert len(chart.lines[0].raw.split()) == 2


def test_nothing_to_draw_gives_no_chart():
    assert line_chart("Loss", {"a": []}) is None
