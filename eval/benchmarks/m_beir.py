"""M-BEIR (Wei et al., arXiv 2311.17136): sixteen retrieval tasks with instructions, each on its own candidates.

Queries and candidates are texts, images, or both. The score of a task is the share of queries with a positive among
the first 5 candidates, R@5, or among the first 10 for Fashion200K and FashionIQ; `overall` is the mean over the 16.
This is the local pool: the tasks' candidates are not joined. An instruction is added to each query; of the
instructions that M-BEIR lists for a task, the first is used, where UniIR draws one at random. Candidates have none.

Layout, text clean-up and recall: `src/data/mbeir_dataset.py`, `src/data/preprocessing/utils.py` and
`src/common/mbeir_retriever.py` of TIGER-AI-Lab/UniIR on GitHub; files and metrics of each task: its
`src/models/uniir_clip/clip_scorefusion/configs_scripts/large/eval/inbatch/retrieval.yaml`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...data.hub_tables import select_subsets
from ...data.jsonl import json_lines, parse_object
from ..image_folder import ImageFolder
from ..tasks import RetrievalTask


MODALITIES = {
    "task0": ("text", "image"),
    "task1": ("text", "text"),
    "task2": ("text", "image,text"),
    "task3": ("image", "text"),
    "task4": ("image", "image"),
    "task6": ("image,text", "text"),
    "task7": ("image,text", "image"),
    "task8": ("image,text", "image,text"),
}
SETS = (
    "visualnews_task0",
    "mscoco_task0",
    "fashion200k_task0",
    "webqa_task1",
    "edis_task2",
    "webqa_task2",
    "visualnews_task3",
    "mscoco_task3",
    "fashion200k_task3",
    "nights_task4",
    "oven_task6",
    "infoseek_task6",
    "fashioniq_task7",
    "cirr_task7",
    "oven_task8",
    "infoseek_task8",
)


def tasks(folder: str | Path, subsets: Sequence[str] | None = None) -> list[RetrievalTask]:
    """Open the tasks.

    Args:
        folder (`str` or `Path`): Clone of TIGER-Lab/M-BEIR with its images unpacked in it: `query/test`,
            `cand_pool/local`, `qrels/test`, `instructions/query_instructions.tsv` and `mbeir_images`.
        subsets (`Sequence[str]`, *optional*, defaults to all): Some of `SETS`.

    Raises:
        ValueError: A subset is unknown, a file or an image is missing, or a line has another form.
    """
    names = select_subsets(subsets, SETS, "M-BEIR")
    instructions = _read_instructions(Path(folder) / "instructions" / "query_instructions.tsv")
    return [_task(name, Path(folder), instructions) for name in names]


def _task(name: str, folder: Path, instructions: dict[tuple[str, str, str], str]) -> RetrievalTask:
    query_modality, candidate_modality = MODALITIES[name.rpartition("_")[2]]
    # COCO has other candidates for validation.
    pool = f"mbeir_{name}{'_test' if name.startswith('mscoco') else ''}_cand_pool.jsonl"
    candidates, index_of_id = [], {}
    for where, row in _rows(folder / "cand_pool" / "local" / pool, ("did",)):
        index_of_id[row["did"]] = len(candidates)
        candidates.append(_item(where, row.get("img_path"), _sentence(row.get("txt") or "")))
    qrels = _read_qrels(folder / "qrels" / "test" / f"mbeir_{name}_test_qrels.txt")
    queries, positives = [], []
    for where, row in _rows(folder / "query" / "test" / f"mbeir_{name}_test.jsonl", ("qid",)):
        key = (row["qid"].partition(":")[0], query_modality, candidate_modality)
        if key not in instructions:
            raise ValueError(
                f"{where}: query_instructions.tsv has no instruction for {', '.join(key)}; use the files as published"
            )
        instruction = instructions[key]
        text = _sentence(f"{instruction} {row.get('query_txt') or ''}")[len(instruction) :].lstrip()
        queries.append(_item(where, row.get("query_img_path"), text) | {"instruction": instruction})
        right = [index_of_id[did] for did in qrels.get(row["qid"], ()) if did in index_of_id]
        if not right:
            raise ValueError(
                f"{where}: the query {row['qid']} has no positive in {pool}; use queries, qrels and candidates of the "
                "same copy of M-BEIR"
            )
        positives.append(right)
    images = ImageFolder(f"M-BEIR {name}", folder, "unpack mbeir_images.tar.gz in the folder of M-BEIR")
    return RetrievalTask(
        name,
        "retrieval",
        images.lazy_items(queries, "query {}".format),
        images.lazy_items(candidates, "candidate {}".format),
        positives,
        metric="R@10" if name.startswith("fashion") else "R@5",
    )


def _item(where: str, image: Any, text: str) -> dict[str, str]:
    if image is not None and not isinstance(image, str):
        raise ValueError(f"{where}: expected the path of an image, got {image!r}; use the files as published")
    item = ({"image": image} if image else {}) | ({"text": text} if text else {})
    if not item:
        raise ValueError(f"{where}: there is neither text nor image; use the files as published")
    return item


def _rows(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the object of each line."""
    _require(path)
    for number, line in json_lines(path):
        where, row = f"M-BEIR {path.name}, line {number}", parse_object(line) or {}
        missing = [key for key in keys if not isinstance(row.get(key), str)]
        if missing:
            raise ValueError(f"{where}: missing {', '.join(missing)}; use the files as published")
        yield where, row


def _read_qrels(path: Path) -> dict[str, list[str]]:
    """Return the positives of each query: lines of query, an unused number, candidate, relevance and task."""
    _require(path)
    positives: dict[str, dict[str, None]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            query, _, candidate, relevance, _ = line.split()
            if int(relevance) > 0:
                positives.setdefault(query, {})[candidate] = None
        except ValueError:
            raise ValueError(
                f"M-BEIR {path.name}, line {number}: expected query, 0, candidate, relevance and task; use the files "
                "as published"
            ) from None
    return {query: list(candidates) for query, candidates in positives.items()}


def _read_instructions(path: Path) -> dict[tuple[str, str, str], str]:
    """Return the first instruction of each dataset (by number), modality of queries, and modality of candidates."""
    _require(path)
    instructions = {}
    for line in path.read_text(encoding="utf-8").split("\n")[1:]:
        query_modality, candidate_modality, _, dataset, *prompts = [*line.strip().split("\t"), "", "", ""]
        if any(prompts):
            instructions[dataset, query_modality, candidate_modality] = _sentence(next(filter(None, prompts)))
    return instructions


def _require(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"M-BEIR: there is no file {path}; give the clone of TIGER-Lab/M-BEIR as --m-beir-folder")


def _sentence(text: str) -> str:
    """Return a text as UniIR reads it: with a capital letter at the start and a punctuation mark at the end."""
    text = text.replace("\r", "").strip().strip('"')
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."
