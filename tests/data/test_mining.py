import json
from pathlib import Path

import numpy as np
import pytest

from unime.data.jsonl import load_rows
from unime.data.mining import mine_hard_negatives, with_mined_negatives
from unime.openmoji.dataset import openmoji_rows


# The candidates are the axes, so a query's coordinates are its scores. The ranking for query 0 is 3, 1, 2, 0 (its
# positive), 4.
QUERIES = np.array([[0.5, 0.7, 0.6, 0.9, 0.1], [0.1, 0.8, 0.3, 0.2, 0.4]], dtype=np.float32)
AXES = np.eye(5, dtype=np.float32)
POSITIVES = [[0], [1]]
NO_LABEL = np.array([-1, -1])
CONTENTS = (np.array([100, 101]), np.arange(5))  # of the queries and of the candidates


def test_the_hardest_negatives_come_first_and_the_positive_is_excluded():
    mined, report = mine_hard_negatives(QUERIES, AXES, POSITIVES, NO_LABEL, *CONTENTS, num_negatives=3)
    assert mined == [[3, 1, 2], [4, 2, 3]]
    assert report == {"looked at": 6, "taken": 6, "queries with fewer than num_negatives": 0}


def test_ranks_exclude_the_positive():
    assert mine_hard_negatives(QUERIES, AXES, POSITIVES, NO_LABEL, *CONTENTS, num_negatives=2, range_min=1)[0] == [
        [1, 2],
        [2, 3],
    ]
    mined, report = mine_hard_negatives(
        QUERIES, AXES, POSITIVES, NO_LABEL, *CONTENTS, num_negatives=2, range_min=1, range_max=3, max_score=0.65
    )
    assert mined == [[2], [2, 3]] and report["queries with fewer than num_negatives"] == 1


@pytest.mark.parametrize(
    ("settings", "mined", "reason"),
    [
        ({"max_score": 0.65}, [2, 4], "dropped: above max_score"),
        ({"absolute_margin": 0.05}, [4], "dropped: within the absolute margin"),  # below 0.5 - 0.05
        ({"relative_margin": -0.3}, [2, 4], "dropped: within the relative margin"),  # below 0.5 * 1.3
    ],
)
def test_each_filter_drops_and_reports_its_candidates(settings: dict[str, float], mined: list[int], reason: str):
    negatives, report = mine_hard_negatives(
        QUERIES[:1], AXES, POSITIVES[:1], NO_LABEL[:1], CONTENTS[0][:1], CONTENTS[1], num_negatives=4, **settings
    )
    assert negatives == [mined]
    assert (
        report[reason] == 4 - len(mined)
        and report["looked at"] == 4
        and report["queries with fewer than num_negatives"] == 1
    )


def test_a_positive_with_the_same_label_is_not_a_negative():
    mined, report = mine_hard_negatives(QUERIES, AXES, [[0], [3]], np.array([7, 7]), *CONTENTS, num_negatives=2)
    assert mined[0] == [1, 2] and report["dropped: same label"] == 1  # 3, the hardest, has label 7 too


def test_positives_of_an_equal_query_and_the_querys_own_content_are_not_ranked():
    # Rows 0 and 1 have one query, with the positives 0 and 3, and 4 has the content of 3; 1 has that of the query.
    query_contents, candidate_contents = np.array([11, 11]), np.array([10, 11, 12, 13, 13])
    mined, report = mine_hard_negatives(
        QUERIES[[0, 0]], AXES, [[0], [3]], NO_LABEL, query_contents, candidate_contents, num_negatives=1
    )
    assert mined == [[2], [2]] and report["looked at"] == 2
    mined, _ = mine_hard_negatives(
        QUERIES[[0, 0]], AXES, [[0], [3]], NO_LABEL, np.array([21, 22]), np.arange(5), num_negatives=1
    )
    assert mined == [[3], [1]]  # two queries


def test_all_positives_of_a_row_are_right_and_the_lowest_sets_the_margin():
    contents = (np.array([100, 101]), np.arange(5))
    settings = {"num_negatives": 2, "absolute_margin": 0.0}
    one, _ = mine_hard_negatives(QUERIES, AXES, [[3, 2], [1]], NO_LABEL, *contents, **settings)
    assert one == [[0, 4], [4, 2]]  # 1, which scores 0.7, is above the positive 2, which scores 0.6


