"""What smaller vectors cost: R@1 and R@10 of the embedded world's retrieval tasks by bytes per vector.

    python benchmarks/compression.py --model checkpoints/unime-tiny --size 1000

Every item is embedded once; the rest is exact arithmetic on its vector, so that no figure depends on the machine's
load. Precisions are those of `sentence_transformers.quantize_embeddings`, queries stay float32:

- int8: 256 steps per dimension between the least and the greatest value of the candidates, by their midpoints;
- binary: the sign of each dimension, compared by Hamming distance (here the query is binary too);
- binary, rescored: the `--rescored` nearest by Hamming distance, ordered by the float32 query against their signs.

A tie counts as wrong, as everywhere in this package, and Hamming distances tie often.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sentence_transformers import quantize_embeddings
from tqdm.auto import tqdm
from trl import TrlParser

from unime.eval.embedding_cache import EmbeddingCache
from unime.eval.encoders.loading import load_encoder
from unime.eval.metrics import pessimistic_ranks, recall_at_k
from unime.openmoji.benchmark import tasks


PRECISIONS = ("float32", "int8", "binary", "binary, rescored")


@dataclass
class ScriptArguments:
    """What to measure, and where to write it."""

    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "UniME, CLIP or SentenceTransformer."})
    size: int = field(default=1000, metadata={"help": "Candidates of a task; the composed one has half as many."})
    dimensions: list[int] = field(
        default_factory=lambda: [192, 128, 96, 64, 32], metadata={"help": "Leading dimensions to keep."}
    )
    rescored: int = field(default=40, metadata={"help": "Candidates that are ordered again after binary search."})
    output: str = field(default="benchmarks/results/compression.json", metadata={"help": "Where to write."})


def truncated(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Keep the leading dimensions of `(n, d)` vectors and normalise again, as `encode(truncate_dim=...)` does."""
    vectors = vectors[:, :dimensions]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scores(queries: np.ndarray, candidates: np.ndarray, precision: str, rescored: int) -> np.ndarray:
    """Similarities `(queries, candidates)` where candidates are stored in a precision of `PRECISIONS`.

    Args:
        queries, candidates (`np.ndarray`): `(n, dimensions)` float32 unit rows.
        precision (`str`): How candidates are stored.
        rescored (`int`): How many of a query's nearest by Hamming distance are ordered again; others come after them.
    """
    if precision == "float32":
        return queries @ candidates.T
    if precision == "int8":
        ranges = np.stack([candidates.min(axis=0), candidates.max(axis=0)])
        steps = (ranges[1] - ranges[0]) / 255
        stored = quantize_embeddings(candidates, "int8", ranges=ranges)
        return queries @ (ranges[0] + (stored.astype(np.float32) + 128.5) * steps).T
    # Of signs as -1 and 1 the dot product is the number of dimensions less twice the Hamming distance.
    signs = [
        np.unpackbits(quantize_embeddings(side, "ubinary"), axis=1, count=side.shape[1]).astype(np.float32) * 2 - 1
        for side in (queries, candidates)
    ]
    near = signs[0] @ signs[1].T
    if precision == "binary":
        return near
    first = np.argsort(-near, axis=1, kind="stable")[:, :rescored]
    found = np.full_like(near, -np.inf)
    np.put_along_axis(found, first, np.take_along_axis(queries @ signs[1].T, first, axis=1), axis=1)
    return found


def bytes_of(dimensions: int, precision: str) -> int:
    """Bytes of one stored candidate."""
    return {"float32": 4 * dimensions, "int8": dimensions}.get(precision, (dimensions + 7) // 8)


def measure(script: ScriptArguments) -> list[dict[str, object]]:
    """One row per dimension and precision, with the mean over tasks of R@1 and R@10, and each task's."""
    store = EmbeddingCache(load_encoder(script.model).encode)
    retrieval = [task for task in tasks("test", script.size)[0] if task.meta_task == "retrieval"]
    embedded = [(task, store(task.queries), store(task.candidates)) for task in tqdm(retrieval, unit="task")]
    whole = embedded[0][1].shape[1]
    if max(script.dimensions) > whole:
        raise ValueError(f"{script.model} has {whole} dimensions, so it cannot give {max(script.dimensions)}")
    rows = []
    for dimensions in script.dimensions:
        for precision in PRECISIONS:
            found = {}
            for task, queries, candidates in embedded:
                queries, candidates = truncated(queries, dimensions), truncated(candidates, dimensions)
                ranks = pessimistic_ranks(scores(queries, candidates, precision, script.rescored), task.positives)
                found[task.name] = {f"R@{k}": round(recall_at_k(ranks, k), 4) for k in (1, 10)}
            rows.append(
                {"dimensions": dimensions, "precision": precision, "bytes": bytes_of(dimensions, precision)}
                | {f"R@{k}": round(float(np.mean([task[f"R@{k}"] for task in found.values()])), 4) for k in (1, 10)}
                | {"tasks": found}
            )
    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as Markdown, in per cent."""
    lines = ["| dimensions | precision | bytes | R@1 | R@10 |", "| ---: | :--- | ---: | ---: | ---: |"]
    lines += [
        f"| {row['dimensions']} | {row['precision']} | {row['bytes']} | {row['R@1']:.1%} | {row['R@10']:.1%} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(script: ScriptArguments) -> None:
    rows = measure(script)
    output = Path(script.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"model": script.model, "size": script.size, "rescored": script.rescored}
    output.write_text(json.dumps(settings | {"rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
