"""MRMR (Zhang et al., arXiv 2510.09510): expert questions whose texts and images are interleaved, as in the documents.

Five datasets: knowledge and theorem questions retrieve documents that help to answer them (reported for four
disciplines each), a vehicle design and a traffic case retrieve the rules that they violate, and an image retrieves the
one of its own four captions that contradicts it. The score is ndcg@10, and hit@1 for the contradicting captions
(negation). `distributions` has the means of the groups Knowledge, Theorem and Contradiction.

A mark such as `<image 2>` in a text stands for the column of that name, and the image is read in its place. Images
that no mark names come first. MRMR's own evaluation gives a model the column `image` and the text with its marks.
Queries without judgments are left out, as by the published evaluation.

Layout: READMEs of MRMRbenchmark/theorem and MRMRbenchmark/traffic on the Hub. Instructions, disciplines and metrics:
`mteb/tasks/Image/Any2AnyRetrieval/eng/*.py` of rebeccaz4/MRMR on GitHub; the four captions of a query: the ids in its
`results/negation_original`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from ...data.hub_tables import check_text_columns, open_hub_table, select_subsets
from ...data.image_files import default_image_root, read_image
from ..lazy_items import LazyItems
from ..tasks import RetrievalTask


# dataset -> (group, instruction of the queries)
SETS = {
    "knowledge": ("Knowledge", "Retrieve relevant documents that help answer the question."),
    "theorem": ("Theorem", "Retrieve relevant theorems that are involved in solving the problem."),
    "design": ("Contradiction", "Given a vehicle design, retrieve the design requirements that it violates."),
    "traffic": ("Contradiction", "Given a traffic case, retrieve the driving rule documents that it violates."),
    "negation": (
        "Contradiction",
        "Given an image caption, retrieve descriptions that have contradictory information with the image.",
    ),
}
# dataset -> discipline -> values of the column `category`
_DISCIPLINES: dict[str, dict[str, tuple[str, ...]]] = {
    "knowledge": {
        "Art": ("Art", "Art_Theory", "Design", "Music"),
        "Humanities": ("Sociology", "Literature", "History", "Psychology"),
        "Medicine": ("Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Basic_Medical_Science", "Pharmacy"),
        "Science": ("Biology", "Chemistry", "Geography", "Agriculture"),
    },
    "theorem": {
        "Math": ("Math",),
        "Physics": ("Physics", "Energy_and_Power"),
        "Engineering": (
            "Electronics",
            "Computer_Science",
            "Mechanical_Engineering",
            "Materials",
            "Architecture_and_Engineering",
        ),
        "Business": ("Accounting", "Finance", "Manage", "Marketing", "Economics"),
    },
}
_MARK = re.compile(r"<(image(?: \d+)?)>")


def tasks(source: str | Path | None = None, subsets: Sequence[str] | None = None) -> list[RetrievalTask]:
    """Open the datasets; images are read when they are embedded.

    Args:
        source (`str` or `Path`, *optional*, defaults to the Hub): Folder with copies of the datasets, each under its
            Hub id: `source/MRMRbenchmark/theorem`.
        subsets (`Sequence[str]`, *optional*, defaults to all): Keys of `SETS`.

    Raises:
        ValueError: A subset is unknown or lacks a column, an item is empty, or no query has a judgment.
    """
    return [task for name in select_subsets(subsets, SETS, "MRMR") for task in _tasks(name, source)]


def _tasks(name: str, source: str | Path | None) -> list[RetrievalTask]:
    repository = f"MRMRbenchmark/{name}"
    path = repository if source is None else Path(source) / repository
    if source is not None and not Path(path).is_dir():
        raise ValueError(
            f"MRMR {name}: the folder {path} does not exist; copy the dataset there, as with "
            f"`hf download {repository} --repo-type dataset --local-dir {path}`"
        )
    group, instruction = SETS[name]
    corpus = open_hub_table(f"MRMR {name}, corpus", str(path), ("id", "text"), "corpus")
    queries = open_hub_table(f"MRMR {name}, query", str(path), ("id", "text"), "query")
    qrels = open_hub_table(f"MRMR {name}, qrels", str(path), ("score",), "qrels")
    index_of_id = {str(page): index for index, page in enumerate(corpus["id"])}
    positives = _positives(name, qrels, index_of_id)
    rows = [row for row, query in enumerate(queries["id"]) if str(query) in positives]
    if not rows:
        raise ValueError(f"MRMR {name}: no query has a judgment; use query and qrels of the same copy of {repository}")
    query_items = _items(f"MRMR {name}, query", queries, path, instruction)
    candidates = _items(f"MRMR {name}, corpus", corpus, path, None)

    def task(title: str, rows: Sequence[int]) -> RetrievalTask:
        ids = [str(query) for query in queries.select_columns(["id"])[list(rows)]["id"]]
        is_negation = name == "negation"
        return RetrievalTask(
            title,
            "retrieval",
            LazyItems([query_items.stored[row] for row in rows], query_items.read, query_items.identity),
            candidates,
            [positives[query] for query in ids],
            pools=[_own_captions(name, query, index_of_id) for query in ids] if is_negation else None,
            distribution=group,
            metric="hit@1" if is_negation else "ndcg@10",
        )

    if name not in _DISCIPLINES:
        return [task(f"mrmr_{name}", rows)]
    check_text_columns(f"MRMR {name}, query", queries, ("category",))
    rows_of_discipline = _rows_of_disciplines(name, queries["category"], rows)
    return [task(f"mrmr_{name}_{discipline}", part) for discipline, part in rows_of_discipline.items()]


def _rows_of_disciplines(name: str, categories: Sequence[str], rows: Sequence[int]) -> dict[str, list[int]]:
    """Return the rows of each discipline that has any; categories that MRMR's code does not list are Other."""
    discipline_of = {category: discipline for discipline, names in _DISCIPLINES[name].items() for category in names}
    parts: dict[str, list[int]] = {discipline: [] for discipline in (*_DISCIPLINES[name], "Other")}
    for row in rows:
        parts[discipline_of.get(categories[row], "Other")].append(row)
    return {discipline: part for discipline, part in parts.items() if part}


