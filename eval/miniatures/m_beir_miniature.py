"""Miniature M-BEIR: sixteen tasks of two queries and twelve candidates."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..benchmarks.m_beir import MODALITIES, SETS
from .hub_files import save_gray_tile


CANDIDATES = 12
# Numbers of the datasets in ids.
DATASETS = ("visualnews", "fashion200k", "webqa", "edis", "nights", "oven", "infoseek", "fashioniq", "cirr", "mscoco")


def write_m_beir(folder: Path) -> Path:
    """Write the four folders of files and the images; query 0 of a task asks for 1 and 2, query 1 for 4."""
    for number in range(CANDIDATES):
        save_gray_tile(folder / "mbeir_images" / f"{number}.jpg", number)
    instructions = ["query_modality\tcand_modality\tdataset\tdataset_id\tprompt_1\tprompt_2\tprompt_3\tprompt_4"]
    for name in SETS:
        dataset, _, task = name.rpartition("_")
        number, modalities = DATASETS.index(dataset), MODALITIES[task]
        instructions.append("\t".join([*modalities, dataset, str(number), f"find what {dataset} asks for", "or so"]))
        pool = [_candidate(f"{number}:{index}", modalities[1], index) for index in range(CANDIDATES)]
        pool_name = f"{name}_test" if dataset == "mscoco" else name
        write_lines(folder / "cand_pool" / "local" / f"mbeir_{pool_name}_cand_pool.jsonl", map(json.dumps, pool))
        queries = [
            _query(f"{number}:{1000 + index}", modalities[0], wanted, [f"{number}:{one}" for one in wanted])
            for index, wanted in enumerate(([1, 2], [4]))
        ]
        write_lines(folder / "query" / "test" / f"mbeir_{name}_test.jsonl", map(json.dumps, queries))
        qrels = [f"{query['qid']} 0 {did} 1 {task[4:]}" for query in queries for did in query["pos_cand_list"]]
        write_lines(folder / "qrels" / "test" / f"mbeir_{name}_test_qrels.txt", qrels)
    write_lines(folder / "instructions" / "query_instructions.tsv", instructions)
    return folder


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file of lines; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _candidate(did: str, modality: str, number: int) -> dict[str, Any]:
    return {
        "txt": f"number {number} " if "text" in modality else None,
        "img_path": f"mbeir_images/{number}.jpg" if "image" in modality else None,
        "modality": modality,
        "did": did,
        "src_content": None,
    }


def _query(qid: str, modality: str, wanted: list[int], positives: list[str]) -> dict[str, Any]:
    return {
        "qid": qid,
        "query_txt": f"which is number {wanted[0]}?" if "text" in modality else None,
        "query_img_path": f"mbeir_images/{wanted[0]}.jpg" if "image" in modality else None,
        "query_modality": modality,
        "query_src_content": None,
        "pos_cand_list": positives,
        "neg_cand_list": [],
    }


def write_miniature(folder: Path) -> dict[str, str]:
    """Write every task, and return the argument that opens them."""
    return {"m_beir_folder": str(write_m_beir(folder / "M-BEIR").relative_to(folder))}
