"""The filter by a judge's scores, cyclic sampling, rows with judged negatives, and the page that shows them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from unime.data.judge_page import write_judge_page
from unime.data.judged import Choice, choose_negatives, cyclic_order, judged_line
from unime.data.sources import DataArguments, open_rows


@pytest.mark.parametrize(
    ("count", "order"),
    [
        (0, []),
        (1, [0]),
        (2, [0, 1]),
        (5, [0, 1, 2, 3, 4]),  # steps of 5 would stay at 0
        (7, [0, 5, 3, 1, 6, 4, 2]),
        (10, [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]),
    ],
)
def test_cyclic_order_by_hand(count: int, order: list[int]):
    assert cyclic_order(count) == order


@pytest.mark.parametrize("count", [48, 49, 50])
def test_cyclic_order_takes_every_candidate_once_and_the_first_ten_reach_far(count: int):
    order = cyclic_order(count)
    assert sorted(order) == list(range(count))
    assert order[:10] == list(range(0, 50, 5))[: len(range(0, count, 5))] + order[len(range(0, count, 5)) : 10]


def test_candidates_close_to_the_positive_are_dropped():
    # 0.80 - 0.01 = 0.79: 0.79 stays, and what is above is dropped.
    choice = choose_negatives(0.8, [0.95, 0.79, 0.795, 0.1], num_negatives=2)
    assert choice == Choice([1, 3], [0, 2], False)


def test_fewer_candidates_than_negatives_repeat_in_the_same_order():
    assert choose_negatives(1.0, [0.1, 0.2], 5).negatives == [0, 1, 0, 1, 0]  # as in the published rows
    scores = [0.1] * 7
    pattern = choose_negatives(1.0, scores, 10).negatives
    assert pattern[7:] == pattern[:3] and sorted(pattern[:7]) == list(range(7))


def test_where_the_filter_would_drop_all_candidates_they_stay_with_their_scores():
    # A published row: its positive has the score 0.0085, below which no candidate can stay.
    assert choose_negatives(0.0085, [0.3, 0.0], 2) == Choice([0, 1], [], True)
    assert choose_negatives(0.9, [], 2) == Choice([], [], False)


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    rows = [
        {"query": f"q{n}", "positive": f"p{n}", "negatives": [{"text": f"n{n}"}], "scores": [0.5, 0.25]}
        for n in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_judged_negatives_bring_the_scores_of_the_whole_row(rows_file: Path, tmp_path: Path):
    judged = {"negatives": [2, [3, 0], 2], "scores": [0.9, 0.6, 0.3, 0.2, 0.3]}
    file = write_lines(tmp_path / "negatives.jsonl", judged, [1], [], {"negatives": [], "scores": [0.8, 0.1]})
    rows = open_rows(DataArguments(dataset=str(rows_file), mined_file=str(file)))
    first, plain, rejected, alone = rows[:]["scores"]
    assert [item["text"] for item in rows[0]["negatives"]] == ["n0", "p2", "p3", "p2"]
    assert first == pytest.approx(judged["scores"]) and alone == pytest.approx([0.8, 0.1])
    assert plain == [0.5, 0.25, None]  # mined, not judged
    assert rejected == [0.5, 0.25]


@pytest.mark.parametrize(
    "line", [{"negatives": [1]}, {"negatives": [9], "scores": [0.5]}, {"negatives": [1], "scores": "no"}]
)
def test_a_malformed_line_is_named(rows_file: Path, tmp_path: Path, line: object):
    file = write_lines(tmp_path / "negatives.jsonl", [], line, [], [])
    with pytest.raises(ValueError, match="negatives.jsonl, line 2 is not a list of numbers of the 4 rows"):
        open_rows(DataArguments(dataset=str(rows_file), mined_file=str(file)))


def test_the_page_shows_a_row_with_its_scores_and_escapes_texts():
    row = {
        "query": {"text": "<b>query</b>", "instruction": "Find it:"},
        "positives": [{"image": [Image.new("RGB", (600, 300), "red")]}],
        "negatives": [{"text": "explicit"}],
        "mined": [{"text": "first"}, {"text": "second"}, {"text": "third"}],
        "task": "t2i",
        "where": "rows.jsonl, row 0",
    }
    example = (row, [0.9, 0.1, 0.95, 0.4, 0.2], Choice([1, 1], [0], False))
    page = write_judge_page(
        {"judge": "judge", "repetition_penalty": 1.05, "margin": 0.01, "num_negatives": 2},
        {"rows": 1},
        [example],
        {7: "row 7: <unreadable>"},
    )
    assert "&lt;b&gt;query&lt;/b&gt;" in page and "row 7: &lt;unreadable&gt;" in page
    assert "1 dropped" in page and "1 not sampled" in page and "rank 2, 2 times" in page and "0.9500" in page
    assert page.count("data:image/webp;base64,") == 1 and "http" not in page.split("<main>")[1]


def test_a_line_has_the_scores_of_the_row_and_those_of_the_chosen_negatives() -> None:
    mined = [[7, 0], [8, 1], [9, 0]]
    scores = [0.9, 0.8, 0.1, 0.85, 0.2, 0.3]  # two positives, an explicit negative, three mined ones
    choice, line = judged_line(mined, scores, num_positives=2, num_negatives=2)
    assert choice.dropped == [0] and choice.negatives == [1, 2]  # 0.85 is above the lower positive
    assert line == {"negatives": [[8, 1], [9, 0]], "scores": [0.9, 0.8, 0.1, 0.2, 0.3]}
    assert judged_line([], [0.9, 0.1], num_positives=1, num_negatives=2)[1] == {"negatives": [], "scores": [0.9, 0.1]}
