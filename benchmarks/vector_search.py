"""Approximate search in large tables: recall@10, queries per second, and the time and memory to build an index.

    python benchmarks/vector_search.py --vectors 100000 1000000 --dimensions 512

The kind `default` is the index that `unime index` builds for a large table; the other kinds are the alternatives. Each
kind is measured in its own process, one query at a time. Vectors are sampled from clusters of unequal size, or
(`--data openmoji`) are embeddings of OpenMoji texts with added noise.
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
CHUNK_VECTORS = 20_000  # in memory at a time
KINDS = {"ivf_flat": IvfFlat, "ivf_sq": IvfSq, "ivf_pq": IvfPq, "ivf_rq": IvfRq, "hnsw_sq": HnswSq}
COLUMNS = ("vectors", "kind", "probes", "refine", "recall@10", "queries/s", "build, s", "peak, MB", "index, MB")


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    vectors: list[int] = field(default_factory=lambda: [10_000], metadata={"help": "Numbers of vectors in the table."})
    dimensions: int = field(default=512, metadata={"help": "Dimensions of synthetic vectors."})
    data: str = field(default="clusters", metadata={"help": "'clusters' or 'openmoji'."})
    kinds: list[str] = field(
        default_factory=lambda: ["exact", "default", *KINDS],
        metadata={"help": f"'exact', 'default', {', '.join(KINDS)}."},
    )
    probed: list[float] = field(
        default_factory=lambda: [0.01, 0.02, 0.05, 0.1], metadata={"help": "Shares of the partitions to probe."}
    )
    refine: list[int] = field(default_factory=lambda: [0, 4], metadata={"help": "Refine factors; 0 for none."})
    queries: int = field(default=200, metadata={"help": "Number of queries to average over."})
    noise: float = field(default=0.7, metadata={"help": "Norm of the noise added to a unit vector."})
    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Checkpoint for `--data openmoji`."})
    output: str = field(default="benchmarks/results/vector_search.json", metadata={"help": "Output file."})
    only: str | None = field(default=None, metadata={"help": "Internal: measure 'KIND,FOLDER' in this process."})


def centres(script: ScriptArguments) -> np.ndarray:
    """Return the centres of the vectors, `(centres, dimensions)` unit rows."""
    if script.data == "openmoji":
        from unime.openmoji.dataset import openmoji_texts

        model, processor = load_model(script.model, dtype="float32")
        return model.encode(openmoji_texts("train", 5000)["text"], processor)
    return _unit(np.random.default_rng(0).normal(size=(CLUSTERS, script.dimensions)).astype(np.float32))


def sample_vectors(centres: np.ndarray, size: int, noise: float, seed: int) -> Iterator[np.ndarray]:
    """Yield unit vectors around centres of unequal weight, in chunks."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.sqrt(np.arange(1, len(centres) + 1))
    for start in range(0, size, CHUNK_VECTORS):
        chosen = rng.choice(len(centres), min(CHUNK_VECTORS, size - start), p=weights / weights.sum())
        offsets = rng.normal(size=(len(chosen), centres.shape[1])).astype(np.float32)
        yield _unit(centres[chosen] + noise / np.sqrt(centres.shape[1]) * offsets)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def prepare(script: ScriptArguments, size: int, folder: Path) -> None:
    """Write a table of vectors, the queries, and their exact neighbours from NumPy."""
    centre_vectors = centres(script)
    queries = np.concatenate(list(sample_vectors(centre_vectors, script.queries, script.noise, seed=1)))
    table, best = None, (np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64))
    for start, chunk in zip(
        range(0, size, CHUNK_VECTORS), sample_vectors(centre_vectors, size, script.noise, seed=2), strict=True
    ):
        rows = np.arange(start, start + len(chunk))
        lists = pa.FixedSizeListArray.from_arrays(pa.array(chunk.ravel()), chunk.shape[1])
        part = pa.table({"row": pa.array(rows), ann_index.COLUMN: lists})
        if table is None:
            table = lancedb.connect(folder).create_table("vectors", part)
        else:
            table.add(part)
        scores = np.concatenate([best[0], queries @ chunk.T], axis=1)
        candidates = np.concatenate([best[1], np.broadcast_to(rows, (len(queries), len(rows)))], axis=1)
        order = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        best = np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)
    table.optimize()
    np.save(folder / "queries.npy", queries)
    np.save(folder / "exact.npy", best[1])


