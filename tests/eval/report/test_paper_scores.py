"""Published scores: checks against sums worked out by hand, and the axes that read ours."""

import pytest

from unime.eval.benchmarks import BENCHMARKS
from unime.eval.report.paper_scores import OWN, PUBLISHED, Protocol


TABLE_1, TABLE_2 = "arXiv 2504.17432, table 1", "arXiv 2504.17432, table 2"
V2 = "arXiv 2510.13515"
OF_UNIME = [name for name, published in PUBLISHED.items() if V2 in published.sources]


def mmeb(model, source=TABLE_1):
    return PUBLISHED["mmeb"].sources[source][model]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_row_has_a_score_in_percent_on_every_axis(name):
    published = PUBLISHED[name]
    assert name in BENCHMARKS
    if name in OF_UNIME:
        assert list(published.sources) == [TABLE_1 if name == "mmeb" else TABLE_2, V2]
    for rows in published.sources.values():
        for row in rows.values():
            assert len(row) == len(published.axes)
            assert all(1 < score < 100 for score in row)  # fractions of 1 would be below


@pytest.mark.parametrize("name", PUBLISHED)
def test_charts_show_three_published_rows(name):
    published = PUBLISHED[name]
    assert len(published.shown) == 3
    if name in OF_UNIME:
        assert list(published.shown) == ["CLIP ViT-L", "VLM2Vec (LLaVA-1.6)", "UniME (LLaVA-1.6)"]
    assert all(len(row) == published.drawn for row in published.shown.values())


def test_the_mean_of_36_is_over_subsets_and_not_the_printed_mean_of_meta_tasks():
    assert mmeb("UniME (LLaVA-1.6)")[-1] == 63.6  # (606 + 529 + 814.8 + 340.4) / 36; "Overall" is printed as 66.6
    assert mmeb("UniME (Phi-3.5-V)")[-1] == 61.3  # (548 + 559 + 774 + 327.2) / 36; 64.2
    assert mmeb("UniME (LLaVA-OneVision)")[-1] == 70.7  # (668 + 666 + 847.2 + 363.6) / 36; 70.7
    assert mmeb("CLIP ViT-L")[-1] == 37.8  # (428 + 91 + 636 + 207.2) / 36; 39.2
    assert mmeb("UniME-V2 (LLaVA-OneVision)", V2)[-1] == 71.2  # as printed


@pytest.mark.parametrize("source", PUBLISHED["mmeb"].sources)
def test_the_mean_of_36_agrees_with_the_means_of_20_and_16(source):
    """Agreement up to the rounding of six numbers; a typo would break it."""
    for model, (*_, ind, ood, mean) in PUBLISHED["mmeb"].sources[source].items():
        assert mean == pytest.approx((20 * ind + 16 * ood) / 36, abs=0.2), model


def test_retrieval_adds_up_to_the_papers_ablation():
    """Table 3 of the paper has means of UniME on Phi-3.5-V: short 70.4, long 94.1, compositional 84.8."""

    def scores(*names):
        return [score for name in names for score in PUBLISHED[name].sources[TABLE_2]["UniME (Phi-3.5-V)"]]

    assert sum(scores("flickr30k", "coco")) == pytest.approx(77.0 + 88.2 + 49.8 + 66.8) == pytest.approx(4 * 70.45)
    assert sum(scores("sharegpt4v", "urban1k")) == pytest.approx(376.3)  # 4 x 94.07
    assert sum(scores("sugarcrepe")) == pytest.approx(254.3)  # 3 x 84.77


def test_the_names_of_the_two_clips_are_corrected():
    """SugarCrepe's own scores of replace (object, attribute, relation) for OpenAI's ViT-L-14 and for bigG."""
    rows = PUBLISHED["sugarcrepe"].sources[TABLE_2]
    assert rows["CLIP ViT-L"][0] == pytest.approx((94.07 + 79.19 + 65.15) / 3, abs=0.05)
    assert rows["OpenCLIP ViT-bigG"][0] == pytest.approx((96.67 + 88.07 + 74.75) / 3, abs=0.05)


def test_text_to_image_comes_first_in_published_and_our_scores():
    flickr = PUBLISHED["flickr30k"]
    assert flickr.sources[TABLE_2]["CLIP ViT-L"] == (67.3, 87.2)  # image retrieval, then text retrieval
    results = {"tasks": {"flickr30k_t2i": {"R@1": 0.25}, "flickr30k_i2t": {"R@1": 0.5}}}
    assert [axis.ours(results) for axis in flickr.axes] == [0.25, 0.5]
    assert [axis.title for axis in flickr.axes] == ["Text → image, R@1", "Image → text, R@1"]


def test_axes_of_mmeb_and_sugarcrepe_read_our_scores():
    results = {
        "meta_tasks": {"classification": 0.1, "vqa": 0.2, "retrieval": 0.3, "grounding": 0.4},
        "distributions": {"IND": 0.5, "OOD": 0.6},
        "overall": 0.7,
        "mean_of_meta_tasks": 0.8,
        "compositional_groups": {"swap": 0.1, "add": 0.2, "replace": 0.3},
    }
    assert [axis.ours(results) for axis in PUBLISHED["mmeb"].axes] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert [axis.ours(results) for axis in PUBLISHED["sugarcrepe"].axes] == [0.3, 0.1, 0.2]


def test_rows_of_dci_are_at_the_models_own_size_and_text_to_image_comes_first():
    dci = PUBLISHED["dci"]
    (rows,) = dci.sources.values()
    assert rows["LoTLIP ViT-B/16"] == (62.63, 64.11)
    results = {"tasks": {"dci_t2i": {"R@1": 0.25}, "dci_i2t": {"R@1": 0.5}}}
    assert [axis.ours(results) for axis in dci.axes] == [0.25, 0.5]
    assert {dci.protocol("README of wuw2019/LoTLIP", model) for model in rows} == {Protocol(OWN, OWN)}
