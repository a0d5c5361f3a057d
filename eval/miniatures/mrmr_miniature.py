"""Miniature MRMR: five datasets of a few queries and eight documents."""

from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value

from ..benchmarks.mrmr import SETS
from .hub_files import gray_tile, write_hub_dataset


DOCUMENTS = 8
_QUERIES: dict[
    str, list[tuple[str | None, dict[str, int], str | None, dict[int, int]]]
] = {  # text, columns of images by name, category, documents that are judged
    "knowledge": [
        ("Which one is <image 1>, and what is not <image 2>?", {"image 1": 1, "image 2": 2}, "Art", {1: 1}),
        ("What follows from number 3?", {}, "Biology", {3: 1, 4: 1, 5: 0}),
        ("No document answers this.", {}, "Biology", {}),
    ],
    "theorem": [
        ("<image 1>How is it computed?", {"image 1": 2}, "Math", {2: 1}),
        ("Which law is number 6?", {}, "Energy_and_Power", {6: 1}),
    ],
    "design": [("Is <image> as it must be?", {"image": 1}, None, {1: 1})],
    "traffic": [("The car at <image> turns left.", {"image": 5}, None, {5: 1, 6: 1})],
    "negation": [(None, {"image": 1}, None, {1: 1}), (None, {"image": 6}, None, {6: 1})],
}


def write_mrmr(source: Path) -> Path:
    """Write the datasets below `source`, each under its Hub id."""
    for name, queries in _QUERIES.items():
        is_negation = name == "negation"
        ids = [f"validation_{index}" for index in range(len(queries))]
        pages = [f"{ids[page // 4]}_{page % 4}" if is_negation else f"doc_{page}" for page in range(DOCUMENTS)]
        id_columns = ("query_id", "corpus_id") if name in ("knowledge", "theorem") else ("query-id", "corpus-id")
        qrels = [
            dict(zip((*id_columns, "score"), (ids[index], pages[page], score), strict=True))
            for index, (*_, judged) in enumerate(queries)
            for page, score in judged.items()
        ]
        corpus = [_document(name, page, pages[page]) for page in range(DOCUMENTS)]
        rows = [
            _query(ids[index], text, images, category) for index, (text, images, category, _) in enumerate(queries)
        ]
        tables = {"corpus": _table(corpus), "query": _table(rows), "qrels": Dataset.from_list(qrels)}
        write_hub_dataset(source / "MRMRbenchmark" / name, tables)
    return source


def _document(name: str, page: int, page_id: str) -> dict[str, Any]:
    row = {"id": page_id, "modality": "text", "text": f"About number {page}.", "vision": page}
    if name != "negation" and page % 2:
        row |= {"modality": "image,text", "image": page, "image 1": page, "text": f"See <image 1> of number {page}."}
    return row


def _query(query_id: str, text: str | None, images: dict[str, int], category: str | None) -> dict[str, Any]:
    # `image` repeats the first image.
    first = {"image": next(iter(images.values()))} if images else {}
    row = {"id": query_id, "modality": "image,text", "text": text, **first, **images}
    return row if category is None else row | {"category": category}


def _table(rows: list[dict[str, Any]]) -> Dataset:
    names = list(dict.fromkeys(name for row in rows for name in (*row, "image")))
    is_image = {name: name.startswith("image") or name == "vision" for name in names}
    features = Features({name: datasets.Image() if is_image[name] else Value("string") for name in names})
    columns = {
        name: [gray_tile(row[name]) if is_image[name] and name in row else row.get(name) for row in rows]
        for name in names
    }
    return Dataset.from_dict(columns, features)


def write_miniature(folder: Path) -> dict[str, str]:
    """Write every dataset, and return the argument that opens them."""
    assert list(_QUERIES) == list(SETS)
    return {"mrmr_source": str(write_mrmr(folder / "MRMR").relative_to(folder))}
