"""The numbers of items agree with the sizes of published scores, and unknown ones are refused."""

import pytest

from unime.eval.benchmarks import subset_names
from unime.eval.benchmarks.m_beir import MODALITIES, SETS
from unime.eval.item_counts import (
    _DOCUMENT_QUERIES,
    _M_BEIR,
    _VIDEO_CAPTIONS,
    _VIDEO_QUERIES,
    M_BEIR_TEXT_CANDIDATES,
    M_BEIR_TEXT_QUERIES,
    item_counts,
)
from unime.eval.report.paper_scores import PUBLISHED
from unime.eval.report.suite_scores import PUBLISHED_SUITES
from unime.eval.suites import SUITES


@pytest.mark.parametrize("name", ["flickr30k", "coco", "sharegpt4v", "urban1k", "dci"])
def test_captions_and_images_are_those_of_published_scores(name: str):
    assert PUBLISHED[name].sizes[f"{name}_t2i"] == (item_counts(name).texts, item_counts(name).images)


def test_queries_of_mmeb_v2_are_those_of_the_score_files():
    sizes = PUBLISHED_SUITES["mmeb-v2"].sizes
    documents = sum(sizes[name][0] for name in subset_names("mmeb-v2-documents") or ())
    videos = sum(sizes[name][0] for name in subset_names("mmeb-v2-video") or ())
    assert documents == _DOCUMENT_QUERIES == item_counts("mmeb-v2-documents").texts
    assert videos == _VIDEO_QUERIES + _VIDEO_CAPTIONS + 1800  # MomentSeeker's are texts, some with an image or a video
    assert item_counts("mmeb").texts + item_counts("mmeb").images > sum(
        sizes[name][0] for name in subset_names("mmeb")
    )


def test_rows_of_sugarcrepe_and_tasks_of_m_beir_are_complete():
    assert item_counts("sugarcrepe").texts == 2 * sum(rows for (rows,) in PUBLISHED["sugarcrepe"].sizes.values())
    assert set(_M_BEIR) == set(SETS)
    for task, (query, candidate) in MODALITIES.items():
        assert (task[-1] in M_BEIR_TEXT_QUERIES, task[-1] in M_BEIR_TEXT_CANDIDATES) == (
            query == "text",
            candidate == "text",
        )
    counts = item_counts("m-beir")
    queries, candidates = map(sum, zip(*_M_BEIR.values(), strict=True))
    assert counts.texts + counts.images == queries + candidates
    assert (round(queries, -4), round(candidates, -5)) == (190_000, 5_600_000)  # the paper's 190K and 5.6M


def test_every_suite_has_counts_or_says_that_it_has_none():
    unknown = {name for suite in SUITES.values() for name in suite.benchmarks if name in ("mrmr", "nli")}
    for name in unknown:
        with pytest.raises(ValueError, match=f"^the number of items of '{name}' is not recorded, so it has no plan:"):
            item_counts(name)
    for suite in ("paper", "mmeb", "mmeb-v2", "retrieval", "compositional", "m-beir"):
        assert all(item_counts(name).texts + item_counts(name).images for name in SUITES[suite].benchmarks)
