"""Score mined hard negatives with a judge, and choose the negatives of each row by its scores (UniME-V2, 2510.13515).

    python recipes/mine.py --config recipes/tiny/stage2.yaml --model checkpoints/unime-tiny --output_dir runs/mined \
        --num_negatives 50 --relative_margin 0
    torchrun --nproc_per_node 8 recipes/judge.py --config recipes/tiny/stage2.yaml \
        --mined_file runs/mined/negatives.jsonl --judge Qwen/Qwen2.5-VL-7B-Instruct --output_dir runs/judged
    accelerate launch recipes/stage2.py --config recipes/tiny/stage2.yaml \
        --mined_file runs/judged/negatives.jsonl --soft_label_weight 1

The script takes the data settings of a stage-2 recipe and ignores all others. The judge is any image-text model of
transformers, or with `--endpoint` any model behind an OpenAI-compatible server that returns log-probabilities. It
judges a row's positives, its explicit negatives and its mined negatives (`recipes/mine.py`); the filter and the
sampling choose among the mined ones. Scores are saved in chunks with checksums: the same command resumes an
interrupted run, and with other settings of the filter it judges nothing again. The processes of `torchrun` or
`accelerate launch` share the chunks. Rows that cannot be read or judged are listed with the reasons in
`rejected.jsonl`; their lines in `negatives.jsonl` are empty lists.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from trl import TrlParser

from unime.checkpoint import fingerprint
from unime.data.judge_page import write_judge_page
from unime.data.judged import MARGIN, Choice, judged_line
from unime.data.mining import Mined, read_mined
from unime.data.rejected_rows import write_rejected
from unime.data.row_forms import row_positives
from unime.data.sources import DataArguments, open_rows
from unime.data.validation import read_or_explain
from unime.image_size import parse_image_size
from unime.judge_endpoint import JudgeEndpoint
from unime.judge_model import JudgeModel
from unime.judging import PUBLISHED_REPETITION_PENALTY
from unime.reranker import load_reranker
from unime.storage.atomic_files import atomic_write, intact_files
from unime.storage.run_settings import keep_settings


CHUNK_ROWS = 64  # rows of one file of scores; a killed process loses at most one file


@dataclass
class ScriptArguments:
    """The judge, and which of the judged candidates to keep; see `unime.data.judged.choose_negatives`."""

    judge: str = field(metadata={"help": "Image-text model of transformers, or the name of a served model."})
    output_dir: str = field(
        metadata={"help": "Folder for scores, negatives.jsonl, rejected.jsonl, report.json and report.html."}
    )
    endpoint: str | None = field(
        default=None, metadata={"help": "OpenAI-compatible server of the judge, such as http://localhost:8000/v1."}
    )
    concurrency: int = field(default=32, metadata={"help": "With `endpoint`: requests at the same time."})
    judge_image_size: str | None = field(
        default=None,
        metadata={"help": "Size at which the judge reads images, like `image_size`. Default: the model's own."},
    )
    judge_dtype: str = field(default="bfloat16", metadata={"help": "Type of the judge's weights."})
    judge_attn_implementation: str | None = field(default=None, metadata={"help": "Attention of the judge."})
    repetition_penalty: float = field(
        default=PUBLISHED_REPETITION_PENALTY,
        metadata={"help": "Repetition penalty behind which scores are read; 1 for none. 1.05 as published."},
    )
    batch_tokens: int = field(default=16384, metadata={"help": "Tokens of a forward pass of the judge."})
    share_query: bool = field(
        default=True, metadata={"help": "Whether the tokens that a query's candidates share pass through once."}
    )
    num_negatives: int = field(default=10, metadata={"help": "Negatives per row; fewer candidates are repeated."})
    margin: float = field(
        default=MARGIN, metadata={"help": "A candidate is dropped if it scores above the positive minus this."}
    )
    num_examples: int = field(default=24, metadata={"help": "Rows that report.html shows, evenly spaced."})


class Candidates:
    """The rows of a dataset with the mined negatives of each; `data` has no mined and no rejected file."""

    def __init__(self, dataset: Dataset, mined: Sequence[Mined]):
        self.dataset, self.mined = dataset, mined

    def read(self, index: int) -> dict[str, Any] | str:
        """Return a row with the items of its mined negatives as `mined`, or the reason why it cannot be judged."""
        row = read_or_explain(self.dataset, index)
        if isinstance(row, str):
            return row
        items = []
        for other, position in self.mined[index][0]:
            try:
                items.append(row_positives(self.dataset[other], f"row {other}")[position])
            except (ValueError, IndexError) as error:
                return f"row {index}: its mined negative [{other}, {position}] cannot be read ({error}): mine again"
        where = row.get("where") or f"row {index}"
        return row | {"positives": row_positives(row, where), "mined": items, "where": where}


def load_judge(script: ScriptArguments) -> JudgeModel | JudgeEndpoint:
    """Load the judge onto this process's device, or connect to its server."""
    if script.endpoint is not None:
        penalty, concurrency = script.repetition_penalty, script.concurrency
        return JudgeEndpoint(script.endpoint, script.judge, repetition_penalty=penalty, concurrency=concurrency)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    attention = script.judge_attn_implementation
    model, processor = load_reranker(
        script.judge, script.judge_image_size, dtype=script.judge_dtype, attn_implementation=attention
    )
    return JudgeModel(
        model.to(device),
        processor,
        repetition_penalty=script.repetition_penalty,
        batch_tokens=script.batch_tokens,
        share_query=script.share_query,
    )


