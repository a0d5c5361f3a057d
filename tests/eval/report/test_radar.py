"""Radar charts as geometry."""

import math

import pytest

from unime.eval.report.radar import RADIUS, radar


def test_four_axes_point_up_right_down_and_left():
    chart = radar(["up", "right", "down", "left"], {"UniME": [100, 50, 25, 0]})
    assert [spoke.end for spoke in chart.spokes] == [(0, -170), (170, 0), (0, 170), (-170, 0)]
    assert [spoke.anchor for spoke in chart.spokes] == ["middle", "start", "middle", "end"]
    assert [spoke.label for spoke in chart.spokes] == [(0, -196), (186, 0), (0, 196), (-186, 0)]
    (outline,) = chart.outlines
    assert outline.corners == [(0, -170), (85, 0), (0, 42.5), (0, 0)]
    assert outline.points == "0,-170 85,0 0,42.5 0,0"


def test_three_axes_are_a_third_of_a_turn_apart():
    chart = radar(["Replace", "Swap", "Add"], {"UniME": [100, 100, 100]})
    # sin and cos of 120 degrees are 0.866 and -0.5.
    assert chart.outlines[0].corners == [(0, -170), (147.2, 85), (-147.2, 85)]


def test_rings_are_round_fifths_between_the_centre_and_full_score():
    chart = radar(["a", "b", "c"], {})
    assert [(ring.title, ring.corners[0][1]) for ring in chart.rings] == [
        ("20", -34), ("40", -68), ("60", -102), ("80", -136), ("100", -170)
    ]  # fmt: skip
    assert [ring.title for ring in radar(["a", "b", "c"], {}, low=50).rings] == ["60", "70", "80", "90", "100"]


def test_the_centre_may_be_chance_and_what_is_below_is_drawn_there():
    chart = radar(["a", "b", "c", "d"], {"UniME": [75, 50, 40, 100]}, {"UniME": [100, 60, 100, 100]}, low=50)
    assert chart.outlines[0].corners == [(0, -85), (0, 0), (0, 0), (-170, 0)]
    assert chart.references[0].corners[:2] == [(0, -170), (34, 0)]


def test_a_score_below_zero_is_drawn_in_the_centre_without_a_sign():
    chart = radar(["a", "b", "c"], {"UniME": [-20, 0, 0]})
    assert chart.outlines[0].points == "0,0 0,0 0,0"


def test_the_box_has_room_for_every_label():
    # Right and left: 186 to the label and 10 per letter; top and bottom: 196 to the middle of the label and 14.
    assert radar(["up", "seventeen letters", "down", "left"], {}).box == (-356, -210, 712, 420)
    # Short labels: 276 to each side. The lower two of three labels are at half of 196.
    assert radar(["a", "b", "c"], {}).box == (-276, -210, 552, 322)


def test_two_axes_are_refused():
    with pytest.raises(ValueError, match="a radar has at least three axes, these are 2: draw bars"):
        radar(["t2i", "i2t"], {"UniME": [1, 2]})


@pytest.mark.parametrize("row", [[1, 2], [1, 2, math.nan]])
def test_an_outline_that_lacks_a_score_is_refused(row):
    with pytest.raises(ValueError, match="the outline 'CLIP' has the scores .*; give 3 finite ones, one per axis"):
        radar(["a", "b", "c"], {"UniME": [RADIUS, 2, 3]}, {"CLIP": row})
