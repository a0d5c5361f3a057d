"""Published means of suites, in percent; none of them was measured with this package.

- MMEB-V2: Table 2 of Qwen3-VL-Embedding's report (8 January 2026), whose authors evaluated the models again on the
  corrected page subsets of ViDoSeek and MMLongBench, IFM-TTE excepted.
- The paper's: means of UniME's tables 1 and 2 and of UniME-V2's, from `paper_scores.PUBLISHED`.

Numbers of queries of MMEB-V2 are those of VLM2Vec's score files (`experiments/public/all_scores`): MomentSeeker has
1,800 in v2.0.0 (`MomentSeeker_1k8` in v2.1) and 1,602 in v2.1.
"""

from collections.abc import Mapping

import numpy as np

from ..benchmarks.mmeb import SETS
from .paper_scores import PUBLISHED, UNIME, UNIME_V2, Axis, Percents, Published


QWEN3_VL_EMBEDDING = "report of Qwen3-VL-Embedding, table 2"


def _score(key: str, title: str | None = None) -> Axis:
    return Axis(title or key, lambda results: results["scores"][key])


# Image: classification, questions, retrieval, grounding, all; video: classification, questions, retrieval, moments,
# all; visual documents: ViDoRe, ViDoRe-V2, VisRAG, out of domain, all; all 78.
_MMEB_V2_AXES = (
    *(
        _score(f"Image: {key}", f"I-{title}")
        for key, title in (("classification", "CLS"), ("vqa", "QA"), ("retrieval", "RET"), ("grounding", "GD"))
    ),
    _score("Image"),
    *(
        _score(f"Video: {key}", f"V-{title}")
        for key, title in (("classification", "CLS"), ("vqa", "QA"), ("retrieval", "RET"), ("moments", "MRET"))
    ),
    _score("Video"),
    *(
        _score(f"VisDoc: {key}", title)
        for key, title in (("ViDoRe-V1", "VDRv1"), ("ViDoRe-V2", "VDRv2"), ("VisRAG", "VR"), ("VisDoc-OOD", "OOD"))
    ),
    _score("VisDoc"),
    _score("All"),
)
_MMEB_V2 = {
    "VLM2Vec (Qwen2-VL-2B)": (
        58.7, 49.3, 65.0, 72.9, 59.7, 33.4, 30.5, 20.6, 30.7, 28.6, 49.8, 13.5, 51.8, 48.2, 44.0, 47.7),
    "VLM2Vec (Qwen2-VL-7B)": (
        62.7, 56.9, 69.4, 82.2, 65.5, 39.1, 30.0, 29.0, 38.9, 33.7, 56.9, 9.4, 59.1, 54.0, 49.1, 53.1),
    "VLM2Vec-V2 (Qwen2-VL-2B)": (
        62.9, 56.3, 69.5, 77.3, 64.9, 39.3, 34.3, 28.8, 36.8, 34.6, 75.5, 44.9, 79.4, 62.2, 69.2, 59.2),
    "GME 2B": (54.4, 29.9, 66.9, 55.5, 51.9, 34.9, 42.0, 25.6, 31.1, 33.6, 86.1, 54.0, 82.5, 67.5, 76.8, 55.3),
    "GME 7B": (57.7, 34.7, 71.2, 59.3, 56.0, 37.4, 50.4, 28.4, 37.0, 38.4, 89.4, 55.6, 85.0, 68.3, 79.3, 59.1),
    "Ops-MM-embedding-v1 2B": (
        68.1, 65.1, 69.2, 80.9, 69.0, 53.6, 55.6, 41.8, 33.7, 47.6, 76.4, 53.2, 77.6, 64.2, 70.8, 64.6),
    "Ops-MM-embedding-v1 7B": (
        69.7, 69.6, 73.1, 87.2, 72.7, 59.7, 62.2, 45.7, 43.2, 53.8, 80.1, 59.6, 79.3, 67.8, 74.4, 68.9),
    "RzenEmbed 2B": (68.5, 66.3, 74.5, 90.3, 72.3, 50.4, 49.7, 46.6, 38.9, 47.3, 87.1, 55.1, 87.2, 43.4, 74.5, 67.2),
    "RzenEmbed 7B": (70.6, 71.7, 78.5, 92.1, 75.9, 58.8, 63.5, 51.0, 45.5, 55.7, 89.7, 60.7, 88.7, 69.9, 81.3, 72.9),
    "IFM-TTE 7B": (76.7, 78.5, 74.6, 89.3, 77.9, 60.5, 67.9, 51.7, 54.9, 59.2, 85.2, 71.5, 92.7, 53.3, 79.5, 74.1),
    "Seed1.6-embedding 0615": (
        76.1, 74.0, 77.9, 91.3, 77.8, 55.0, 60.8, 51.3, 53.5, 55.3, 85.3, 56.6, 84.7, 68.6, 77.7, 72.6),
    "Seed1.6-embedding 1215": (
        75.0, 74.9, 79.3, 89.0, 78.0, 85.2, 66.7, 59.1, 54.8, 67.7, 90.0, 60.3, 90.0, 70.7, 82.2, 76.9),
    "Qwen3-VL-Embedding 2B": (
        70.3, 74.3, 74.8, 88.5, 75.0, 71.9, 64.9, 53.9, 53.3, 61.9, 84.4, 65.3, 86.4, 69.4, 79.2, 73.2),
    "Qwen3-VL-Embedding 8B": (
        74.2, 81.1, 80.2, 92.3, 80.1, 78.4, 71.0, 58.7, 56.1, 67.1, 87.2, 69.9, 88.7, 73.3, 82.4, 77.8),
}  # fmt: skip
_MMEB_V2_QUERIES = dict.fromkeys(SETS, 1000) | {
    "K700": 1000, "SmthSmthV2": 1000, "HMDB51": 1000, "UCF101": 1000, "Breakfast": 433, "MVBench": 4000,
    "Video-MME": 2700, "NExTQA": 8564, "EgoSchema": 500, "ActivityNetQA": 1000, "DiDeMo": 1004, "MSR-VTT": 1000,
    "MSVD": 670, "VATEX": 4478, "YouCook2": 3179, "QVHighlight": 1083, "Charades-STA": 727, "MomentSeeker": 1800,
    "ViDoRe_arxivqa": 500, "ViDoRe_docvqa": 451, "ViDoRe_infovqa": 494, "ViDoRe_tabfquad": 280,
    "ViDoRe_tatdqa": 1646, "ViDoRe_shiftproject": 100, "ViDoRe_syntheticDocQA_artificial_intelligence": 100,
    "ViDoRe_syntheticDocQA_energy": 100, "ViDoRe_syntheticDocQA_government_reports": 100,
    "ViDoRe_syntheticDocQA_healthcare_industry": 100, "ViDoRe_esg_reports_human_labeled_v2": 52,
    "ViDoRe_biomedical_lectures_v2_multilingual": 640, "ViDoRe_economics_reports_v2_multilingual": 232,
    "ViDoRe_esg_reports_v2_multilingual": 228, "VisRAG_ArxivQA": 816, "VisRAG_ChartQA": 63, "VisRAG_MP-DocVQA": 591,
    "VisRAG_SlideVQA": 556, "VisRAG_InfoVQA": 718, "VisRAG_PlotQA": 863, "ViDoSeek-page": 1142, "ViDoSeek-doc": 1142,
    "MMLongBench-page": 838, "MMLongBench-doc": 838,
}  # fmt: skip
_PAPER_PARTS = {"MMEB": ("mmeb",), "Short captions": ("flickr30k", "coco"), "Long captions": ("sharegpt4v", "urban1k"),
                "Compositional": ("sugarcrepe",)}  # fmt: skip


