"""Speed and accuracy of `encode` at lower precision and with compilation, relative to float32.

    python benchmarks/precision.py                       # two cores; int8 needs `pip install torchao`
    python benchmarks/precision.py --device cuda --variants bfloat16 compiled

All variants come from other libraries and are off by default:

- *bfloat16*: `load_model(..., dtype="bfloat16")`, or `--dtype bfloat16` of a command.
- *int8*: `quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig())`: weights per channel,
  activations per token at run time.
- *compiled*: `layer.compile(dynamic=True)` of each decoder layer: `torch.compile` once for all lengths.
- *int8, compiled*: both.
- *int8, torch.ao*: `torch.ao.quantization.quantize_dynamic` of all linear layers, which torch plans to remove.

Cosines compare the embeddings of the same item. For the trained model the change of hit@1 is measured on five tasks of
the OpenMoji benchmark: the mean change, and the largest change of a task.
"""

import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleaved_timing import time_interleaved
from items import texts
from models import FAMILIES, TINY, checkpoint
from result_files import table, write
from torch import nn
from transformers import ProcessorMixin, TorchAoConfig
from trl import TrlParser

from unime import UniMEModel, load_model
from unime.eval.tasks import RetrievalTask, evaluate
from unime.openmoji.benchmark import tasks


VARIANTS = ("bfloat16", "compiled", "int8", "int8, compiled", "int8, torch.ao")
TASKS = ("scene_t2i", "scene_i2t", "name_t2i", "composed", "question")


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    models: list[str] = field(
        default_factory=lambda: [TINY, FAMILIES[0]], metadata={"help": f"Some of {TINY}, {', '.join(FAMILIES)}."}
    )
    variants: list[str] = field(
        default_factory=lambda: [*VARIANTS], metadata={"help": f"Some of {', '.join(VARIANTS)}."}
    )
    items: int = field(default=600, metadata={"help": f"Texts for {TINY}."})
    random_model_items: int = field(default=96, metadata={"help": "Texts for the random models."})
    candidates: int = field(default=1000, metadata={"help": "Candidates per retrieval task."})
    rounds: int = field(default=3, metadata={"help": "Number of timing rounds."})
    device: str = field(default="cpu", metadata={"help": "Device of all computations."})
    threads: int = field(default=2, metadata={"help": "Number of torch threads."})
    output: str = field(default="benchmarks/results/precision.json", metadata={"help": "Output file."})


def load_variant(variant: str, folder: Path, device: str) -> tuple[UniMEModel, ProcessorMixin]:
    """Load a model in one of the variants or in float32.

    Raises:
        ValueError: The variant is unknown.
    """
    if variant not in ("float32", *VARIANTS):
        raise ValueError(f"unknown variant {variant!r}: choose from {', '.join(VARIANTS)}")
    settings: dict[str, Any] = {"dtype": "bfloat16" if variant == "bfloat16" else "float32"}
    if variant in ("int8", "int8, compiled"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        settings["quantization_config"] = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    model, processor = load_model(str(folder), **settings)
    model = model.to(device).eval()
    if variant == "int8, torch.ao":
        model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    if variant.endswith("compiled"):
        for layer in model.backbone.get_decoder().layers:
            layer.compile(dynamic=True)
    return model, processor


def hits_at_1(model: UniMEModel, processor: ProcessorMixin, retrieval: Sequence[RetrievalTask]) -> np.ndarray:
    """Return hit@1 of each task in percent."""
    results, _ = evaluate(partial(model.encode, processor=processor), retrieval, model=TINY, progress=False)
    return np.array([100 * results["tasks"][task.name]["hit@1"] for task in retrieval])


def measure(name: str, folder: Path, script: ScriptArguments) -> Iterator[dict[str, Any]]:
    """Yield a row for each variant."""
    trained = name == TINY
    sentences = texts(script.items if trained else script.random_model_items)
    retrieval = [task for task in tasks("test", script.candidates)[0] if task.name in TASKS] if trained else []
    model, processor = load_variant("float32", folder, script.device)
    before = hits_at_1(model, processor, retrieval) if trained else None
    for variant in script.variants:
        changed, _ = load_variant(variant, folder, script.device)
        for warm_up in (model, changed, changed):  # a second pass may compile shapes again
            warm_up.encode(sentences, processor)
        functions = {
            name: partial(m.encode, sentences, processor) for name, m in (("float32", model), (variant, changed))
        }
        timings = time_interleaved(functions, script.rounds)
        cosines = (timings.results["float32"] * timings.results[variant]).sum(axis=1)
        row = {
            "model": name,
            "variant": variant,
            "speedup": round(timings.speedup("float32", variant), 3),
            "minimum cosine": round(float(cosines.min()), 5),
            "mean cosine": round(float(cosines.mean()), 5),
        }
        if trained:
            changes = hits_at_1(changed, processor, retrieval) - before
            row["hit@1, mean change"] = round(float(changes.mean()), 2)
            row["hit@1, largest change"] = round(float(changes[np.abs(changes).argmax()]), 2)
        print(row, file=sys.stderr, flush=True)
        yield row


def main(script: ScriptArguments) -> None:
    torch.set_num_threads(script.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in script.models:
            rows += measure(name, checkpoint(name, Path(folder)), script)
    needs_torchao = not {"int8", "int8, compiled"}.isdisjoint(script.variants)
    settings = asdict(script)
    cpu = {
        "avx512_bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "avx512_vnni": torch.cpu._is_vnni_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
    write(settings.pop("output"), settings | {"cpu": cpu}, rows, *(["torchao"] if needs_torchao else []))
    print(table(rows))


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
