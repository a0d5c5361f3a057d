"""The 24 visual document subsets of MMEB-V2, in which a question retrieves the pages that answer it.

Files: one Hub dataset per subset with three configurations: `queries` (`query-id`, `query`), `corpus` (`corpus-id`,
`image`) and `qrels` (`query-id`, `corpus-id`, `score`). Every query is compared with the whole corpus. Metric: ndcg@5
with linear gains; judgments of 0 or less are ignored. A pair that is judged twice keeps the higher score, and an id
that occurs twice in the corpus is one candidate. Means are also reported per group: ViDoRe (arXiv 2407.01449), its
second version (2505.17166) in all its languages, VisRAG (2410.10594), and VisDoc-OOD: ViDoSeek (2502.18017) and
MMLongBench (2407.01523), by page (the corrected release of November 2025) and by document. Repositories, columns and
protocol follow VLM2Vec's evaluation code; they have not been checked against the datasets themselves.

One difference is meant. Where pages of a query differ in relevance, VLM2Vec's `RankingMetrics.evaluate` makes a set of
the pages before it pairs them with their relevances, so that relevances change places, differently in each process.
Here each page keeps its own. Scores are equal where all relevances of a query are.
"""

from collections.abc import Sequence
from pathlib import Path

import datasets

from ...data.hub_tables import check_text_columns, select_subsets
from ..image_folder import table_images
from ..lazy_items import LazyItems
from ..tasks import RetrievalTask
from .mmeb_v2 import open_subset, subset_source


QUERY_INSTRUCTION = "Find a document image that matches the given query:"
CANDIDATE_INSTRUCTION = "Understand the content of the provided document image."

# group -> subset -> repository on the Hub
_GROUPS = {
    "ViDoRe-V1": {
        "ViDoRe_arxivqa": "vidore/arxivqa_test_subsampled_beir",
        "ViDoRe_docvqa": "vidore/docvqa_test_subsampled_beir",
        "ViDoRe_infovqa": "vidore/infovqa_test_subsampled_beir",
        "ViDoRe_tabfquad": "vidore/tabfquad_test_subsampled_beir",
        "ViDoRe_tatdqa": "vidore/tatdqa_test_beir",
        "ViDoRe_shiftproject": "vidore/shiftproject_test_beir",
        **{
            f"ViDoRe_syntheticDocQA_{field}": f"vidore/syntheticDocQA_{field}_test_beir"
            for field in ("artificial_intelligence", "energy", "government_reports", "healthcare_industry")
        },
    },
    "ViDoRe-V2": {
        "ViDoRe_esg_reports_human_labeled_v2": "vidore/esg_reports_human_labeled_v2",
        "ViDoRe_biomedical_lectures_v2_multilingual": "vidore/biomedical_lectures_v2",
        "ViDoRe_economics_reports_v2_multilingual": "vidore/economics_reports_v2",
        "ViDoRe_esg_reports_v2_multilingual": "vidore/esg_reports_v2",
    },
    "VisRAG": {
        f"VisRAG_{name}": f"openbmb/VisRAG-Ret-Test-{name}"
        for name in ("ArxivQA", "ChartQA", "MP-DocVQA", "SlideVQA", "InfoVQA", "PlotQA")
    },
    "VisDoc-OOD": {
        "ViDoSeek-page": "VLM2Vec/ViDoSeek-page-fixed",
        "ViDoSeek-doc": "VLM2Vec/ViDoSeek",
        "MMLongBench-page": "VLM2Vec/MMLongBench-page-fixed",
        "MMLongBench-doc": "VLM2Vec/MMLongBench-doc",
    },
}
# subset -> (group, repository, split)
SETS = {
    name: (group, repository, "train" if group == "VisRAG" else "test")
    for group, sets in _GROUPS.items()
    for name, repository in sets.items()
}


def tasks(source: str | Path | None = None, subsets: Sequence[str] | None = None) -> list[RetrievalTask]:
    """Open the subsets; pages are read when they are embedded.

    Args:
        source (`str` or `Path`, *optional*, defaults to the Hub): Folder with copies of the datasets, each under its
            Hub id: `source/vidore/tatdqa_test_beir`. In a clone of `TIGER-Lab/MMEB-V2` with `visdoc-tasks.data.tar.gz`
            unpacked they are found in `visdoc-tasks/data`, except for the two corrected page subsets: copy those.
        subsets (`Sequence[str]`, *optional*, defaults to all): Keys of `SETS`.

    Raises:
        ValueError: A subset is unknown or lacks a column, a page has no image, or a query has no relevant page in the
            corpus.
    """
    return [_task(name, source) for name in select_subsets(subsets, SETS, "MMEB-V2's visual documents")]


def _task(name: str, source: str | Path | None) -> RetrievalTask:
    group, repository, split = SETS[name]

    def table(config: str, *columns: str) -> datasets.Dataset:
        return open_subset(f"{name}, {config}", repository, columns, config, split, source)

    queries, corpus = table("queries", "query-id", "query"), table("corpus", "corpus-id", "image")
    qrels = table("qrels", "query-id", "corpus-id", "score")
    check_text_columns(f"MMEB-V2 {name}, queries", queries, ("query",))

    row_of_page: dict[str | int, int] = {}  # page id -> its first row in the corpus
    for row, page in enumerate(corpus["corpus-id"]):
        row_of_page.setdefault(page, row)
    candidates = {page: index for index, page in enumerate(row_of_page)}
    relevance = _relevance(name, repository, qrels, candidates)
    for row, query in enumerate(queries["query-id"]):
        if query not in relevance:
            raise ValueError(
                f"MMEB-V2 {name}, queries row {row}: qrels have no relevant page for the query {query!r}; "
                f"use queries and qrels of the same copy of {repository}"
            )
    judgments = [relevance[query] for query in queries["query-id"]]
    pages = table_images(
        corpus,
        lambda row: f"MMEB-V2 {name}, corpus row {row}",
        subset_source(name, repository, source),
        list(row_of_page.values()),
        CANDIDATE_INSTRUCTION,
    )
    return RetrievalTask(
        name,
        "documents",
        LazyItems([{"text": text, "instruction": QUERY_INSTRUCTION} for text in queries["query"]], pages.read),
        pages,
        [list(scores) for scores in judgments],
        distribution=group,
        relevance=[list(scores.values()) for scores in judgments],
    )


def _relevance(
    name: str, repository: str, qrels: datasets.Dataset, candidates: dict[str | int, int]
) -> dict[str | int, dict[int, float]]:
    """Return query id -> candidate index -> relevance, for relevances above 0."""
    relevance: dict[str | int, dict[int, float]] = {}
    for row, judgment in enumerate(qrels):
        score, page = judgment["score"], judgment["corpus-id"]
        if not isinstance(score, int | float):
            raise ValueError(f"MMEB-V2 {name}, qrels row {row}: expected a number as score, got {score!r}")
        if score <= 0:
            continue
        if page not in candidates:
            raise ValueError(
                f"MMEB-V2 {name}, qrels row {row}: the corpus has no page {page!r}; "
                f"use corpus and qrels of the same copy of {repository}"
            )
        scores = relevance.setdefault(judgment["query-id"], {})
        scores[candidates[page]] = max(scores.get(candidates[page], 0.0), float(score))
    return relevance
