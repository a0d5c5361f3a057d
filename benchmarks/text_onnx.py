"""Speed of text embedding in ONNX Runtime and in torch, by batch size and length.

    python benchmarks/text_onnx.py --batch_sizes 1 16 --words 8 64

Both embed the same texts, from strings to embeddings, in turn and with the same number of threads. Times are medians
of the rounds; the last column is the speedup of ONNX Runtime.
"""

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from interleaved_timing import time_interleaved
from transformers import AutoTokenizer, HfArgumentParser

from unime import load_model
from unime.export.onnx import embed_texts, export_onnx


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
        print(f"{script.model}, {script.threads} threads, largest difference {difference:.1e}")
        print(f"{'texts':>6}{'words':>7}{'torch, ms':>11}{'ONNX, ms':>11}{'speedup':>15}")
        for batch_size in script.batch_sizes:
            for words in script.words:
                texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(words)) for i in range(batch_size)]
                functions = {
                    "torch": partial(model.encode, texts, processor),
                    "ONNX": partial(embed_texts, session, tokenizer, texts),
                }
                time_interleaved(functions, 1)  # warm-up
                timings = time_interleaved(functions, script.rounds)
                milliseconds = "".join(f"{1e3 * timings.median(name):>11.2f}" for name in functions)
                print(f"{batch_size:>6}{words:>7}{milliseconds}{timings.speedup('torch', 'ONNX'):>15.2f}")


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
