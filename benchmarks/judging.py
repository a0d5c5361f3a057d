"""Throughput of the judge: the tokens of a query shared by its candidates, against whole pairs.

    python benchmarks/judging.py

Both ways judge the same candidates of each query, in turn, with the same token budget. Writes
benchmarks/results/judging.json.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import items
import torch
from interleaved_timing import time_interleaved
from models import random_model
from result_files import table, write
from transformers import AutoModelForImageTextToText, AutoProcessor

from unime.judge_model import JudgeModel
from unime.processing_unime import Item


ROOT = Path(__file__).resolve().parents[1]
TINY = "tiny-backbone"
QUESTION = "Represent the given image with the following question: what do you see in it, and where?"


def workloads(queries: int, candidates: int) -> dict[str, list[tuple[Item, Sequence[Item]]]]:
    """Return queries with their candidates, by kind."""
    images, texts = items.images(queries, seed=1), items.texts(candidates, seed=2)
    drawn = items.images(candidates, seed=3)
    questions: list[Item] = [{"image": image, "text": QUESTION} for image in images]
    return {
        "image and question, texts": [(query, texts) for query in questions],
        "text, images": [(query, drawn) for query in items.texts(queries, seed=4)],
        "image, images": [(query, drawn) for query in images],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[TINY, "llava-onevision", "qwen2-vl"], help="Models to time.")
    parser.add_argument("--queries", type=int, default=4, help="Queries of each kind.")
    parser.add_argument("--candidates", type=int, default=20, help="Candidates of a query; the paper has 50.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds, in which both ways take turns.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of PyTorch.")
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/judging.json"), help="Output file.")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            path = ROOT / "checkpoints" / TINY if name == TINY else random_model(name, Path(folder) / name)
            model = AutoModelForImageTextToText.from_pretrained(path, dtype="float32").eval()
            processor = AutoProcessor.from_pretrained(path)
            for kind, work in workloads(options.queries, options.candidates).items():
                judges = {
                    "whole pairs": JudgeModel(model, processor, share_query=False),
                    "shared query": JudgeModel(model, processor),
                }

                def judge_all(judge: Callable, work: Sequence[tuple[Item, Sequence[Item]]]) -> list[float]:
                    return [score for query, candidates in work for score in judge(query, candidates)]

                functions = {way: partial(judge_all, judge, work) for way, judge in judges.items()}
                judge_all(judges["shared query"], work[:1])  # warm up
                timings = time_interleaved(functions, options.rounds)
                pairs = zip(timings.results["whole pairs"], timings.results["shared query"], strict=True)
                rows.append(
                    {
                        "model": name,
                        "query, candidates": kind,
                        "speedup": timings.speedup("whole pairs", "shared query"),
                        "largest difference of scores": max(abs(whole - shared) for whole, shared in pairs),
                    }
                )
                print(table(rows[-1:]), flush=True)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write(options.output, settings, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