def _paper_rows(source: int) -> Mapping[str, Percents]:
    """Return MMEB's mean of 36 and the means of the columns of the retrieval table, of the first or second source."""
    tables = {
        name: list(published.sources.values())[source]
        for name, published in PUBLISHED.items()
        if UNIME_V2 in published.sources
    }
    mmeb, crepe = tables["mmeb"], tables["sugarcrepe"]
    return {
        model: (
            mmeb[model][-1],
            *(
                round(float(np.mean([score for name in names for score in tables[name][model]])), 1)
                for names in list(_PAPER_PARTS.values())[1:]
            ),
        )
        for model in mmeb
        if model in crepe
    }


PUBLISHED_SUITES = {
    "mmeb-v2": Published(
        _MMEB_V2_AXES,
        0,
        {QWEN3_VL_EMBEDDING: _MMEB_V2},
        {name: (queries,) for name, queries in _MMEB_V2_QUERIES.items()},
        "I: image, V: video; CLS: classification, QA: questions, RET: retrieval, GD: grounding, MRET: moments; VDR: "
        "ViDoRe, VR: VisRAG. VLM2Vec-V2's own paper prints 58.0 (65.4 for VisDoc), before the page subsets of "
        "ViDoSeek and MMLongBench were corrected. Videos: VLM2Vec's code gives the frames to Qwen2-VL as one video, "
        "which merges two frames into one, as `--videos auto` does; `--videos frames` reads them as separate images.",
        other_sizes={"MomentSeeker": (1602,)},
    ),
    "paper": Published(
        tuple(map(_score, _PAPER_PARTS)),
        0,
        {f"{UNIME}, means of tables 1 and 2": _paper_rows(0), UNIME_V2: _paper_rows(1)},
        {
            task: size
            for names in _PAPER_PARTS.values()
            for name in names
            for task, size in PUBLISHED[name].sizes.items()
        },
        "MMEB is the mean of 36, computed from the published meta-tasks up to 0.1. " + PUBLISHED["sugarcrepe"].note,
    ),
}