def test_a_candidate_with_the_label_of_any_positive_of_the_query_is_not_a_negative():
    rows = [0, 0, 1]  # the query of rows 0 and 1 has the positives 0 (label 7) and 3 (no label)
    mined, report = mine_hard_negatives(
        QUERIES[rows],
        AXES,
        [[0], [3], [1]],
        np.array([7, -1, 7]),
        np.array([11, 11, 12]),
        np.arange(5),
        num_negatives=2,
    )
    assert mined == [[2, 4], [2, 4], [4, 2]] and report["dropped: same label"] == 2


@pytest.mark.parametrize(
    ("positive_score", "expected"),
    [
        (0.8, [0.75, 0.7]),  # at most 0.8 - 0.05 * 0.8 = 0.76
        (-0.4, [-0.43, -0.5]),  # at most -0.4 - 0.05 * 0.4 = -0.42, not -0.4 * 0.95 = -0.38
        (0.0, [0.0, -0.1]),
    ],
)
def test_the_relative_margin_does_not_depend_on_the_sign_of_the_score(positive_score: float, expected: list[float]):
    scores = np.array([[positive_score, 0.9, 0.77, 0.75, 0.7, 0.01, 0.0, -0.1, -0.39, -0.41, -0.43, -0.5]], np.float32)
    mined, _ = mine_hard_negatives(
        scores,
        np.eye(12),
        [[0]],
        NO_LABEL[:1],
        np.array([100]),
        np.arange(12),
        num_negatives=2,
        relative_margin=0.05,
    )
    assert scores[0, mined[0]].tolist() == pytest.approx(expected)


def test_the_margin_is_measured_from_the_lowest_positive_of_the_query():
    # The positives 0 and 1 of the query score 0.5 and 0.7; 2 scores 0.6, 3 scores 0.9 and 4 scores 0.1.
    contents = (np.array([100, 100]), np.arange(5))
    mined, _ = mine_hard_negatives(
        QUERIES[[0, 0]], AXES, POSITIVES, NO_LABEL, *contents, num_negatives=2, absolute_margin=0.0
    )
    assert mined == [[4], [4]]


@pytest.mark.parametrize(
    "settings", [{"num_negatives": 0}, {"num_negatives": 1, "range_min": -1}, {"num_negatives": 3, "range_max": 2}]
)
def test_ranks_without_room_for_the_negatives_are_refused(settings: dict[str, int]):
    with pytest.raises(ValueError, match="range_max of at least range_min"):
        mine_hard_negatives(QUERIES, AXES, POSITIVES, NO_LABEL, *CONTENTS, **settings)


def test_mined_negatives_are_positives_of_other_rows(tmp_path: Path):
    dataset = openmoji_rows("train", 6, seed=3, negatives=1)
    path = tmp_path / "negatives.jsonl"
    path.write_text("".join(f"{json.dumps(numbers)}\n" for numbers in ([1, 5], [], [0], [], [], [])))
    mined = with_mined_negatives(dataset, path)
    assert mined.with_format(None)["task"][:] == dataset.with_format(None)["task"][:]
    for number, others in ((0, [1, 5]), (1, []), (2, [0])):
        row = dataset[number]
        negatives = row["negatives"] + [dataset[other]["positive"] for other in others]
        assert mined[number] == row | {"negatives": negatives}


def test_mined_negatives_may_be_any_positive_and_have_no_scores(tmp_path: Path):
    texts = [{"text": name} for name in "abcde"]
    lines = [
        {"query": {"text": "x"}, "positives": texts[:2], "negatives": texts[4:], "scores": [1, 0.9, 0.1]},
        {"query": {"text": "y"}, "positive": texts[3]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "negatives.jsonl").write_text("[1]\n[0, [0, 1]]\n")
    first, second = with_mined_negatives(load_rows(tmp_path / "rows.jsonl"), tmp_path / "negatives.jsonl")
    assert (first["negatives"], first["scores"]) == ([texts[4], texts[3]], [1.0, 0.9, 0.1, None])
    assert (second["negatives"], second["scores"]) == (texts[:2], None)


@pytest.mark.parametrize("line", ["[7]", "[[0, -1]]", "[[0, 1, 2]]", "[null]", "3"])
def test_a_malformed_line_is_refused(line: str, tmp_path: Path):
    (tmp_path / "negatives.jsonl").write_text("[]\n" * 5 + line)
    with pytest.raises(ValueError, match="line 6 is not a list of numbers of the 6 rows: mine again"):
        with_mined_negatives(openmoji_rows("train", 6, seed=3), tmp_path / "negatives.jsonl")


def test_a_file_for_another_dataset_is_refused(tmp_path: Path):
    (tmp_path / "negatives.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match="holds negatives for 1 rows, but the dataset has 6"):
        with_mined_negatives(openmoji_rows("train", 6, seed=3), tmp_path / "negatives.jsonl")
