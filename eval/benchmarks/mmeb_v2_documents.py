"""MMEB-V2's visual documents: 24 sets in which a question looks for the pages that answer it.

Files: per set a dataset on the Hub with three configurations: `queries` (`query-id`, `query`), `corpus` (`corpus-id`,
`image`) and `qrels` (`query-id`, `corpus-id`, `score`). Every query is compared with the whole corpus. The score is
ndcg@5 with linear gains of the judgements above 0. A pair that is judged twice counts with its higher judgement, an id
that the corpus has twice is one candidate. Groups, whose means are reported too: ViDoRe (arXiv 2407.01449), its second
version (2505.17166) in all its languages, VisRAG (2410.10594), and VisDoc-OOD: ViDoSeek (2502.18017) and MMLongBench
(2407.01523), by page (the corrected release of November 2025) and by document. Repositories, columns and protocol are
what VLM2Vec's evaluation reads; the datasets themselves could not be opened when this was written.
"""

from collections.abc import Sequence
from pathlib import Path

import datasets

from ...data.hub_tables import check_text_columns, select_subsets
from ...data.image_files import default_image_root, read_image
from ..lazy_items import LazyItems
from ..tasks import RetrievalTask
from .mmeb_v2 import open_set


QUERY = "Find a document image that matches the given query:"
CANDIDATE = "Understand the content of the provided document image."

# group -> set -> repository on the Hub
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
# set -> (group, repository, split)
SETS = {
    name: (group, repository, "train" if group == "VisRAG" else "test")
    for group, sets in _GROUPS.items()
    for name, repository in sets.items()
}


def tasks(source: str | Path | None = None, subsets: Sequence[str] | None = None) -> list[RetrievalTask]:
    """Open the sets; pages are read when they are embedded.

    Args:
        source (`str` or `Path`, *optional*, defaults to the Hub):
            Folder with copies of the datasets, each under its Hub id: `source/vidore/tatdqa_test_beir`.
        subsets (`Sequence[str]`, *optional*, defaults to all of `SETS`): The sets.

    Raises:
        ValueError: There is no such set, it lacks a column, a page has no image, a query has no relevant page, or
            one that the corpus does not hold.
    """
    return [_task(name, source) for name in select_subsets(subsets, SETS, "MMEB-V2's visual documents")]


def _task(name: str, source: str | Path | None) -> RetrievalTask:
    group, repository, split = SETS[name]

    def table(config: str, *columns: str) -> datasets.Dataset:
        return open_set(f"{name}, {config}", repository, columns, config, split, source)

    queries, corpus = table("queries", "query-id", "query"), table("corpus", "corpus-id", "image")
    qrels = table("qrels", "query-id", "corpus-id", "score")
    check_text_columns(f"MMEB-V2 {name}, queries", queries, ("query",))

    rows: dict[str | int, int] = {}  # id of a page -> the row of the corpus that it stands in
    for row, page in enumerate(corpus["corpus-id"]):
        rows.setdefault(page, row)
    numbers = {page: number for number, page in enumerate(rows)}
    relevance: dict[str | int, dict[int, float]] = {}  # id of a query -> number of a candidate -> how relevant it is
    for row, judged in enumerate(qrels):
        if not isinstance(judged["score"], int | float):
            raise ValueError(f"MMEB-V2 {name}, qrels row {row}: its score is {judged['score']!r}, not a number")
        if judged["score"] <= 0:
            continue
        if judged["corpus-id"] not in numbers:
            raise ValueError(
                f"MMEB-V2 {name}, qrels row {row}: the corpus holds no {judged['corpus-id']!r}: "
                f"give corpus and qrels of one copy of {repository}"
            )
        of_query, number = relevance.setdefault(judged["query-id"], {}), numbers[judged["corpus-id"]]
        of_query[number] = max(of_query.get(number, 0.0), float(judged["score"]))
    for row, query in enumerate(queries["query-id"]):
        if query not in relevance:
            raise ValueError(
                f"MMEB-V2 {name}, queries row {row}: qrels hold nothing relevant for the query {query!r}: "
                f"give queries and qrels of one copy of {repository}"
            )
    right = [relevance[query] for query in queries["query-id"]]
    pages = _pages(name, corpus, list(rows.values()), default_image_root(source or repository))
    return RetrievalTask(
        name,
        "documents",
        LazyItems([{"text": text, "instruction": QUERY} for text in queries["query"]], pages.read),
        pages,
        [list(of_query) for of_query in right],
        distribution=group,
        relevance=[list(of_query.values()) for of_query in right],
    )


def _pages(name: str, corpus: datasets.Dataset, rows: list[int], root: Path) -> LazyItems:
    corpus = corpus.cast_column("image", datasets.Image(decode=False))  # decoded here, so that a bad one is named
    empty = corpus.data.column("image").is_null().to_pylist()
    if any(empty):
        raise ValueError(f"MMEB-V2 {name}, corpus row {empty.index(True)} has no image: copy the dataset again")
    return LazyItems(
        [{"image": row, "instruction": CANDIDATE} for row in rows],
        lambda row: read_image(corpus[row]["image"], f"MMEB-V2 {name}, corpus row {row}", root),
        lambda row: f"{corpus._fingerprint}/{row}",
    )
