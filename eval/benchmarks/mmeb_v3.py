"""The text tasks of MMEB-V3, and the tool retrieval of its agent tasks.

Text: 53 sets of instructed, reasoning, long, multi-condition and general retrieval, ndcg@5 with the published
relevances. Tools: 35 sets in which a request retrieves the documentation of tools that serve it, hit@1. A query is
compared with all candidates of its set (text) or of its kind: web, code or customized (tools). `distributions` has the
means of the collections. Texts have no instruction of their own: an instruction of a row stands before its query.
Queries without a positive among the candidates are left out; VLM2Vec's code counts them as wrong.

Sets, files and columns: `experiments/public/eval/text.yaml` and `tool.yaml`, `src/data/eval_dataset/
complex_text_retrieve.py` and `toolde_dataset.py` of TIGER-AI-Lab/VLM2Vec on GitHub (commit 1e402c4); metrics: tables 9
and 10 of the paper, as its `experiments/mmebv3_reproduction` cites them. The GUI and memory tasks, audio and MCMR are
not here: the candidates of the first two cannot be told from the public code, and audio is not supported.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ...data.hub_tables import select_subsets
from ...data.jsonl import json_lines, parse_object
from ..tasks import RetrievalTask


Rows = list[dict[str, Any]]

# collection -> its sets
_TEXTS = {
    "BRIGHT": (
        "aops", "biology", "earth_science", "economics", "leetcode", "pony", "psychology", "robotics", "stackoverflow",
        "sustainable_living", "theoremqa_questions", "theoremqa_theorems",
    ),
    "FollowIR": ("core17-instructions", "news21-instructions", "robust04-instructions"),
    "InfoSearch": ("Audience-v1", "Clarity-v1", "Format-v1", "Language-v1", "Length-v1", "Source-v1"),
    "LongEmbed": ("2wikimqa", "narrativeqa", "needle", "passkey", "qmsum", "summ_screen_fd"),
    "MultiConIR": ("Books", "Legal Document", "Medical Case", "Movies", "People"),
    "NanoBEIR": (
        "NanoArguAna", "NanoClimateFEVER", "NanoDBPedia", "NanoFEVER", "NanoFiQA2018", "NanoHotpotQA", "NanoMSMARCO",
        "NanoNFCorpus", "NanoNQ", "NanoQuoraRetrieval", "NanoSCIDOCS", "NanoSciFact", "NanoTouche2020",
    ),
    "R2MED": (
        "Bioinformatics", "Biology", "IIYi-Clinical", "MedQA-Diag", "MedXpertQA-Exam", "Medical-Sciences",
        "PMC-Clinical", "PMC-Treatment",
    ),
}  # fmt: skip
_TOOLS = {
    "web": (
        "apibank", "apigen", "mnms", "reversechain", "rotbench", "t-eval-dialog", "t-eval-step", "taskbench-daily",
        "toolace", "toolbench", "toolemu", "tooleyes", "toollens", "ultratool", "autotools-food", "autotools-music",
        "autotools-weather", "restgpt-spotify", "restgpt-tmdb",
    ),
    "code": (
        "craft-math-algebra", "craft-tabmwp", "craft-vqa", "gorilla-huggingface", "gorilla-pytorch", "gorilla-tensor",
        "toolink",
    ),
    "customized": (
        "appbench", "gpt4tools", "gta", "taskbench-huggingface", "taskbench-multimedia", "metatool", "tool-be-honest",
        "toolalpaca", "toolbench-sam",
    ),
}  # fmt: skip
TEXT_SETS = tuple(f"{collection}/{name}" for collection, names in _TEXTS.items() for name in names)
TOOL_SETS = tuple(f"{kind}/{name}" for kind, names in _TOOLS.items() for name in names)
_INSTRUCTIONS = {"InfoSearch": "instruction_changed", "FollowIR": "instruction_og"}
_PART = "00000-of-00001.parquet"


def text_files(name: str) -> tuple[str, str, str | None]:
    """Return the files of queries, candidates and judgments of a text set; BRIGHT has the judgments in its queries."""
    collection, _, part = name.partition("/")
    folder = f"text-tasks/{collection}/{part}"
    match collection:
        case "BRIGHT":
            root = f"text-tasks/{collection}"
            return f"{root}/examples/{part}-{_PART}", f"{root}/documents/{part}-{_PART}", None
        case "NanoBEIR":
            queries, corpus, qrels = (f"{folder}/{table}/train-{_PART}" for table in ("queries", "corpus", "qrels"))
            return queries, corpus, qrels
        case "MultiConIR":
            folder = f"text-tasks/MultiConIR_v2/{part}"
    queries = "query.jsonl" if collection == "R2MED" else "queries.jsonl"
    qrels = "qrels_og/test.jsonl" if collection in _INSTRUCTIONS else "qrels.jsonl"
    return f"{folder}/{queries}", f"{folder}/corpus.jsonl", f"{folder}/{qrels}"


def tool_files(name: str) -> tuple[str, str]:
    """Return the files of queries and candidates of a tool set."""
    kind = name.partition("/")[0]
    return f"tool-tasks/ToolDe-Queries/{name}/queries-{_PART}", f"tool-tasks/ToolDe-Candidates/{kind}/tools-{_PART}"


def texts(folder: str | Path, subsets: Sequence[str] | None = None) -> list[RetrievalTask]:
    """Open text sets.

    Args:
        folder (`str` or `Path`): Clone of VLM2Vec/MMEB-V3 on the Hub, with its archives unpacked.
        subsets (`Sequence[str]`, *optional*, defaults to all): Some of `TEXT_SETS`.

    Raises:
        ValueError: A subset is unknown, a file is missing, or no query has a positive.
    """
    return [_text_task(name, Path(folder)) for name in select_subsets(subsets, TEXT_SETS, "MMEB-V3's text tasks")]


def tools(folder: str | Path, subsets: Sequence[str] | None = None) -> list[RetrievalTask]:
    """Open tool sets.

    Args:
        folder (`str` or `Path`): Clone of VLM2Vec/MMEB-V3 on the Hub, with its archives unpacked.
        subsets (`Sequence[str]`, *optional*, defaults to all): Some of `TOOL_SETS`.

    Raises:
        ValueError: A subset is unknown, a file is missing, or no query has a positive.
    """
    names = select_subsets(subsets, TOOL_SETS, "MMEB-V3's tool tasks")
    candidates: dict[str, dict[str, str]] = {}  # of a kind, shared by its sets
    tasks = []
    for name in names:
        query_file, tool_file = tool_files(name)
        if tool_file not in candidates:
            rows = _read(Path(folder) / tool_file)
            candidates[tool_file] = _by_id(rows, lambda row: _documentation(row.get("documentation")))
        queries = [
            (_with_instruction(row, "instruction", ("query",)), dict.fromkeys(_labels(row), 1.0))
            for row in _read(Path(folder) / query_file)
        ]
        tasks.append(_task(name, candidates[tool_file], queries, "hit@1"))
    return tasks


def _text_task(name: str, folder: Path) -> RetrievalTask:
    query_file, corpus_file, qrels_file = text_files(name)
    query_rows, corpus_rows = _read(folder / query_file), _read(folder / corpus_file)
    judgments = None if qrels_file is None else _judgments(_read(folder / qrels_file))
    instruction = _INSTRUCTIONS.get(name.partition("/")[0], "")
    queries = []
    for row in query_rows:
        text = _with_instruction(row, instruction, ("text", "query", "query_content", "short_query"))
        if judgments is None:
            relevance = {str(document): 1.0 for document in row.get("gold_ids") or row.get("gold_ids_long") or ()}
        else:
            relevance = judgments.get(str(_first(row, "_id", "id", "qid", "query_id", "query-id")), {})
        queries.append((text, relevance))
    documents = _by_id(corpus_rows, _document)
    return _task(name, documents, queries, "ndcg@5")


def _task(
    name: str, candidates: Mapping[str, str], queries: Iterable[tuple[str, Mapping[str, float]]], metric: str
) -> RetrievalTask:
    index_of_id = {candidate: index for index, candidate in enumerate(candidates)}
    texts, positives, relevances = [], [], []
    for text, relevance in queries:
        known = {index_of_id[candidate]: score for candidate, score in relevance.items() if candidate in index_of_id}
        if text and known:
            texts.append(text)
            positives.append(list(known))
            relevances.append(list(known.values()))
    if not texts:
        raise ValueError(
            f"MMEB-V3 {name}: no query has a positive among the {len(candidates)} candidates; use the published files"
        )
    return RetrievalTask(
        name,
        "text",
        [{"text": text} for text in texts],
        [{"text": text} for text in candidates.values()],
        positives,
        distribution=name.partition("/")[0],
        relevance=relevances if metric.startswith("ndcg") else None,
        metric=metric,
    )


def _read(path: Path) -> Rows:
    """Read a JSON Lines or Parquet file."""
    if not path.is_file():
        raise ValueError(f"MMEB-V3: there is no file {path}; give the clone of VLM2Vec/MMEB-V3 as --mmeb-v3-folder")
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    rows = []
    for number, line in json_lines(path):
        row = parse_object(line)
        if row is None:
            raise ValueError(f"MMEB-V3: line {number} of {path} is not a JSON object; use the file as published")
        rows.append(row)
    return rows


def _first(row: Mapping[str, Any], *keys: str) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _with_instruction(row: Mapping[str, Any], instruction: str, keys: Sequence[str]) -> str:
    text = next((row[key] for key in keys if row.get(key)), "")
    return f"{row.get(instruction) or ''} {text}".strip()


def _by_id(rows: Iterable[Mapping[str, Any]], text_of: Callable[[Mapping[str, Any]], str]) -> dict[str, str]:
    """Return the text of each id; candidates without an id or a text are left out, as by VLM2Vec."""
    texts = {}
    for row in rows:
        candidate, text = _first(row, "_id", "id", "doc_id", "document_id", "corpus-id"), text_of(row)
        if candidate is not None and text:
            texts[str(candidate)] = text
    return texts


def _document(row: Mapping[str, Any]) -> str:
    title, text = row.get("title") or "", row.get("text") or row.get("content") or ""
    return f"{title}\n{text}" if title and text else text


def _judgments(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return query -> document -> relevance, for relevances above 0; 1 where there is none."""
    judgments: dict[str, dict[str, float]] = {}
    for row in rows:
        query = _first(row, "query_id", "query-id", "qid", "q_id", "id")
        document = _first(row, "corpus_id", "corpus-id", "doc_id", "document_id", "p_id")
        score = float(row.get("label", row.get("score", 1)))
        if query is not None and document is not None and score > 0:
            judgments.setdefault(str(query), {})[str(document)] = score
    return judgments


def _documentation(value: Any) -> str:
    """Return the documentation of a tool: JSON objects in one spelling, anything else as it is."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            return value
    else:
        parsed = value
    return json.dumps(parsed) if isinstance(parsed, dict) else str(parsed)


def _labels(row: Mapping[str, Any]) -> list[str]:
    """Return the ids of a query's tools: a list of ids or of objects with an id, or JSON of one."""
    labels = _first(row, "label", "labels")
    if isinstance(labels, str):
        try:
            labels = json.loads(labels)
        except ValueError:
            return []
    labels = labels if isinstance(labels, list) else [labels]
    return [
        label["id"] if isinstance(label, dict) else label
        for label in labels
        if isinstance(label, str) or (isinstance(label, dict) and "id" in label)
    ]