def _positives(name: str, qrels: datasets.Dataset, index_of_id: dict[str, int]) -> dict[str, list[int]]:
    """Return the relevant documents of each query; the columns of ids have a hyphen or an underscore."""
    names = {column.replace("_", "-"): column for column in qrels.column_names}
    missing = [column for column in ("query-id", "corpus-id") if column not in names]
    if missing:
        raise ValueError(f"MRMR {name}, qrels: lacks the column(s) {', '.join(missing)}; use the dataset as published")
    positives: dict[str, dict[int, None]] = {}
    for row, judgment in enumerate(qrels):
        if judgment["score"] <= 0:
            continue
        page = str(judgment[names["corpus-id"]])
        if page not in index_of_id:
            raise ValueError(
                f"MRMR {name}, qrels row {row}: the corpus has no document {page!r}; use corpus and qrels of the same "
                "copy"
            )
        positives.setdefault(str(judgment[names["query-id"]]), {})[index_of_id[page]] = None
    return {query: list(pages) for query, pages in positives.items()}


def _own_captions(name: str, query: str, index_of_id: dict[str, int]) -> list[int]:
    return [index for page, index in index_of_id.items() if page.rpartition("_")[0] == query]


def _items(where: str, table: datasets.Dataset, source: str | Path, instruction: str | None) -> LazyItems:
    columns = [column for column in table.column_names if re.fullmatch(r"image(?: \d+)?", column)]
    # One table per column, so that reading an image reads no other; `read_image` decodes, to name the row in errors.
    tables = {
        column: table.select_columns([column]).cast_column(column, datasets.Image(decode=False)) for column in columns
    }
    has_image = {
        column: [not null for null in images.data.column(column).is_null().to_pylist()]
        for column, images in tables.items()
    }
    items: list[dict[str, Any]] = []
    for row, text in enumerate(table["text"]):
        content = _content(row, text or "", [column for column in columns if has_image[column][row]])
        if not content:
            raise ValueError(f"{where} row {row}: there is neither text nor image; use the dataset as published")
        items.append({"content": content, "instruction": instruction})
    root = default_image_root(source)
    return LazyItems(
        items,
        lambda place: read_image(tables[place[1]][place[0]][place[1]], f"{where} row {place[0]}, {place[1]}", root),
        lambda place: f"{table._fingerprint}/{place[0]}/{place[1]}",
    )


def _content(row: int, text: str, columns: Sequence[str]) -> list[Any]:
    """Return the parts of an item: texts, and images as (row, column)."""
    marked = {mark for mark in _MARK.findall(text) if mark in columns}
    # `image` repeats the numbered images for models that take one.
    numbered = [column for column in columns if column != "image"] or columns
    parts: list[tuple[str, str | None]] = [
        ("", column) for column in numbered if column not in marked and "image" not in marked
    ]
    for index, piece in enumerate(_MARK.split(text)):  # text, mark, text, mark, ..., text
        is_mark = index % 2 == 1
        parts.append((f"<{piece}>" if is_mark else piece.strip(), piece if is_mark and piece in marked else None))
    return [
        piece if column is None else {"type": "image", "image": (row, column)}
        for piece, column in parts
        if piece or column is not None
    ]
