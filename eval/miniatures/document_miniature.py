"""Miniature visual documents of MMEB-V2: 24 subsets of two queries and six pages."""

from pathlib import Path

import datasets
from datasets import Dataset, Features, Value

from ..benchmarks.mmeb_v2_documents import SETS
from .hub_files import gray_tile, write_hub_dataset


PAGES = 6


def published_tables(name: str) -> dict[str, dict[str, list]]:
    """Return the columns of the three tables of a subset; ids are file names in VisRAG, and numbers elsewhere."""
    key = str if name.startswith("VisRAG") else int

    def page_id(page: int) -> int | str:
        return f"paper_{page}.jpg" if key is str else page

    return {
        "queries": {
            "query-id": [key(10), key(11)],
            "query": ["pages 0 1 2", "pages 2 3 1"],
            "language": ["english", "french"],
        },
        "corpus": {
            "corpus-id": [page_id(page) for page in range(PAGES)],
            "image": [gray_tile(page) for page in range(PAGES)],
            "doc-id": ["a report"] * PAGES,
        },
        "qrels": {
            "query-id": [key(10), key(11), key(11), key(11), key(11)],
            "corpus-id": [page_id(page) for page in (0, 1, 2, 3, 2)],
            "score": [1, 2, 1, 0, 1],  # a score of 0 is ignored, and of a duplicate the higher counts
        },
    }


def write_subset(source: Path, name: str, columns: dict[str, dict[str, list]] | None = None) -> None:
    """Write a subset below `source`; `columns` replaces its published tables."""
    _, repository, split = SETS[name]
    tables = {}
    for config, table in (columns or published_tables(name)).items():
        key = Value("string" if name.startswith("VisRAG") else "int64")
        features = {"corpus-id": key, "image": datasets.Image(), "doc-id": Value("string")}
        tables[config] = Dataset.from_dict(table, Features(features) if config == "corpus" else None)
    write_hub_dataset(source / repository, tables, split)


def write_miniature(folder: Path) -> dict[str, str]:
    """Write every subset, and return the arguments that open them."""
    for name in SETS:
        write_subset(folder / "MMEB-V2", name)
    return {"mmeb_v2_source": "MMEB-V2"}
