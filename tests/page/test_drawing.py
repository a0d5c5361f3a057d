"""The HTML of the page: result cards, marks of differences, and heat maps; everything is escaped."""

import re
from io import BytesIO

import numpy as np
from PIL import Image

from unime.index.hit_cards import fold_hits
from unime.index.index import Hit
from unime.page.collection import SearchResult
from unime.page.drawing import places_in, render_comparison, render_heat_map, render_hits


SCRIPT = '<script>alert("x")</script>'


def hit(name: str, score: float = 0.5, text: str | None = None, image: str | bytes | None = None) -> Hit:
    return Hit(name, score, text, image, {})


def encoded(colour: str) -> bytes:
    data = BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, "WEBP")
    return data.getvalue()


def test_places_among_other_cards_count_from_one_and_are_none_if_missing() -> None:
    others, cards = fold_hits([hit("c"), hit("a"), hit("d")]), fold_hits([hit("a"), hit("b"), hit("c")])
    assert places_in(others, cards) == [2, None, 1]
    red = encoded("red")
    others = fold_hits([hit("d"), hit("b", image=red), hit("a", image=red)])
    assert places_in(others, fold_hits([hit("a", image=red), hit("b", image=red)])) == [2]  # one card on both sides


def test_cards_show_results_in_order_with_scores_and_the_instruction() -> None:
    html = render_hits(
        SearchResult("Find me:", [hit("pizza", 0.7934, image=encoded("red")), hit("a note", -0.25, "two words")])
    )
    assert re.findall(r'<p class="name"[^>]*>([^<]*)</p>', html) == ["pizza", "a note"]
    assert re.findall(r"<span>([^<]*)</span>", html) == ["1", "0.793", "2", "-0.250"]
    assert re.findall(r"width: ([\d.]+)%", html) == ["79.3", "0.0"]  # negative scores have an empty bar
    assert html.count("<img") == 1 and 'src="data:image/webp;base64,' in html
    assert "“Find me:”" in html and "two words" in html


def test_results_without_an_instruction_say_so() -> None:
    assert "one-word prompt" in render_hits(SearchResult("", [hit("pizza")]))


def test_differences_between_two_models_are_marked() -> None:
    hits, other_hits = [hit("a"), hit("b"), hit("c")], [hit("a"), hit("c"), hit("d")]
    html, other = render_comparison([SearchResult("", hits), SearchResult("", other_hits)], ["tiny", "base"])
    marks = [re.sub(r"\s+", " ", mark).strip() for mark in re.findall(r"<em>(.*?)</em>", html, re.DOTALL)]
    assert marks == ["same rank", "only here", "other: 2"]
    assert re.findall(r'<li class="card( only)?">', html) == ["", " only", ""]
    assert "2 of 3 in both" in html and "<h3>tiny</h3>" in html
    assert "2 of 3 in both" in other and "<h3>base</h3>" in other and "other: 3" in other


def test_names_texts_titles_and_instructions_are_escaped() -> None:
    image = encoded("red")
    hits = [hit(SCRIPT, text=SCRIPT), hit(SCRIPT, image=image), hit(SCRIPT, image=image)]
    html, _ = render_comparison([SearchResult(SCRIPT, hits), SearchResult("", [])], [SCRIPT, ""])
    html += render_heat_map([SCRIPT], [Image.new("RGB", (4, 4))], np.array([[0.5]]))
    assert "<script" not in html
    # Heading, instruction, heat map; text, tooltips and name; alternative text, tooltip, name, and the identical one.
    assert html.count("&lt;script&gt;") == 3 + 4 + 4


def test_a_result_with_a_missing_image_keeps_its_card() -> None:
    html = render_hits(SearchResult("", [hit("lost", image="/nowhere/lost.png")]))
    assert 'src=""' in html and "lost" in html


def test_identical_results_share_a_card_named_by_the_caption_or_the_stem() -> None:
    red, name = encoded("red"), "trips/IMG_2024_a_holiday_with_everyone.JPG"
    hits = [hit(name, 0.9, image=red), hit("copy.jpg", 0.9, image=red), hit("b.jpg", 0.2, "a red square", red)]
    html = render_hits(SearchResult("", hits))
    assert re.findall(r'<p class="name" title="([^"]*)">([^<]*)</p>', html) == [
        (name, "IMG_2024_a_holiday_with_everyone")
    ]
    assert re.findall(r'<p class="text" title="([^"]*)">([^<]*)</p>', html) == [("b.jpg", "a red square")]
    assert html.count("<img") == 2 and "1 more of the same" in html and "<li>copy.jpg</li>" in html


def test_a_heat_map_is_coloured_from_its_lowest_to_its_highest_value() -> None:
    images = [Image.new("RGB", (700, 350), colour) for colour in ("red", "green")]
    html = render_heat_map(["one", "two"], images, np.array([[0.9, -0.1], [0.15, 0.4]]))
    assert re.findall(r"--heat: ([\d.]+)%", html) == ["100.0", "0.0", "25.0", "50.0"]
    assert re.findall(r">([−\d.]+)</td>", html) == ["0.90", "−0.10", "0.15", "0.40"]
    assert re.findall(r'<td class="([^"]*)"', html) == ["hot best", "", "", " best"]
    assert re.findall(r"<span>([^<]*)</span>", html) == ["−0.10", "0.90"]
    assert images[0].size == (700, 350)  # the caller's image is unchanged


def test_a_heat_map_of_equal_values_can_be_drawn() -> None:
    html = render_heat_map(["one"], [Image.new("RGB", (4, 4))] * 2, np.array([[0.5, 0.5]]))
    assert re.findall(r"--heat: ([\d.]+)%", html) == ["0.0", "0.0"]
