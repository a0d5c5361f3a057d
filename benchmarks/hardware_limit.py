"""Efficiency of `encode`: its layers compared with bare matrix products, and the work that it wastes.

    python benchmarks/hardware_limit.py                       # two cores
    python benchmarks/hardware_limit.py --device cuda

- *layers / mm*: FLOP/s of the whole model divided by those of `torch.mm` on the same matrices (every product with the
  weights of an `nn.Linear`). The time of the model includes norms and activations; its work includes products only,
  also those of attention.
- *layers / oneDNN*: the same for oneDNN's product with prepacked weights, if available; it may be faster.
- *outside the model*: share of the wall time of `encode` outside the model.
- *padding*: share of padding in the positions of the language model.
- *seen before*: share of the tokens that follow the same tokens as in an earlier item, so that causal attention gives
  them the same state (repeated items and shared prefixes). This is the upper bound of what can be reused.
- *computed*: positions that the language model computes, without padding, divided by the tokens of the items.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from baselines import add_instruction, tensors
from encode import workloads
from models import FAMILIES, TINY, checkpoint
from result_files import table, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ProcessorMixin
from trl import TrlParser

from unime import UniMEModel, load_model
from unime.cpu_prepacking_unime import can_prepack


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    models: list[str] = field(
        default_factory=lambda: [TINY, *FAMILIES], metadata={"help": f"Some of {TINY}, {', '.join(FAMILIES)}."}
    )
    items: int = field(default=600, metadata={"help": f"Items per workload for {TINY}."})
    random_model_items: int = field(default=96, metadata={"help": "Items per workload for the random models."})
    rounds: int = field(default=3, metadata={"help": "Number of timing rounds."})
    device: str = field(default="cpu", metadata={"help": "Device of all computations."})
    threads: int = field(default=2, metadata={"help": "Number of torch threads."})
    output: str = field(default="benchmarks/results/hardware_limit.json", metadata={"help": "Output file."})


class ForwardStatistics:
    """Counters of the work of a model, collected by hooks.

    Args:
        model ([`UniMEModel`]): Model to observe.

    Attributes:
        seconds (`float`): Wall time within the model or one of its parts.
        products (`list[tuple[Tensor, int]]`): Weight and number of rows of every product, in order.
        positions (`int`): Positions that the language model computed, including padding.
        padding (`int`): Padding positions.
    """

    def __init__(self, model: UniMEModel):
        self.seconds, self.positions, self.padding = 0.0, 0, 0
        self.products: list[tuple[Tensor, int]] = []
        self._depth, self._start = 0, 0.0
        self._model = model

    @contextmanager
    def collecting(self) -> Iterator[None]:
        parts = [self._model, self._model.backbone, *self._model.backbone.children()]
        hooks = [part.register_forward_pre_hook(self._enter) for part in parts]
        hooks += [part.register_forward_hook(self._leave) for part in parts]
        language = self._model.backbone.get_decoder()
        hooks.append(language.register_forward_pre_hook(self._count_positions, with_kwargs=True))
        linear = [module for module in self._model.modules() if isinstance(module, nn.Linear)]
        hooks += [module.register_forward_pre_hook(self._count_product) for module in linear]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, part: nn.Module, arguments: tuple) -> None:
        if self._depth == 0:
            self._start = _now()
        self._depth += 1

    def _leave(self, part: nn.Module, arguments: tuple, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.seconds += _now() - self._start

    def _count_positions(self, language: nn.Module, arguments: tuple, keywords: dict[str, Any]) -> None:
        embeds = keywords.get("inputs_embeds")
        rows, tokens = (keywords["input_ids"] if embeds is None else embeds).shape[:2]
        self.positions += rows * tokens
        mask = keywords.get("attention_mask")
        if mask is not None:
            self.padding += int((mask[:, -tokens:] == 0).sum())

    def _count_product(self, module: nn.Module, arguments: tuple) -> None:
        (inputs,) = arguments
        self.products.append((module.weight, inputs.numel() // inputs.shape[-1]))


def bare_products(products: Sequence[tuple[Tensor, int]], packed: dict[int, Tensor] | None = None) -> float:
    """Return the seconds of the same products in sequence, by `torch.mm` or with weights prepacked by oneDNN."""
    widest = max(weight.shape[1] for weight, _ in products)
    longest = max(rows for _, rows in products)
    # Share one buffer, so that the measured time does not include creating the inputs.
    buffer = torch.randn(longest * widest, dtype=products[0][0].dtype, device=products[0][0].device)
    start = _now()
    for weight, rows in products:
        inputs = buffer[: rows * weight.shape[1]].view(rows, -1)
        if packed is None:
            torch.mm(inputs, weight.t())
        else:
            torch.ops.mkldnn._linear_pointwise(inputs, packed[id(weight)], None, "none", [], "")
    return _now() - start


def packed_flops(inputs: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Return the FLOP of a product with a prepacked weight, which `FlopCounterMode` does not know."""
    return 2 * prod(out_shape) * inputs[-1]


