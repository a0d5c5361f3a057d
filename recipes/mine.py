"""Mine hard negatives for stage 2 with any embedder, from the whole dataset.

    python recipes/mine.py --config recipes/tiny/stage2.yaml --model checkpoints/unime-tiny --output_dir runs/mined
    accelerate launch recipes/stage2.py --config recipes/tiny/stage2.yaml --mined_file runs/mined/negatives.jsonl

Takes the data settings of a stage-2 recipe and passes all others over. Queries look for candidates of their own task.
Embeddings are kept in parts, sealed by their checksums, so that a run that was cut off goes on; parts can be made by
several machines (`--shard_index`, `--num_shards`) on a shared disk. Rows that cannot be read or embedded are listed, with the
reasons, in `rejected.jsonl`, which training leaves out by `--rejected_file`; with `--strict` the first one ends the job.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from trl import TrlParser

from unime.checkpoint import fingerprint
from unime.data.isolate_failures import map_isolating_failures
from unime.data.mining import mine_hard_negatives
from unime.data.rejected_rows import write_rejected
from unime.data.rows import content_hash, label_hash
from unime.data.sources import DataArguments, open_rows
from unime.data.validation import read_or_explain
from unime.eval.encoders.loading import load_encoder
from unime.storage.atomic_files import atomic_write, intact_files


CHUNK = 1024  # rows of one file of embeddings, and most that a kill undoes


@dataclass
class ScriptArguments:
    """What to mine with, and which negatives to take; see `unime.data.mining.mine`."""

    model: str = field(metadata={"help": "UniME, CLIP or any SentenceTransformer that takes the items."})
    output_dir: str = field(metadata={"help": "Where embeddings, negatives.jsonl and report.json go."})
    num_negatives: int = field(default=5, metadata={"help": "Negatives per query."})
    range_min: int = field(default=0, metadata={"help": "Rank of the hardest candidate to look at."})
    range_max: int = field(default=100, metadata={"help": "Rank before which to stop looking."})
    max_score: float | None = field(default=None, metadata={"help": "Most similarity of a negative."})
    absolute_margin: float | None = field(default=None, metadata={"help": "Least distance below the positive."})
    relative_margin: float | None = field(default=0.05, metadata={"help": "Least share below the positive."})
    shard_index: int = field(default=0, metadata={"help": "Which part of the embeddings this run makes."})
    num_shards: int = field(default=1, metadata={"help": "How many runs share the embeddings."})
    strict: bool = field(default=False, metadata={"help": "Stop at the first bad row."})


def embed(script: ScriptArguments, data: DataArguments, folder: Path) -> int:
    """Embed queries and positives, chunk by chunk, those that are not there yet; returns the number of rows."""
    dataset = open_rows(data)
    starts = range(0, len(dataset), CHUNK)[script.shard_index :: script.num_shards]
    kept = {file.name.split(".")[0] for file in intact_files(folder, "*.*.npz")}
    missing = [start for start in starts if f"{start:09d}" not in kept]
    encode = load_encoder(script.model).encode if missing else None
    for start in tqdm(missing, unit="chunk", desc="Embedding"):
        found = {number: read_or_explain(dataset, number) for number in range(start, min(start + CHUNK, len(dataset)))}
        rejected = {number: row for number, row in found.items() if isinstance(row, str)}
        rows = {number: row for number, row in found.items() if number not in rejected}
        vectors = {}
        for side in ("query", "positive"):
            given = map_isolating_failures(encode, [row[side] for row in rows.values()], ValueError)
            vectors[side] = dict(zip(rows, given, strict=True))
            for number, vector in vectors[side].items():
                reason = str(vector) if isinstance(vector, ValueError) else None
                if reason is None and not np.isfinite(vector).all():
                    reason = "the model gave no finite vector: mend or remove the row"
                if reason is not None:
                    rejected.setdefault(number, f"{rows[number].get('where') or f'row {number}'}, {side}: {reason}")
        _stop_if_strict(script, rejected)
        good = [number for number in rows if number not in rejected]
        arrays = {
            "row": np.array(good, dtype=np.int64),
            "queries": np.array([vectors["query"][number] for number in good]),
            "positives": np.array([vectors["positive"][number] for number in good]),
            "content": np.array([content_hash(rows[number]["positive"]) for number in good], dtype=np.int64),
            "label": np.array(
                [label_hash(rows[number]["task"], rows[number]["label"]) for number in good], dtype=np.int64
            ),
            "task": np.array([rows[number]["task"] for number in good], dtype=str),
            "rejected": np.array(json.dumps(rejected)),
        }
        with atomic_write(folder / f"{start:09d}.npz", sealed=True) as part, part.open("wb") as file:
            np.savez(file, **arrays)
    return len(dataset)


def _stop_if_strict(script: ScriptArguments, rejected: Mapping[int, str]) -> None:
    if script.strict and rejected:
        raise ValueError(rejected[min(rejected)])


def main(data: DataArguments, script: ScriptArguments, others: Sequence[str] = ()) -> None:
    output = Path(script.output_dir)
    data = replace(data, mined_file=None, rejected_file=None)  # negatives.jsonl and rejected.jsonl count all rows
    folder = output / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    made = {"model": script.model, "revision": fingerprint(script.model), "data": vars(data)}
    settings = json.dumps(made, indent=2, default=str)
    known = output / "settings.json"
    if known.exists() and known.read_text() != settings:
        raise ValueError(f"{output} holds embeddings of another model or dataset: choose another output_dir")
    with atomic_write(known) as part:
        part.write_text(settings)
    size = embed(script, data, folder)
    files = {file.name.split(".")[0]: file for file in sorted(folder.glob("*.*.npz"))}
    if len(files) < len(range(0, size, CHUNK)):
        print(f"{len(files)} of {len(range(0, size, CHUNK))} chunks are there: run the other parts, then this again")
        return

    chunks = [np.load(file) for file in files.values()]
    # A chunk without any good row does not know the dimensions.
    queries, positives, content, label, task, number_of = (
        np.concatenate([chunk[name] for chunk in chunks if len(chunk["row"])] or [chunks[0][name]])
        for name in ("queries", "positives", "content", "label", "task", "row")
    )
    rejected = {int(row): why for chunk in chunks for row, why in json.loads(str(chunk["rejected"])).items()}
    _stop_if_strict(script, rejected)  # also of the chunks that were kept
    write_rejected(output / "rejected.jsonl", rejected)
    negatives: list[list[int]] = [[] for _ in range(size)]
    report = {}
    for name in tqdm(np.unique(task), unit="task", desc="Searching"):
        rows = np.flatnonzero(task == name)
        _, distinct, positive = np.unique(content[rows], return_index=True, return_inverse=True)
        mined, counts = mine_hard_negatives(
            queries[rows],
            positives[rows[distinct]],
            positive,
            label[rows],
            num_negatives=script.num_negatives,
            range_min=script.range_min,
            range_max=script.range_max,
            max_score=script.max_score,
            absolute_margin=script.absolute_margin,
            relative_margin=script.relative_margin,
        )
        for row, found in zip(rows, mined, strict=True):
            negatives[number_of[row]] = number_of[rows[distinct[found]]].tolist() if found else []
        report[str(name)] = {"queries": len(rows), "candidates": len(distinct), **counts}
    with atomic_write(output / "negatives.jsonl") as part:
        part.write_text("".join(f"{json.dumps(found)}\n" for found in negatives))
    with atomic_write(output / "report.json") as part:
        part.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(sum(map(Counter, report.values()), Counter()), indent=2))
    if rejected:
        print(f"{len(rejected)} of {size} rows were rejected: {output / 'rejected.jsonl'} says why")


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ScriptArguments)).parse_args_and_config(return_remaining_strings=True))
