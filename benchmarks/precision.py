"""Fewer bits, and compilation: how much faster `encode` gets than in float32, and what that costs.

    python benchmarks/precision.py                       # two cores; int8 needs `pip install torchao`
    python benchmarks/precision.py --device cuda --ways bfloat16 compiled

None of this needs code of ours, and none is on unless it is asked for:

- *bfloat16*: `load_model(..., dtype="bfloat16")`, or `--dtype bfloat16` of a command.
- *int8*: `quantization_config=TorchAoConfig(Int8DynamicActivationInt8WeightConfig())`: weights by channel, activations
  by token, at run time.
- *compiled*: `layer.compile(dynamic=True)` of each layer of the decoder: `torch.compile` once for all lengths.
- *int8, compiled*: both.
- *int8, torch.ao*: `torch.ao.quantization.quantize_dynamic` of all linear layers, which torch is about to remove.

Cosines are between the vectors of the same item. hit@1 is that of five tasks of the OpenMoji benchmark, for
the trained model only: the change of their mean, and that of the task that changes most.
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
from interleaved_timing import alternate
from items import texts
from models import FAMILIES, TINY, checkpoint
from result_files import table, write
from torch import nn
from transformers import ProcessorMixin, TorchAoConfig
from trl import TrlParser

from unime import UniMEModel, load_model
from unime.eval.tasks import RetrievalTask, evaluate
from unime.openmoji.benchmark import tasks


WAYS = ("bfloat16", "compiled", "int8", "int8, compiled", "int8, torch.ao")
TASKS = ("scene_t2i", "scene_i2t", "name_t2i", "composed", "question")


@dataclass
class ScriptArguments:
    """What to measure."""

    models: list[str] = field(
        default_factory=lambda: [TINY, FAMILIES[0]], metadata={"help": f"Of {TINY}, {', '.join(FAMILIES)}."}
    )
    ways: list[str] = field(default_factory=lambda: [*WAYS], metadata={"help": f"Of {', '.join(WAYS)}."})
    items: int = field(default=600, metadata={"help": f"Texts for {TINY}."})
    tiny_model_items: int = field(default=96, metadata={"help": "Texts for the large tiny models."})
    candidates: int = field(default=1000, metadata={"help": "Candidates of a retrieval task."})
    rounds: int = field(default=3, metadata={"help": "Times that each way is measured."})
    device: str = field(default="cpu", metadata={"help": "Where all of them compute."})
    threads: int = field(default=2, metadata={"help": "Threads of torch."})
    output: str = field(default="benchmarks/results/precision.json", metadata={"help": "Where ratios are written."})


def loaded(way: str, folder: Path, device: str) -> tuple[UniMEModel, ProcessorMixin]:
    """A model that embeds in one of the ways, or in float32.

    Raises:
        ValueError: There is no such way.
    """
    if way not in ("float32", *WAYS):
        raise ValueError(f"there is no way {way!r} to embed: choose from {', '.join(WAYS)}")
    settings: dict[str, Any] = {"dtype": "bfloat16" if way == "bfloat16" else "float32"}
    if way in ("int8", "int8, compiled"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        settings["quantization_config"] = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    model, processor = load_model(str(folder), **settings)
    model = model.to(device).eval()
    if way == "int8, torch.ao":
        model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    if way.endswith("compiled"):
        for layer in model.backbone.get_decoder().layers:
            layer.compile(dynamic=True)
    return model, processor


def hits_at_1(model: UniMEModel, processor: ProcessorMixin, asked: Sequence[RetrievalTask]) -> np.ndarray:
    """hit@1 of each task, in per cent."""
    results, _ = evaluate(partial(model.encode, processor=processor), asked, model=TINY, progress=False)
    return np.array([100 * results["tasks"][task.name]["hit@1"] for task in asked])


def measure(name: str, folder: Path, script: ScriptArguments) -> Iterator[dict[str, Any]]:
    """A row for each way."""
    trained = name == TINY
    said = texts(script.items if trained else script.tiny_model_items)
    asked = [task for task in tasks("test", script.candidates)[0] if task.name in TASKS] if trained else []
    model, processor = loaded("float32", folder, script.device)
    before = hits_at_1(model, processor, asked) if trained else None
    for way in script.ways:
        other, _ = loaded(way, folder, script.device)
        for one in (model, other, other):  # shapes that the first pass met first may be compiled anew in a second
            one.encode(said, processor)
        works = {"float32": partial(model.encode, said, processor), way: partial(other.encode, said, processor)}
        found = alternate(works, script.rounds)
        cosines = (found.results["float32"] * found.results[way]).sum(axis=1)
        row = {
            "model": name,
            "way": way,
            "times as fast": round(found.ratio("float32", way), 3),
            "least cosine": round(float(cosines.min()), 5),
            "mean cosine": round(float(cosines.mean()), 5),
        }
        if trained:
            changes = hits_at_1(other, processor, asked) - before
            row["hit@1, change of the mean"] = round(float(changes.mean()), 2)
            row["hit@1, greatest change"] = round(float(changes[np.abs(changes).argmax()]), 2)
        print(row, file=sys.stderr, flush=True)
        yield row


def main(script: ScriptArguments) -> None:
    torch.set_num_threads(script.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in script.models:
            rows += measure(name, checkpoint(name, Path(folder)), script)
    needs_torchao = not {"int8", "int8, compiled"}.isdisjoint(script.ways)
    settings = asdict(script)
    of_cpu = {
        "avx512_bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "avx512_vnni": torch.cpu._is_vnni_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }
    write(settings.pop("output"), settings | {"cpu": of_cpu}, rows, *(["torchao"] if needs_torchao else []))
    print(table(rows))


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
