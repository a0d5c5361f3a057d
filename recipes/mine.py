"""Mine hard negatives for stage 2 from the whole dataset, with any embedding model.

    python recipes/mine.py --config recipes/tiny/stage2.yaml --model checkpoints/unime-tiny --output_dir runs/mined
    accelerate launch recipes/stage2.py --config recipes/tiny/stage2.yaml --mined_file runs/mined/negatives.jsonl

The script takes the data settings of a stage-2 recipe and ignores all others. Candidates are the positives of the
query's own task, or with `--pool all` those of all tasks, without those that a row with the same query has as its
positive or whose content is the query's own.
Embeddings are saved in chunks with checksums, so the same command resumes an interrupted run, and several machines can
share the work on one disk (`--shard_index`, `--num_shards`). Rows that cannot be read or embedded are listed with the
reasons in `rejected.jsonl`, which training skips with `--rejected_file`; with `--strict` the first one ends the run.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm
from trl import TrlParser

from unime.checkpoint import fingerprint
from unime.data.mining import mine_hard_negatives
from unime.data.rejected_rows import write_rejected
from unime.data.row_forms import row_positives
from unime.data.rows import content_hashes, label_hash, positive_place
from unime.data.sources import DataArguments, open_rows
from unime.data.validation import read_or_explain
from unime.eval.encoders.loading import load_encoder
from unime.isolate_failures import map_isolating_failures
from unime.storage.atomic_files import atomic_write, intact_files
from unime.storage.run_settings import keep_settings


CHUNK_ROWS = 1024  # rows of one file of embeddings; a killed run loses at most one file
CHUNK_FORMAT = 2  # version of the arrays in these files


@dataclass
class ScriptArguments:
    """The model to mine with, and which negatives to keep; see `unime.data.mining.mine_hard_negatives`."""

    model: str = field(metadata={"help": "UniME, CLIP or any SentenceTransformer that can embed the items."})
    output_dir: str = field(metadata={"help": "Folder for embeddings, negatives.jsonl, rejected.jsonl, report.json."})
    pool: Literal["task", "all"] = field(
        default="task",
        metadata={"help": "Candidates: the positives of the query's task, or of all tasks, whatever they consist of."},
    )
    num_negatives: int = field(default=5, metadata={"help": "Negatives per query."})
    range_min: int = field(default=0, metadata={"help": "Rank of the first candidate to consider, from 0."})
    range_max: int = field(default=100, metadata={"help": "Rank of the first candidate not to consider."})
    max_score: float | None = field(default=None, metadata={"help": "Maximum cosine of a negative with the query."})
    absolute_margin: float | None = field(
        default=None, metadata={"help": "Minimum difference between the cosines of the positive and a negative."}
    )
    relative_margin: float | None = field(
        default=0.05,
        metadata={"help": "Minimum difference as a share of the positive's cosine, in absolute value."},
    )
    shard_index: int = field(default=0, metadata={"help": "Share of the embeddings that this run computes, from 0."})
    num_shards: int = field(default=1, metadata={"help": "Number of runs that share the embeddings."})
    strict: bool = field(default=False, metadata={"help": "Stop at the first bad row."})


def embed(script: ScriptArguments, data: DataArguments, folder: Path) -> int:
    """Embed the queries and positives of the missing chunks.

    Args:
        script (`ScriptArguments`): The model and the shard.
        data (`DataArguments`): The rows.
        folder (`Path`): Where the chunks are saved.

    Returns:
        `int`: The number of rows of the dataset.
    """
    dataset = open_rows(data)
    starts = range(0, len(dataset), CHUNK_ROWS)[script.shard_index :: script.num_shards]
    saved = {file.name.split(".")[0] for file in intact_files(folder, "*.*.npz")}
    missing = [start for start in starts if f"{start:09d}" not in saved]
    encode = load_encoder(script.model, image_size=data.image_size, preset=data.preset).encode if missing else None
    for start in tqdm(missing, unit="chunk", desc="Embedding"):
        indices = range(start, min(start + CHUNK_ROWS, len(dataset)))
        rows_or_reasons = {index: read_or_explain(dataset, index) for index in indices}
        rejected = {index: reason for index, reason in rows_or_reasons.items() if isinstance(reason, str)}
        rows = {index: row for index, row in rows_or_reasons.items() if index not in rejected}
        places = {index: row.get("where") or f"row {index}" for index, row in rows.items()}
        positives = {index: row_positives(row, places[index]) for index, row in rows.items()}
        items = [(index, f"{places[index]}, query", row["query"]) for index, row in rows.items()]
        for index, row_items in positives.items():
            names = (positive_place(places[index], position, len(row_items)) for position in range(len(row_items)))
            items += [(index, name, item) for name, item in zip(names, row_items, strict=True)]
        embeddings: dict[int, list[np.ndarray]] = {index: [] for index in rows}  # of the query, then the positives
        encoded = map_isolating_failures(encode, [item for _, _, item in items], ValueError)
        for (index, name, _), embedding in zip(items, encoded, strict=True):
            reason = str(embedding) if isinstance(embedding, ValueError) else None
            if reason is None and not np.isfinite(embedding).all():
                reason = "its embedding is not finite: fix or remove the row"
            if reason is not None:
                rejected.setdefault(index, f"{name}: {reason}")
            embeddings[index].append(embedding)
        _stop_if_strict(script, rejected)
        good = [index for index in rows if index not in rejected]
        right_items = [item for index in good for item in positives[index]]
        arrays = {
            "row": np.array(good, dtype=np.int64),
            "num_positives": np.array([len(positives[index]) for index in good], dtype=np.int64),
            "queries": np.array([embeddings[index][0] for index in good]),
            "positives": np.array([embedding for index in good for embedding in embeddings[index][1:]]),
            "query_hashes": _hashes(rows[index]["query"] for index in good),
            "positive_hashes": _hashes(right_items),
            "label": np.array(
                [label_hash(rows[index]["task"], rows[index]["label"]) for index in good], dtype=np.int64
            ),
            "task": np.array([rows[index]["task"] for index in good], dtype=str),
            "rejected": np.array(json.dumps(rejected)),
        }
        with atomic_write(folder / f"{start:09d}.npz", sealed=True) as part, part.open("wb") as file:
            np.savez(file, **arrays)
    return len(dataset)


def _entry(row: int, position: int) -> int | list[int]:
    """Return how `negatives.jsonl` names a positive of a row."""
    return row if position == 0 else [row, position]


def _hashes(items: Iterable[Any]) -> np.ndarray:
    return np.array([content_hashes(item) for item in items], dtype=np.int64).reshape(-1, 2)


def _stop_if_strict(script: ScriptArguments, rejected: Mapping[int, str]) -> None:
    if script.strict and rejected:
        raise ValueError(rejected[min(rejected)])


def main(data: DataArguments, script: ScriptArguments, ignored: Sequence[str] = ()) -> None:
    output = Path(script.output_dir)
    data = replace(data, mined_file=None, rejected_file=None)  # the output files number all rows of the dataset
    folder = output / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    made_with = {"model": script.model, "revision": fingerprint(script.model), "data": vars(data)}
    made_with["format"] = CHUNK_FORMAT
    keep_settings(output / "settings.json", made_with, "embeddings of another model, dataset or version")
    num_rows = embed(script, data, folder)
    files = {file.name.split(".")[0]: file for file in sorted(folder.glob("*.*.npz"))}
    num_chunks = len(range(0, num_rows, CHUNK_ROWS))
    if len(files) < num_chunks:
        print(f"{len(files)} of {num_chunks} chunks are done: run the other shards, then repeat this command")
        return

    chunks = [np.load(file) for file in files.values()]
    # Chunks without good rows have empty arrays without dimensions.
    names = ("row", "num_positives", "queries", "positives", "query_hashes", "positive_hashes", "label", "task")
    row_indices, num_positives, queries, positives, query_hashes, positive_hashes, labels, tasks = (
        np.concatenate([chunk[name] for chunk in chunks if len(chunk["row"])] or [chunks[0][name]]) for name in names
    )
    # Of each positive: its row among the good ones, and its position in that row.
    row_of_positive = np.repeat(np.arange(len(num_positives)), num_positives)
    position = np.arange(len(row_of_positive)) - np.repeat(np.cumsum(num_positives) - num_positives, num_positives)
    rejected = {int(row): why for chunk in chunks for row, why in json.loads(str(chunk["rejected"])).items()}
    _stop_if_strict(script, rejected)  # also for chunks of earlier runs
    write_rejected(output / "rejected.jsonl", rejected)
    negatives: list[list[int | list[int]]] = [[] for _ in range(num_rows)]
    report = {}
    pools = tasks if script.pool == "task" else np.repeat("all", len(tasks))
    for pool in tqdm(np.unique(pools), unit="pool", desc="Searching"):
        rows = np.flatnonzero(pools == pool)
        of_pool = np.flatnonzero(pools[row_of_positive] == pool)
        _, first, candidate = np.unique(positive_hashes[of_pool, 0], return_index=True, return_inverse=True)
        distinct = of_pool[first]  # one positive for each candidate
        mined, counts = mine_hard_negatives(
            queries[rows],
            positives[distinct],
            np.split(candidate, np.cumsum(num_positives[rows])[:-1]),
            labels[rows],
            query_hashes[rows, 1],
            positive_hashes[distinct, 1],
            num_negatives=script.num_negatives,
            range_min=script.range_min,
            range_max=script.range_max,
            max_score=script.max_score,
            absolute_margin=script.absolute_margin,
            relative_margin=script.relative_margin,
        )
        for row, candidates in zip(rows, mined, strict=True):
            negatives[row_indices[row]] = [
                _entry(int(row_indices[row_of_positive[index]]), int(position[index]))
                for index in distinct[np.array(candidates, dtype=np.int64)]
            ]
        report[str(pool)] = {"queries": len(rows), "candidates": len(distinct), **counts}
    with atomic_write(output / "negatives.jsonl") as part:
        part.write_text("".join(f"{json.dumps(rows)}\n" for rows in negatives))
    with atomic_write(output / "report.json") as part:
        part.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(sum(map(Counter, report.values()), Counter()), indent=2))
    if rejected:
        print(f"{len(rejected)} of {num_rows} rows were rejected, see {output / 'rejected.jsonl'} for the reasons")


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ScriptArguments)).parse_args_and_config(return_remaining_strings=True))