def seen_before(sequences: Sequence[Sequence[int]]) -> int:
    """Count the tokens that equal a token of an earlier sequence and follow the same tokens."""
    count, root = 0, {}
    for sequence in sequences:
        node = root
        for token in sequence:
            count += token in node
            node = node.setdefault(token, {})
    return count


def token_lists(items: Sequence[dict], processor: ProcessorMixin) -> list[list[int]]:
    """Return the tokens of each item; image tokens are replaced by an id of the image."""
    sequences = []
    for item in items:
        tokens = tensors(processor, [item])["input_ids"][0].tolist()
        image = -1 - hash(item["image"][0].tobytes()) % 2**31 if item["image"] else 0
        sequences.append([image if token == processor.image_token_id else token for token in tokens])
    return sequences


def flops(model: UniMEModel, processor: ProcessorMixin, items: Sequence[dict]) -> int:
    """Return the FLOP of all products of `encode`."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: packed_flops}) as counter:
        model.encode(items, processor)
    return counter.get_total_flops()


def measure(model: UniMEModel, processor: ProcessorMixin, items: Sequence[dict], rounds: int) -> dict[str, float]:
    """Measure one workload; values are medians of the rounds, each followed by its bare products."""
    work, packed = flops(model, processor, items), None
    if can_prepack(model):
        linear = (module.weight for module in model.modules() if type(module) is nn.Linear)
        packed = {id(weight): torch.ops.mkldnn._reorder_linear_weight(weight.detach()) for weight in linear}
    outside, relative_to_mm, relative_to_packed = [], [], []
    for _ in range(rounds):
        statistics = ForwardStatistics(model)
        with statistics.collecting():
            start = _now()
            model.encode(items, processor)
            total_seconds = _now() - start
        with torch.no_grad():
            mm_seconds = bare_products(statistics.products)
            packed_seconds = bare_products(statistics.products, packed)
        bare_work = sum(2 * weight.numel() * rows for weight, rows in statistics.products)
        outside.append(1 - statistics.seconds / total_seconds)
        relative_to_mm.append((work / statistics.seconds) / (bare_work / mm_seconds))
        relative_to_packed.append((work / statistics.seconds) / (bare_work / packed_seconds))
    tokens = token_lists(items, processor)
    total = sum(map(len, tokens))
    return {
        "layers / mm": round(median(relative_to_mm), 3),
        "layers / oneDNN": round(median(relative_to_packed), 3) if packed else None,
        "outside the model": round(median(outside), 3),
        "padding": round(statistics.padding / statistics.positions, 4),
        "seen before": round(seen_before(tokens) / total, 3),
        "computed": round((statistics.positions - statistics.padding) / total, 3),
    }


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def main(script: ScriptArguments) -> None:
    torch.set_num_threads(script.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in script.models:
            model, processor = load_model(str(checkpoint(name, Path(folder))), dtype="float32")
            model = model.to(script.device).eval()
            for workload, items, instruction in workloads(script.items if name == TINY else script.random_model_items):
                values = measure(model, processor, add_instruction(items, instruction), script.rounds)
                rows.append({"model": name, "workload": workload} | values)
                print(rows[-1], file=sys.stderr, flush=True)
    settings = asdict(script)
    write(settings.pop("output"), settings, rows)
    print(table(rows))


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
