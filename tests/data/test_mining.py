import json
from pathlib import Path

import numpy as np
import pytest

from unime.data.mining import mine_hard_negatives, with_mined_negatives
from unime.openmoji.dataset import openmoji_rows


# The candidates are the axes, so a query's coordinates are its scores. The ranking for query 0 is 3, 1, 2, 0 (its
# positive), 4.
QUERIES = np.array([[0.5, 0.7, 0.6, 0.9, 0.1], [0.1, 0.8, 0.3, 0.2, 0.4]], dtype=np.float32)
AXES = np.eye(5, dtype=np.float32)
POSITIVES = np.array([0, 1])
NO_LABEL = np.array([-1, -1])


def test_the_hardest_negatives_come_first_and_the_positive_is_excluded():
    mined, report = mine_hard_negatives(QUERIES, AXES, POSITIVES, NO_LABEL, num_negatives=3)
    assert mined == [[3, 1, 2], [4, 2, 3]]
    assert report == {"looked at": 6, "taken": 6, "queries with fewer than num_negatives": 0}


def test_ranks_exclude_the_positive():
    assert mine_hard_negatives(QUERIES, AXES, POSITIVES, NO_LABEL, num_negatives=2, range_min=1)[0] == [[1, 2], [2, 3]]
    mined, report = mine_hard_negatives(QUERIES, AXES, POSITIVES, NO_LABEL, num_negatives=3, range_min=1, range_max=3)
    assert mined == [[1, 2], [2, 3]] and report["queries with fewer than num_negatives"] == 2


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
        QUERIES[:1], AXES, POSITIVES[:1], NO_LABEL[:1], num_negatives=4, **settings
    )
    assert negatives == [mined]
    assert (
        report[reason] == 4 - len(mined)
        and report["looked at"] == 4
        and report["queries with fewer than num_negatives"] == 1
    )


def test_a_positive_with_the_same_label_is_not_a_negative():
    mined, report = mine_hard_negatives(QUERIES, AXES, np.array([0, 3]), np.array([7, 7]), num_negatives=2)
    assert mined[0] == [1, 2] and report["dropped: same label"] == 1  # 3, the hardest, has label 7 too


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


def test_a_file_for_another_dataset_is_refused(tmp_path: Path):
    (tmp_path / "negatives.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match="holds negatives for 1 rows, but the dataset has 6"):
        with_mined_negatives(openmoji_rows("train", 6, seed=3), tmp_path / "negatives.jsonl")
