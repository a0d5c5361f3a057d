"""Speed of text and image embedding in ONNX Runtime and in torch, by batch size and length.

    python benchmarks/text_onnx.py --batch_sizes 1 16 --words 8 64

Both embed the same items, from strings and images to embeddings, in turn and with the same number of threads. Times
are medians of the rounds; the last column is the speedup of ONNX Runtime.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from interleaved_timing import time_interleaved
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, HfArgumentParser

from unime import load_model
from unime.export.onnx import embed_items, embed_texts, export_onnx


WORDS = ["pizza", "tile", "cat", "blue"]


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Checkpoint or backbone."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 16], metadata={"help": "Numbers of texts per call."})
    words: list[int] = field(default_factory=lambda: [8, 64], metadata={"help": "Numbers of words per text."})
    rounds: int = field(default=20, metadata={"help": "Number of timing rounds."})
    threads: int = field(default=1, metadata={"help": "Number of threads of both runtimes."})


def main(script: ScriptArguments) -> None:
    torch.set_num_threads(script.threads)
    model, processor = load_model(script.model, dtype="float32")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = script.threads
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "onnx"
        difference = export_onnx(model, processor, folder)
        session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        images = [Image.effect_mandelbrot((96, 96), (-2, -1, 1, 1), 20 + i).convert("RGB") for i in range(64)]
        print(f"{script.model}, {script.threads} threads, largest difference {difference:.1e}")
        print(f"{'items':>6}{'words':>7}{'torch, ms':>11}{'ONNX, ms':>11}{'speedup':>15}")
        for batch_size in script.batch_sizes if (folder / "vision.onnx").exists() else ():
            vision = onnxruntime.InferenceSession(folder / "vision.onnx", options)
            exported, items = AutoProcessor.from_pretrained(folder), images[:batch_size]
            compare(
                f"{batch_size:>6}{'image':>7}",
                {
                    "torch": partial(model.encode, items, processor),
                    "ONNX": partial(embed_items, vision, session, exported, items),
                },
                script.rounds,
            )
        for batch_size in script.batch_sizes:
            for words in script.words:
                texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(words)) for i in range(batch_size)]
                functions = {
                    "torch": partial(model.encode, texts, processor),
                    "ONNX": partial(embed_texts, session, tokenizer, texts),
                }
                compare(f"{batch_size:>6}{words:>7}", functions, script.rounds)


def compare(title: str, functions: dict[str, Callable[[], object]], rounds: int) -> None:
    time_interleaved(functions, 1)  # warm-up
    timings = time_interleaved(functions, rounds)
    milliseconds = "".join(f"{1e3 * timings.median(name):>11.2f}" for name in functions)
    print(f"{title}{milliseconds}{timings.speedup('torch', 'ONNX'):>15.2f}", flush=True)


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