def measure(script: ScriptArguments, kind: str, folder: Path) -> list[dict]:
    """Build an index of one kind and measure it with every setting."""
    table = lancedb.connect(folder).open_table("vectors")
    rows = table.count_rows()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak resident size
    before = _peak_mb()
    start = time.perf_counter()
    if kind == "default":
        ann_index.build(table)
    elif kind in KINDS:
        options = {} if kind == "hnsw_sq" else {"num_partitions": ann_index.num_partitions(rows)}
        table.create_index(ann_index.COLUMN, config=KINDS[kind](distance_type="cosine", **options))
    build = time.perf_counter() - start
    built = {
        "vectors": rows,
        "kind": kind,
        "build, s": round(build, 2) if kind != "exact" else 0,
        "peak, MB": round(_peak_mb() - before),
        "index, MB": round(sum(index.size_bytes for index in table.list_indices()) / 1e6, 1),
    }
    settings = [(0, 0)]
    if kind == "default":
        settings = [(ann_index.num_probes(rows), ann_index.REFINE_FACTOR)]
    elif kind in KINDS:
        shares = [max(1, round(share * ann_index.num_partitions(rows))) for share in script.probed]
        settings = list(product([1] if kind == "hnsw_sq" else dict.fromkeys(shares), script.refine))
    return [
        built | {"probes": probes, "refine": refine} | _search(table, kind, probes, refine, folder)
        for probes, refine in settings
    ]


def _search(table: Table, kind: str, probes: int, refine: int, folder: Path) -> dict[str, float]:
    queries, exact = np.load(folder / "queries.npy"), np.load(folder / "exact.npy")
    hits, seconds = 0, []
    for query, neighbours in zip(queries, exact, strict=True):
        start = time.perf_counter()
        search = ann_index.nearest(table, query, K, exact=kind == "exact")
        if kind in KINDS:
            search = search.minimum_nprobes(probes).maximum_nprobes(probes).refine_factor(refine or None)
        rows = search.select(["row", "_distance"]).to_arrow()["row"].to_pylist()
        seconds.append(time.perf_counter() - start)
        hits += len(set(rows) & set(neighbours.tolist()))
    # The first query also loads the index into memory.
    return {"recall@10": round(hits / exact.size, 4), "queries/s": round(1 / float(np.mean(seconds[1:])), 1)}


def _peak_mb() -> float:
    """Return the peak resident size of this process in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1e3


def main(script: ScriptArguments) -> None:
    if script.only is not None:
        kind, folder = script.only.split(",", 1)
        print(json.dumps(measure(script, kind, Path(folder))))
        return
    unknown = set(script.kinds) - {"exact", "default", *KINDS}
    if unknown or script.data not in ("clusters", "openmoji"):
        raise ValueError(f"choose kinds from exact, default, {', '.join(KINDS)}, and data from clusters, openmoji")
    results = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for size in script.vectors:
        with tempfile.TemporaryDirectory() as folder:
            prepare(script, size, Path(folder))
            for kind in script.kinds:
                command = [sys.executable, *sys.argv, "--only", f"{kind},{folder}"]
                done = subprocess.run(command, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
                for row in json.loads(done.stdout.splitlines()[-1]):
                    results.append(row)
                    print("| " + " | ".join(str(row[name]) for name in COLUMNS) + " |", flush=True)
    settings = {"data": script.data, "dimensions": script.dimensions, "queries": script.queries, "noise": script.noise}
    write(script.output, settings, results, "lancedb")


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
