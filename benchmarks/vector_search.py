"""Search among many vectors: recall@10 against the exact search, queries a second, time and memory to build an index.

    python benchmarks/vector_search.py --vectors 100000 1000000 --dimensions 512

`store` is what `unime index` builds and `unime search` asks for in a large table; the other kinds are what it was
chosen from. Each kind is measured in a process of its own; queries come one after the other. Vectors are drawn from
clusters of unequal size, or (`--data world`) are embeddings of texts of the OpenMoji world with noise added.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import HnswSq, IvfFlat, IvfPq, IvfRq, IvfSq
from lancedb.table import Table
from result_files import write
from trl import TrlParser

from unime import load_model
from unime.index import ann_index


K = 10
CLUSTERS = 1000
CHUNK = 20_000  # vectors in memory at a time
KINDS = {"ivf_flat": IvfFlat, "ivf_sq": IvfSq, "ivf_pq": IvfPq, "ivf_rq": IvfRq, "hnsw_sq": HnswSq}
SAID = ("vectors", "kind", "probes", "refine", "recall@10", "queries/s", "build, s", "peak, MB", "index, MB")


@dataclass
class ScriptArguments:
    """What to measure."""

    vectors: list[int] = field(default_factory=lambda: [10_000], metadata={"help": "Sizes of the table."})
    dimensions: int = field(default=512, metadata={"help": "Of a synthetic vector."})
    data: str = field(default="clusters", metadata={"help": "'clusters' or 'world'."})
    kinds: list[str] = field(
        default_factory=lambda: ["exact", "store", *KINDS],
        metadata={"help": f"'exact', 'store', {', '.join(KINDS)}."},
    )
    probed: list[float] = field(
        default_factory=lambda: [0.01, 0.02, 0.05, 0.1], metadata={"help": "Shares of the partitions to look into."}
    )
    refine: list[int] = field(default_factory=lambda: [0, 4], metadata={"help": "Refine factors; 0 for none."})
    queries: int = field(default=200, metadata={"help": "Queries that the figures are means of."})
    noise: float = field(default=0.7, metadata={"help": "Length of the noise beside a unit centre or embedding."})
    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Embeds the texts of the world."})
    output: str = field(default="benchmarks/results/vector_search.json", metadata={"help": "Where to write."})
    only: str | None = field(default=None, metadata={"help": "'KIND,FOLDER': measure this in this process."})


def centres(script: ScriptArguments) -> np.ndarray:
    """What vectors are drawn around: `(number, dimensions)` unit rows."""
    if script.data == "world":
        from unime.openmoji.dataset import openmoji_texts

        model, processor = load_model(script.model, dtype="float32")
        return model.encode(openmoji_texts("train", 5000)["text"], processor)
    return _unit(np.random.default_rng(0).normal(size=(CLUSTERS, script.dimensions)).astype(np.float32))


def drawn(centres: np.ndarray, size: int, noise: float, seed: int) -> Iterator[np.ndarray]:
    """Unit vectors around centres of unequal weight, in chunks."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.sqrt(np.arange(1, len(centres) + 1))
    for start in range(0, size, CHUNK):
        chosen = rng.choice(len(centres), min(CHUNK, size - start), p=weights / weights.sum())
        around = rng.normal(size=(len(chosen), centres.shape[1])).astype(np.float32)
        yield _unit(centres[chosen] + noise / np.sqrt(centres.shape[1]) * around)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def prepare(script: ScriptArguments, size: int, folder: Path) -> None:
    """Write a table of vectors, queries, and the rows that an exact search in NumPy finds."""
    around = centres(script)
    queries = np.concatenate(list(drawn(around, script.queries, script.noise, seed=1)))
    table, best = None, (np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64))
    for start, chunk in zip(range(0, size, CHUNK), drawn(around, size, script.noise, seed=2), strict=True):
        rows = np.arange(start, start + len(chunk))
        lists = pa.FixedSizeListArray.from_arrays(pa.array(chunk.ravel()), chunk.shape[1])
        part = pa.table({"row": pa.array(rows), ann_index.COLUMN: lists})
        if table is None:
            table = lancedb.connect(folder).create_table("vectors", part)
        else:
            table.add(part)
        scores = np.concatenate([best[0], queries @ chunk.T], axis=1)
        found = np.concatenate([best[1], np.broadcast_to(rows, (len(queries), len(rows)))], axis=1)
        order = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        best = np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)
    table.optimize()
    np.save(folder / "queries.npy", queries)
    np.save(folder / "exact.npy", best[1])


