"""How near `encode` comes to the machine's limit: its layers against bare matrix products, and what it wastes.

    python benchmarks/hardware_limit.py                       # two cores
    python benchmarks/hardware_limit.py --device cuda

- *layers / mm*: FLOP/s of the whole model against those of `torch.mm`, which multiplies the same matrices (every
  product with the weights of an `nn.Linear`) and does nothing else. Norms and activations count as time, and only
  products, those of attention too, as work.
- *layers / oneDNN*: the same against oneDNN's product of packed weights, where there is one; it may be the faster.
- *outside the model*: share of the wall time of `encode` in which no part of the model runs.
- *padding*: share of the language model's positions that are padding.
- *seen before*: share of the items' tokens that stand behind the same tokens as in an earlier item, so that causal
  attention gives them the same state: repeated items and shared beginnings. No more than that can be reused.
- *computed*: positions that the language model computes, padding left out, in shares of the items' tokens.
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
from encode import workloads
from models import FAMILIES, TINY, checkpoint
from peers import instructed, tensors
from result_files import table, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ProcessorMixin
from trl import TrlParser

from unime import UniMEModel, load_model
from unime.cpu_prepacking_unime import can_prepack


@dataclass
class ScriptArguments:
    """What to measure."""

    models: list[str] = field(
        default_factory=lambda: [TINY, *FAMILIES], metadata={"help": f"Of {TINY}, {', '.join(FAMILIES)}."}
    )
    items: int = field(default=600, metadata={"help": f"Items of a workload for {TINY}."})
    tiny_model_items: int = field(default=96, metadata={"help": "Items of a workload for the large tiny models."})
    rounds: int = field(default=3, metadata={"help": "Times that each is measured."})
    device: str = field(default="cpu", metadata={"help": "Where it computes."})
    threads: int = field(default=2, metadata={"help": "Threads of torch."})
    output: str = field(
        default="benchmarks/results/hardware_limit.json", metadata={"help": "Where shares are written."}
    )


class Watch:
    """Counts, by hooks, what a model does while it is watched.

    Args:
        model ([`UniMEModel`]): The model.

    Attributes:
        seconds (`float`): Time within the model, whichever part of it was called.
        products (`list[tuple[Tensor, int]]`): Weight and number of rows of every product, in their order.
        positions (`int`): Positions that the language model computed.
        padding (`int`): Those of them that are padding.
    """

    def __init__(self, model: UniMEModel):
        self.seconds, self.positions, self.padding = 0.0, 0, 0
        self.products: list[tuple[Tensor, int]] = []
        self._depth, self._start = 0, 0.0
        self._model = model

    @contextmanager
    def watching(self) -> Iterator[None]:
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
        given = keywords.get("inputs_embeds")
        rows, tokens = (keywords["input_ids"] if given is None else given).shape[:2]
        self.positions += rows * tokens
        mask = keywords.get("attention_mask")
        if mask is not None:
            self.padding += int((mask[:, -tokens:] == 0).sum())

    def _count_product(self, module: nn.Module, arguments: tuple) -> None:
        (inputs,) = arguments
        self.products.append((module.weight, inputs.numel() // inputs.shape[-1]))


def bare_products(products: Sequence[tuple[Tensor, int]], packed: dict[int, Tensor] | None = None) -> float:
    """Seconds of the same products one after the other: by `torch.mm`, or with weights that oneDNN has packed."""
    widest = max(weight.shape[1] for weight, _ in products)
    longest = max(rows for _, rows in products)
    # One buffer for all inputs: made within the clock's time, they would count too.
    numbers = torch.randn(longest * widest, dtype=products[0][0].dtype, device=products[0][0].device)
    start = _now()
    for weight, rows in products:
        inputs = numbers[: rows * weight.shape[1]].view(rows, -1)
        if packed is None:
            torch.mm(inputs, weight.t())
        else:
            torch.ops.mkldnn._linear_pointwise(inputs, packed[id(weight)], None, "none", [], "")
    return _now() - start


def packed_flops(inputs: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Work of a product with a packed weight, by the shapes, which `FlopCounterMode` does not know."""
    return 2 * prod(out_shape) * inputs[-1]


def seen_before(sequences: Sequence[Sequence[int]]) -> int:
    """Count the tokens that stand behind the same tokens as in an earlier sequence, and are the same themselves."""
    count, root = 0, {}
    for sequence in sequences:
        node = root
        for token in sequence:
            count += token in node
            node = node.setdefault(token, {})
    return count


def token_lists(items: Sequence[dict], processor: ProcessorMixin) -> list[list[int]]:
    """The tokens of each item; those of an image are numbered by the image, as they mean different ones."""
    found = []
    for item in items:
        tokens = tensors(processor, [item])["input_ids"][0].tolist()
        image = -1 - hash(item["image"][0].tobytes()) % 2**31 if item["image"] else 0
        found.append([image if token == processor.image_token_id else token for token in tokens])
    return found


def flops(model: UniMEModel, processor: ProcessorMixin, items: Sequence[dict]) -> int:
    """Operations of all products of `encode`."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: packed_flops}) as counter:
        model.encode(items, processor)
    return counter.get_total_flops()


def measure(model: UniMEModel, processor: ProcessorMixin, items: Sequence[dict], rounds: int) -> dict[str, float]:
    """The figures of one workload; times are medians of the rounds, each followed by its bare products."""
    work, packed = flops(model, processor, items), None
    if can_prepack(model):
        linear = (module.weight for module in model.modules() if type(module) is nn.Linear)
        packed = {id(weight): torch.ops.mkldnn._reorder_linear_weight(weight.detach()) for weight in linear}
    outside, of_mm, of_packed = [], [], []
    for _ in range(rounds):
        watch = Watch(model)
        with watch.watching():
            start = _now()
            model.encode(items, processor)
            whole = _now() - start
        with torch.no_grad():
            by_mm = bare_products(watch.products)
            by_packed = bare_products(watch.products, packed)
        of_products = sum(2 * weight.numel() * rows for weight, rows in watch.products)
        outside.append(1 - watch.seconds / whole)
        of_mm.append((work / watch.seconds) / (of_products / by_mm))
        of_packed.append((work / watch.seconds) / (of_products / by_packed))
    tokens = token_lists(items, processor)
    total = sum(map(len, tokens))
    return {
        "layers / mm": round(median(of_mm), 3),
        "layers / oneDNN": round(median(of_packed), 3) if packed else None,
        "outside the model": round(median(outside), 3),
        "padding": round(watch.padding / watch.positions, 4),
        "seen before": round(seen_before(tokens) / total, 3),
        "computed": round((watch.positions - watch.padding) / total, 3),
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
            for workload, items, instruction in workloads(script.items if name == TINY else script.tiny_model_items):
                found = measure(model, processor, instructed(items, instruction), script.rounds)
                rows.append({"model": name, "items": workload} | found)
                print(rows[-1], file=sys.stderr, flush=True)
    settings = asdict(script)
    write(settings.pop("output"), settings, rows)
    print(table(rows))


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