def judge_chunk(judge: JudgeModel | JudgeEndpoint, rows: Candidates, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return for each row of a chunk its scores, or the reason why it has none."""
    judged: list[dict[str, Any]] = []
    for index in indices:
        row = rows.read(index)
        if isinstance(row, str):
            judged.append({"row": index, "rejected": row})
            continue
        try:
            scores = judge(row["query"], [*row["positives"], *row["negatives"], *row["mined"]])
        except ValueError as error:
            judged.append({"row": index, "rejected": f"{row['where']}: {error}"})
            continue
        judged.append({"row": index, "positives": len(row["positives"]), "explicit": len(row["negatives"])})
        judged[-1]["scores"] = scores
    return judged


def main(data: DataArguments, script: ScriptArguments, ignored: Sequence[str] = ()) -> None:
    output = Path(script.output_dir)
    folder = output / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    mined_file = data.mined_file
    # The files number all rows of the dataset.
    dataset = cast(Dataset, open_rows(replace(data, mined_file=None, rejected_file=None, streaming=False)))
    num_rows = len(dataset)
    mined = [([], None)] * num_rows if mined_file is None else read_mined(mined_file, num_rows)
    made_with = {
        "judge": script.judge,
        "revision": fingerprint(script.judge) if script.endpoint is None else script.endpoint,
        "repetition_penalty": script.repetition_penalty,
        "dtype": script.judge_dtype,
        "image_size": parse_image_size(script.judge_image_size),
        "data": vars(replace(data, mined_file=None, rejected_file=None)),
        "mined": None if mined_file is None else hashlib.blake2b(Path(mined_file).read_bytes()).hexdigest(),
        "chunk_rows": CHUNK_ROWS,
    }
    keep_settings(output / "settings.json", made_with, "scores of another judge, dataset or mined file")

    rows = Candidates(dataset, mined)
    starts = range(0, num_rows, CHUNK_ROWS)
    rank, num_processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    saved = {file.name.split(".")[0] for file in intact_files(folder, "*.*.json")}
    missing = [start for start in starts[rank::num_processes] if f"{start:09d}" not in saved]
    if missing:
        judge = load_judge(script)
    for start in tqdm(missing, unit="chunk", desc="Judging", disable=rank > 0):
        judged = judge_chunk(judge, rows, range(start, min(start + CHUNK_ROWS, num_rows)))
        with atomic_write(folder / f"{start:09d}.json", sealed=True) as part:
            part.write_text(json.dumps(judged))

    files = {file.name.split(".")[0]: file for file in sorted(folder.glob("*.*.json"))}
    if len(files) < len(starts):  # the last process to end writes the result
        print(f"{len(files)} of {len(starts)} chunks are judged: wait for the other processes, or repeat the command")
        return
    write_results(output, [row for file in files.values() for row in json.loads(file.read_text())], rows, script)


def write_results(output: Path, judged: Sequence[dict[str, Any]], rows: Candidates, script: ScriptArguments) -> None:
    """Choose the negatives of all rows, and write the files."""
    rejected = {row["row"]: row["rejected"] for row in judged if "rejected" in row}
    choices: dict[int, Choice] = {}
    lines: list[Any] = [[] for _ in judged]
    for row in judged:
        if row["row"] not in rejected:
            mined, (scores, positives) = rows.mined[row["row"]][0], (row["scores"], row["positives"])
            choices[row["row"]], lines[row["row"]] = judged_line(
                mined, scores, positives, script.num_negatives, script.margin
            )
    with atomic_write(output / "negatives.jsonl") as part:
        part.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_rejected(output / "rejected.jsonl", rejected)
    report = summary([row for row in judged if row["row"] in choices], choices)
    with atomic_write(output / "report.json") as part:
        part.write_text(json.dumps(report | {"rejected": len(rejected)}, indent=2) + "\n")
    step = max(len(choices) // max(script.num_examples, 1), 1)
    shown = sorted(choices)[::step][: script.num_examples]
    examples = []
    for index in shown:
        example = rows.read(index)
        if not isinstance(example, str):
            examples.append((example, judged[index]["scores"], choices[index]))
    settings = asdict(script) | {"rows": len(judged)}
    with atomic_write(output / "report.html") as part:
        part.write_text(write_judge_page(settings, report, examples, rejected))
    print(json.dumps(report, indent=2))
    if rejected:
        print(f"{len(rejected)} of {len(judged)} rows were rejected, see {output / 'rejected.jsonl'} for the reasons")


def summary(judged: Sequence[dict[str, Any]], choices: dict[int, Choice]) -> dict[str, Any]:
    """Return what the judge and the filter did, over all rows."""
    positives = [score for row in judged for score in row["scores"][: row["positives"]]]
    candidates = [score for row in judged for score in row["scores"][row["positives"] + row["explicit"] :]]
    return {
        "rows": len(judged),
        "judged pairs": sum(len(row["scores"]) for row in judged),
        "mined candidates": len(candidates),
        "mean score of positives": round(sum(positives) / max(len(positives), 1), 4),
        "mean score of mined candidates": round(sum(candidates) / max(len(candidates), 1), 4),
        "dropped by the filter": sum(len(choice.dropped) for choice in choices.values()),
        "rows left unfiltered": sum(choice.unfiltered for choice in choices.values()),
        "rows with repeated negatives": sum(
            len(set(choice.negatives)) < len(choice.negatives) for choice in choices.values()
        ),
        "rows without negatives": sum(not choice.negatives for choice in choices.values()),
    }


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ScriptArguments)).parse_args_and_config(return_remaining_strings=True))
