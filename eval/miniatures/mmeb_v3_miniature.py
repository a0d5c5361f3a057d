"""Miniature text and tool tasks of MMEB-V3: 88 sets of two queries."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..benchmarks.mmeb_v3 import TEXT_SETS, TOOL_SETS, text_files, tool_files


DOCUMENTS = 6


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as Parquet or JSON Lines, by the suffix of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list([dict(row) for row in rows]).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_text_set(folder: Path, name: str) -> None:
    """Write a text set whose first query has documents 1 and 2, of higher and lower relevance, and its second 4."""
    collection = name.partition("/")[0]
    query_file, corpus_file, qrels_file = text_files(name)
    queries: list[dict[str, Any]] = [{"text": "which is number 1?"}, {"text": "which is number 4?"}]
    judged = [{"d1": 2, "d2": 1, "d3": 0}, {"d4": 1}]
    for index, query in enumerate(queries):
        query["_id" if collection == "NanoBEIR" else "id"] = f"q{index}"
        if collection == "BRIGHT":
            query |= {"query": query.pop("text"), "gold_ids": [page for page, score in judged[index].items() if score]}
        if collection in ("FollowIR", "InfoSearch"):
            query |= {"instruction_og": "As at first.", "instruction_changed": "As it is now."}
    titles = {"title": "A page"} if collection in ("FollowIR", "LongEmbed") else {}
    text_key = "content" if collection == "BRIGHT" else "text"
    corpus = [{"id": f"d{page}", **titles, text_key: f"this is number {page}"} for page in range(DOCUMENTS)]
    write_rows(folder / query_file, queries)
    write_rows(folder / corpus_file, corpus)
    if qrels_file is not None:
        names = ("query-id", "corpus-id") if collection == "NanoBEIR" else ("query_id", "corpus_id")
        qrels = [
            dict(zip((*names, "score"), (f"q{index}", page, score), strict=True))
            for index, pages in enumerate(judged)
            for page, score in pages.items()
        ]
        write_rows(folder / qrels_file, qrels)


def write_tool_set(folder: Path, name: str) -> None:
    """Write a tool set, and the tools of its kind; its first query needs tools 1 and 2, its second tool 4."""
    query_file, tool_file = tool_files(name)
    queries = [
        {"id": "q0", "instruction": "Given a request,", "query": "which is number 1?", "category": name,
         "labels": json.dumps([{"id": "t1", "relevance": 1}, {"id": "t2", "relevance": 1}])},
        {"id": "q1", "instruction": "Given a request,", "query": "which is number 4?", "category": name,
         "labels": json.dumps([{"id": "t4", "relevance": 1}])},
    ]  # fmt: skip
    tools = [{"id": f"t{tool}", "documentation": f'{{"name":  "number {tool} "}}'} for tool in range(DOCUMENTS)]
    write_rows(folder / query_file, queries)
    write_rows(folder / tool_file, tools)


def write_mmeb_v3(folder: Path) -> Path:
    """Write every set."""
    for name in TEXT_SETS:
        write_text_set(folder, name)
    for name in TOOL_SETS:
        write_tool_set(folder, name)
    return folder


def write_miniature(folder: Path) -> dict[str, str]:
    """Write every set, and return the argument that opens them."""
    return {"mmeb_v3_folder": str(write_mmeb_v3(folder / "MMEB-V3").relative_to(folder))}
