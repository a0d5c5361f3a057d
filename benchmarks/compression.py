"""Accuracy of compressed embeddings: R@1 and R@10 on the OpenMoji retrieval tasks by bytes per embedding.

    python benchmarks/compression.py --model checkpoints/unime-tiny --size 1000

Every item is embedded once; the rest is exact arithmetic, so the results do not depend on the load of the machine.
The precisions are those of `sentence_transformers.quantize_embeddings`; queries stay float32:

- int8: 256 steps per dimension between the minimum and the maximum of the candidates, represented by their midpoints;
- binary: the sign of each dimension, compared by Hamming distance (the query is binary too);
- binary, rescored: the `--rescored` nearest candidates by Hamming distance, reordered by the dot product of the
  float32 query and their signs.

Ties count as wrong, as everywhere in this package, and Hamming distances tie often.
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
    """Settings of the benchmark."""

    model: str = field(
        default="checkpoints/unime-tiny", metadata={"help": "Checkpoint of UniME, CLIP or a SentenceTransformer."}
    )
    size: int = field(default=1000, metadata={"help": "Candidates of a task; the task `composed` has half as many."})
    dimensions: list[int] = field(
        default_factory=lambda: [192, 128, 96, 64, 32], metadata={"help": "Leading dimensions to keep."}
    )
    rescored: int = field(default=40, metadata={"help": "Candidates to reorder after the binary search."})
    output: str = field(default="benchmarks/results/compression.json", metadata={"help": "Output file."})


def truncate(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Keep the leading dimensions of `(n, d)` embeddings and normalise again, as `encode(truncate_dim=...)` does."""
    vectors = vectors[:, :dimensions]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scores(queries: np.ndarray, candidates: np.ndarray, precision: str, rescored: int) -> np.ndarray:
    """Return the similarities `(queries, candidates)` for candidates stored in a precision.

    Args:
        queries (`np.ndarray`): `(queries, dimensions)` float32 unit rows.
        candidates (`np.ndarray`): `(candidates, dimensions)` float32 unit rows.
        precision (`str`): One of `PRECISIONS`.
        rescored (`int`): Number of nearest candidates by Hamming distance to reorder; the others follow them.
    """
    if precision == "float32":
        return queries @ candidates.T
    if precision == "int8":
        ranges = np.stack([candidates.min(axis=0), candidates.max(axis=0)])
        steps = (ranges[1] - ranges[0]) / 255
        stored = quantize_embeddings(candidates, "int8", ranges=ranges)
        return queries @ (ranges[0] + (stored.astype(np.float32) + 128.5) * steps).T
    # For signs -1 and 1 the dot product is the number of dimensions minus twice the Hamming distance.
    signs = [
        np.unpackbits(quantize_embeddings(side, "ubinary"), axis=1, count=side.shape[1]).astype(np.float32) * 2 - 1
        for side in (queries, candidates)
    ]
    similarities = signs[0] @ signs[1].T
    if precision == "binary":
        return similarities
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :rescored]
    result = np.full_like(similarities, -np.inf)
    np.put_along_axis(result, nearest, np.take_along_axis(queries @ signs[1].T, nearest, axis=1), axis=1)
    return result


def embedding_bytes(dimensions: int, precision: str) -> int:
    """Return the size of one stored candidate in bytes."""
    return {"float32": 4 * dimensions, "int8": dimensions}.get(precision, (dimensions + 7) // 8)


def measure(script: ScriptArguments) -> list[dict[str, object]]:
    """Return one row per dimension and precision, with R@1 and R@10 of each task and their means."""
    embed = EmbeddingCache(load_encoder(script.model).encode)
    retrieval = [task for task in tasks("test", script.size)[0] if task.meta_task == "retrieval"]
    embedded = [(task, embed(task.queries), embed(task.candidates)) for task in tqdm(retrieval, unit="task")]
    full = embedded[0][1].shape[1]
    if max(script.dimensions) > full:
        raise ValueError(f"{script.model} has {full} dimensions: choose at most {full}, not {max(script.dimensions)}")
    rows = []
    for dimensions in script.dimensions:
        for precision in PRECISIONS:
            by_task = {}
            for task, queries, candidates in embedded:
                queries, candidates = truncate(queries, dimensions), truncate(candidates, dimensions)
                ranks = pessimistic_ranks(scores(queries, candidates, precision, script.rescored), task.positives)
                by_task[task.name] = {f"R@{k}": round(recall_at_k(ranks, k), 4) for k in (1, 10)}
            rows.append(
                {"dimensions": dimensions, "precision": precision, "bytes": embedding_bytes(dimensions, precision)}
                | {f"R@{k}": round(float(np.mean([task[f"R@{k}"] for task in by_task.values()])), 4) for k in (1, 10)}
                | {"tasks": by_task}
            )
    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    """Format the rows as a Markdown table in percent."""
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
