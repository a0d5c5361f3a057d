"""Mine hard negatives for stage 2 with any embedder, from the whole dataset.

    python recipes/mine.py --config recipes/tiny/stage2.yaml --model checkpoints/unime-tiny --output_dir runs/mined
    accelerate launch recipes/stage2.py --config recipes/tiny/stage2.yaml --mined runs/mined/negatives.jsonl

Takes the data settings of a stage-2 recipe and passes all others over. Queries look for candidates of their own task.
Embeddings are kept in parts, so that a run that was cut off goes on, and parts can be made by several machines
(`--part`, `--parts`) on a shared disk.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from trl import TrlParser

from unime.data.mining import mine
from unime.data.rows import content_hash, label_hash
from unime.data.sources import DataArguments, open_rows
from unime.eval.embedders import load_embedder


CHUNK = 4096  # rows of one file of embeddings


@dataclass
class ScriptArguments:
    """What to mine with, and which negatives to take; see `unime.data.mining.mine`."""

    model: str = field(metadata={"help": "UniME, CLIP or any SentenceTransformer that takes the items."})
    output_dir: str = field(metadata={"help": "Where embeddings, negatives.jsonl and report.json go."})
    k: int = field(default=5, metadata={"help": "Negatives per query."})
    first: int = field(default=0, metadata={"help": "Rank of the hardest candidate to look at."})
    last: int = field(default=100, metadata={"help": "Rank before which to stop looking."})
    max_score: float | None = field(default=None, metadata={"help": "Most similarity of a negative."})
    absolute_margin: float | None = field(default=None, metadata={"help": "Least distance below the positive."})
    relative_margin: float | None = field(default=0.05, metadata={"help": "Least share below the positive."})
    part: int = field(default=0, metadata={"help": "Which part of the embeddings this run makes."})
    parts: int = field(default=1, metadata={"help": "How many runs share the embeddings."})


def embed(script: ScriptArguments, data: DataArguments, folder: Path) -> int:
    """Embed queries and positives, chunk by chunk, those that are not there yet; returns the number of rows."""
    dataset = open_rows(data)
    starts = range(0, len(dataset), CHUNK)[script.part :: script.parts]
    missing = [start for start in starts if not (folder / f"{start:09d}.npz").exists()]
    encode = load_embedder(script.model).encode if missing else None
    for start in tqdm(missing, unit="chunk", desc="Embedding"):
        rows = [dataset[row] for row in range(start, min(start + CHUNK, len(dataset)))]
        tasks = [row["task"] for row in rows]
        part = folder / f"{start:09d}.part"
        with part.open("wb") as file:
            np.savez(
                file,
                queries=encode([row["query"] for row in rows]),
                positives=encode([row["positive"] for row in rows]),
                content=np.array([content_hash(row["positive"]) for row in rows]),
                label=np.array([label_hash(row["task"], row["label"]) for row in rows]),
                task=np.array(tasks),
            )
        part.rename(folder / f"{start:09d}.npz")  # whole or not there
    return len(dataset)


def main(data: DataArguments, script: ScriptArguments, others: Sequence[str] = ()) -> None:
    output = Path(script.output_dir)
    folder = output / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({"model": script.model, "data": vars(data)}, indent=2, default=str)
    known = output / "settings.json"
    if known.exists() and known.read_text() != settings:
        raise ValueError(f"{output} holds embeddings of another model or dataset: choose another output_dir")
    known.write_text(settings)
    size = embed(script, data, folder)
    files = sorted(folder.glob("*.npz"))
    if len(files) < len(range(0, size, CHUNK)):
        print(f"{len(files)} of {len(range(0, size, CHUNK))} chunks are there: run the other parts, then this again")
        return

    chunks = [np.load(file) for file in files]
    queries, positives, content, label, task = (
        np.concatenate([chunk[name] for chunk in chunks])
        for name in ("queries", "positives", "content", "label", "task")
    )
    negatives: list[list[int]] = [[] for _ in range(size)]
    report = {}
    for name in tqdm(np.unique(task), unit="task", desc="Searching"):
        rows = np.flatnonzero(task == name)
        _, distinct, number = np.unique(content[rows], return_index=True, return_inverse=True)
        mined, counts = mine(
            queries[rows],
            positives[rows[distinct]],
            number,
            label[rows],
            k=script.k,
            first=script.first,
            last=script.last,
            max_score=script.max_score,
            absolute_margin=script.absolute_margin,
            relative_margin=script.relative_margin,
        )
        for row, found in zip(rows, mined, strict=True):
            negatives[row] = rows[distinct[found]].tolist() if found else []
        report[str(name)] = {"queries": len(rows), "candidates": len(distinct), **counts}
    (output / "negatives.jsonl").write_text("".join(f"{json.dumps(found)}\n" for found in negatives))
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(sum(map(Counter, report.values()), Counter()), indent=2))


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ScriptArguments)).parse_args_and_config(return_remaining_strings=True))
