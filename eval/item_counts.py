"""How many items each benchmark has, from published counts, for `unime plan --suite`: no file is at hand yet.

An item is counted once per benchmark, as it is embedded once. Where a source gives no number of distinct items, the
count is a bound and says so.

- `mmeb`: 1,000 queries per subset; candidates from VLM2Vec's tables and from counts of the published files. Subsets
  without such a count have at least the 1,000 candidates of a row.
- `mmeb-v2-video`: queries as in VLM2Vec's score files (see `report/suite_scores.py`), one video per caption, and at
  least two clips per moment. Options of questions are not counted.
- `mmeb-v2-documents`, `m-beir`, `sts`: queries and candidates of mteb 2.26 (`mteb/descriptive_stats`), which has the
  same files; ViDoSeek's pages are not counted.
- Captions and perturbations: the papers, and the README of SugarCrepe and SugarCrepe++.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ItemCounts:
    """The items of a benchmark.

    Args:
        texts (`int`, *optional*, defaults to 0): Items without an image or a video.
        images (`int`, *optional*, defaults to 0): Items with an image, with or without a text.
        videos (`int`, *optional*, defaults to 0): Items with a video, with or without a text.
        bound (`str`, *optional*, defaults to `""`): `"at least"` or `"at most"` if the counts are no exact numbers.
    """

    texts: int = 0
    images: int = 0
    videos: int = 0
    bound: str = ""


# Texts: classes, answers, queries of six of twelve retrieval subsets, captions of two. Images: queries of the other
# subsets; candidates of CIRR, FashionIQ, eight more of the retrieval subsets, and grounding.
_MMEB_CLASSES = 1000 + 24 + 2 + 20 + 397 + 365 + 1000 + 200 + 113 + 211
_MMEB_ANSWERS = 2555 + 894 + 4463 + 1730 + 1601 + 3480 + 736 + 1436 + 6850 + 3343
_MMEB = ItemCounts(
    _MMEB_CLASSES + _MMEB_ANSWERS + 6000 + 2000,
    10_000 + 10_000 + 6000 + 4000 + 2197 + 5992 + 8000 + 4000,
    0,
    "at least",
)
_VIDEO_QUERIES = (1000 + 1000 + 1000 + 1000 + 433) + (4000 + 2700 + 8564 + 500 + 1000) + (1083 + 727)
_VIDEO_CAPTIONS = 1004 + 1000 + 670 + 4478 + 3179
_MMEB_V2_VIDEO = ItemCounts(
    (700 + 51 + 101 + 10) + _VIDEO_CAPTIONS + 1800,
    0,
    _VIDEO_QUERIES + _VIDEO_CAPTIONS + 2 * (1083 + 727 + 1800),
    "at least",
)
# ViDoRe, its second version, VisRAG, and MMLongBench by page and by document.
_DOCUMENT_QUERIES = (500 + 451 + 494 + 280 + 1646 + 5 * 100) + (52 + 640 + 232 + 228)
_DOCUMENT_QUERIES += (816 + 63 + 591 + 556 + 718 + 863) + 2 * (1142 + 838)
_PAGES = (500 + 500 + 500 + 70 + 277 + 1000 + 968 + 977 + 972 + 965) + (1538 + 1016 + 452 + 1538)
_PAGES += (8066 + 500 + 741 + 1284 + 459 + 9593) + 2 * 6492
# Numbers of M-BEIR's tasks whose queries, or whose candidates, are texts; those of the others have images.
M_BEIR_TEXT_QUERIES, M_BEIR_TEXT_CANDIDATES = "012", "136"
# task of M-BEIR -> queries and candidates
_M_BEIR = {
    "visualnews_task0": (19_995, 542_246), "mscoco_task0": (24_809, 5000), "fashion200k_task0": (1719, 201_824),
    "webqa_task1": (2455, 544_457), "edis_task2": (3241, 1_047_067), "webqa_task2": (2511, 403_196),
    "visualnews_task3": (20_000, 537_568), "mscoco_task3": (5000, 24_809), "fashion200k_task3": (4889, 61_707),
    "nights_task4": (2120, 40_038), "oven_task6": (50_004, 676_667), "infoseek_task6": (11_323, 611_651),
    "fashioniq_task7": (6003, 74_381), "cirr_task7": (4170, 21_551), "oven_task8": (14_741, 335_135),
    "infoseek_task8": (17_593, 481_782),
}  # fmt: skip


def _m_beir() -> ItemCounts:
    texts = images = 0
    for name, (queries, candidates) in _M_BEIR.items():
        number = name[-1]
        texts += queries * (number in M_BEIR_TEXT_QUERIES) + candidates * (number in M_BEIR_TEXT_CANDIDATES)
        images += queries * (number not in M_BEIR_TEXT_QUERIES) + candidates * (number not in M_BEIR_TEXT_CANDIDATES)
    return ItemCounts(texts, images, 0, "at most")


ITEM_COUNTS = {
    "mmeb": _MMEB,
    "mmeb-v2-video": _MMEB_V2_VIDEO,
    "mmeb-v2-documents": ItemCounts(_DOCUMENT_QUERIES, _PAGES, 0, "at least"),
    "flickr30k": ItemCounts(5000, 1000),
    "coco": ItemCounts(25_000, 5000),
    "sharegpt4v": ItemCounts(1000, 1000),
    "urban1k": ItemCounts(1000, 1000),
    "docci": ItemCounts(5000, 5000),
    "dci": ItemCounts(7805, 7805),
    "sugarcrepe": ItemCounts(2 * 7511, 5000, 0, "at most"),  # COCO's val2017 has 5,000 images
    "sugarcrepe-pp": ItemCounts(3 * 4757, 4757, 0, "at most"),
    "circo": ItemCounts(0, 220 + 123_403),
    "m-beir": _m_beir(),
    "sts": ItemCounts(2 * (3108 + 1500 + 3750 + 3000 + 1186 + 1379 + 9927), 0, 0, "at most"),
}


def item_counts(benchmark: str) -> ItemCounts:
    """Return the items of a benchmark.

    Raises:
        ValueError: Its number of items is not recorded.
    """
    if benchmark not in ITEM_COUNTS:
        raise ValueError(
            f"the number of items of '{benchmark}' is not recorded, so it has no plan: choose from "
            f"{', '.join(ITEM_COUNTS)}"
        )
    return ITEM_COUNTS[benchmark]