def measure(script: ScriptArguments, kind: str, folder: Path) -> list[dict]:
    """Build the index of one kind, and ask it with every setting."""
    table = lancedb.connect(folder).open_table("vectors")
    rows = table.count_rows()
    Path("/proc/self/clear_refs").write_text("5")  # Linux counts the highest resident size from here on
    before = _highest()
    start = time.perf_counter()
    if kind == "store":
        ann_index.build(table)
    elif kind in KINDS:
        options = {} if kind == "hnsw_sq" else {"num_partitions": ann_index.num_partitions(rows)}
        table.create_index(ann_index.COLUMN, config=KINDS[kind](distance_type="cosine", **options))
    build = time.perf_counter() - start
    built = {
        "vectors": rows,
        "kind": kind,
        "build, s": round(build, 2) if kind != "exact" else 0,
        "peak, MB": round(_highest() - before),
        "index, MB": round(sum(index.size_bytes for index in table.list_indices()) / 1e6, 1),
    }
    settings = [(0, 0)]
    if kind == "store":
        settings = [(ann_index.num_probes(rows), ann_index.REFINE_FACTOR)]
    elif kind in KINDS:
        shares = [max(1, round(share * ann_index.num_partitions(rows))) for share in script.probed]
        settings = list(product([1] if kind == "hnsw_sq" else dict.fromkeys(shares), script.refine))
    return [
        built | {"probes": probes, "refine": refine} | _asked(table, kind, probes, refine, folder)
        for probes, refine in settings
    ]


def _asked(table: Table, kind: str, probes: int, refine: int, folder: Path) -> dict[str, float]:
    queries, exact = np.load(folder / "queries.npy"), np.load(folder / "exact.npy")
    found, seconds = 0, []
    for query, right in zip(queries, exact, strict=True):
        start = time.perf_counter()
        search = ann_index.nearest(table, query, K, exact=kind == "exact")
        if kind in KINDS:
            search = search.minimum_nprobes(probes).maximum_nprobes(probes).refine_factor(refine or None)
        rows = search.select(["row", "_distance"]).to_arrow()["row"].to_pylist()
        seconds.append(time.perf_counter() - start)
        found += len(set(rows) & set(right.tolist()))
    # The first query also reads the index into memory.
    return {"recall@10": round(found / exact.size, 4), "queries/s": round(1 / float(np.mean(seconds[1:])), 1)}


def _highest() -> float:
    """The highest resident size of this process, in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e3


def main(script: ScriptArguments) -> None:
    if script.only is not None:
        kind, folder = script.only.split(",", 1)
        print(json.dumps(measure(script, kind, Path(folder))))
        return
    unknown = set(script.kinds) - {"exact", "store", *KINDS}
    if unknown or script.data not in ("clusters", "world"):
        raise ValueError(f"choose kinds from exact, store, {', '.join(KINDS)}, and data from clusters, world")
    results = []
    print("| " + " | ".join(SAID) + " |\n|" + "---|" * len(SAID), flush=True)
    for size in script.vectors:
        with tempfile.TemporaryDirectory() as folder:
            prepare(script, size, Path(folder))
            for kind in script.kinds:
                command = [sys.executable, *sys.argv, "--only", f"{kind},{folder}"]
                done = subprocess.run(command, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
                for row in json.loads(done.stdout.splitlines()[-1]):
                    results.append(row)
                    print("| " + " | ".join(str(row[name]) for name in SAID) + " |", flush=True)
    settings = {"data": script.data, "dimensions": script.dimensions, "queries": script.queries, "noise": script.noise}
    write(script.output, settings, results, "lancedb")


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
