"""What the page draws: cards, marks of what differs, and the heat map, with nothing unescaped in them."""

import re
from io import BytesIO

import numpy as np
from PIL import Image

from unime.index.index import Hit
from unime.page.collection import SearchResult
from unime.page.drawing import places_elsewhere, render_heat_map, render_hits


SCRIPT = '<script>alert("x")</script>'


def hit(name: str, score: float = 0.5, text: str | None = None, image: str | bytes | None = None) -> Hit:
    return Hit(name, score, text, image, {})


def encoded(colour: str) -> bytes:
    data = BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, "WEBP")
    return data.getvalue()


def test_a_place_elsewhere_is_counted_from_one_and_none_where_the_other_did_not_find_it() -> None:
    assert places_elsewhere([hit("a"), hit("b"), hit("c")], [hit("c"), hit("a"), hit("d")]) == [2, None, 1]


def test_cards_say_what_was_found_in_order_with_scores_and_the_instruction() -> None:
    html = render_hits(
        SearchResult("Find me:", [hit("pizza", 0.7934, image=encoded("red")), hit("a note", -0.25, "two words")])
    )
    assert re.findall(r'<p class="name"[^>]*>([^<]*)</p>', html) == ["pizza", "a note"]
    assert re.findall(r"<span>([^<]*)</span>", html) == ["1", "0.793", "2", "-0.250"]
    assert re.findall(r"width: ([\d.]+)%", html) == ["79.3", "0.0"]  # a bar cannot be shorter than nothing
    assert html.count("<img") == 1 and 'src="data:image/webp;base64,' in html
    assert "“Find me:”" in html and "two words" in html


def test_an_answer_without_instruction_says_so() -> None:
    assert "one-word prompt" in render_hits(SearchResult("", [hit("pizza")]))


def test_what_differs_between_two_models_is_marked() -> None:
    here, there = [hit("a"), hit("b"), hit("c")], [hit("a"), hit("c"), hit("d")]
    html = render_hits(SearchResult("", here), "tiny", there)
    marks = [re.sub(r"\s+", " ", mark).strip() for mark in re.findall(r"<em>(.*?)</em>", html, re.DOTALL)]
    assert marks == ["same place", "only here", "there 2"]
    assert re.findall(r'<li class="card( only)?">', html) == ["", " only", ""]
    assert "2 of 3 in both" in html and "<h3>tiny</h3>" in html


def test_names_texts_titles_and_instructions_are_escaped() -> None:
    html = render_hits(SearchResult(SCRIPT, [hit(SCRIPT, text=SCRIPT)]), SCRIPT, [])
    html += render_heat_map([SCRIPT], [Image.new("RGB", (4, 4))], np.array([[0.5]]))
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 6  # the name is a tooltip too


def test_a_image_that_is_gone_leaves_its_card() -> None:
    html = render_hits(SearchResult("", [hit("lost", image="/nowhere/lost.png")]))
    assert 'src=""' in html and "lost" in html


def test_a_heat_map_is_coloured_from_its_least_to_its_greatest_number() -> None:
    images = [Image.new("RGB", (700, 350), colour) for colour in ("red", "green")]
    html = render_heat_map(["one", "two"], images, np.array([[0.9, -0.1], [0.15, 0.4]]))
    assert re.findall(r"--heat: ([\d.]+)%", html) == ["100.0", "0.0", "25.0", "50.0"]
    assert re.findall(r">([−\d.]+)</td>", html) == ["0.90", "−0.10", "0.15", "0.40"]
    assert re.findall(r'<td class="([^"]*)"', html) == ["hot best", "", "", " best"]
    assert re.findall(r"<span>([^<]*)</span>", html) == ["−0.10", "0.90"]
    assert images[0].size == (700, 350)  # the caller's own


def test_a_heat_map_of_equal_numbers_can_be_drawn() -> None:
    html = render_heat_map(["one"], [Image.new("RGB", (4, 4))] * 2, np.array([[0.5, 0.5]]))
    assert re.findall(r"--heat: ([\d.]+)%", html) == ["0.0", "0.0"]
