"""Speed of the text path: ONNX Runtime against torch, by batch size and length.

    python benchmarks/text_onnx.py --batch_sizes 1 16 --words 8 64

Both embed the same texts, from strings to vectors, on the same number of threads, in turns. A figure is the median of
the rounds; the last column is how many times as fast ONNX Runtime is.
"""

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from interleaved_timing import alternate
from transformers import AutoTokenizer, HfArgumentParser

from unime import load_model
from unime.export.onnx import embed_texts, export_onnx


WORDS = ["pizza", "tile", "cat", "blue"]


@dataclass
class ScriptArguments:
    """What to measure."""

    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Checkpoint or backbone."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 16], metadata={"help": "Texts at a time."})
    words: list[int] = field(default_factory=lambda: [8, 64], metadata={"help": "Words of a text."})
    rounds: int = field(default=20, metadata={"help": "Times that each is measured."})
    threads: int = field(default=1, metadata={"help": "Threads of either runtime."})


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
        print(f"{'texts':>6}{'words':>7}{'torch, ms':>11}{'ONNX, ms':>11}{'times as fast':>15}")
        for batch_size in script.batch_sizes:
            for words in script.words:
                texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(words)) for i in range(batch_size)]
                ways = {
                    "torch": partial(model.encode, texts, processor),
                    "ONNX": partial(embed_texts, session, tokenizer, texts),
                }
                alternate(ways, 1)  # warms up
                found = alternate(ways, script.rounds)
                milliseconds = "".join(f"{1e3 * found.median(way):>11.2f}" for way in ways)
                print(f"{batch_size:>6}{words:>7}{milliseconds}{found.ratio('torch', 'ONNX'):>15.2f}")


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
