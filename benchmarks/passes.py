"""Executed over useful operations of one optimizer step of stage 2 at real model sizes, counted without a GPU.

    python benchmarks/passes.py --recipes llava-onevision-7b qwen2-vl-2b

The model of a recipe, with its real configuration, 4-bit weights and adapters, consists of fake tensors: they have
shapes and no numbers. [`cached_loss`] embeds and backpropagates a micro-batch of texts and one of images, while layers
keep little or much, and operations are counted, as well as the bytes of the tensors that are alive. Both grow linearly
with the layers, so models of few layers are enough. [`plan_passes`] then chooses the passes of all micro-batches of a
step by these bytes, for the memory of a GPU.

*Before* checkpoints every layer, keeps no graph but the first, and leaves adapters in PEFT's order. `unime plan` is
printed beside: it predicts the ratio from the shapes of the model. Writes benchmarks/results/passes.json.
"""

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import result_files
import torch
from fake_models import FakeMemory, MicroBatch, counting_flops, fake_model, images, real_depth, texts, with_layers
from peft import LoraConfig
from torch import Tensor
from trl import TrlParser, get_peft_config

from unime.cli.backbones import configuration
from unime.cli.plan import MMEB_IMAGES, TEXT_TOKENS, backbone_of, chosen_gpus, image_rows, plan_recipe, read_recipe
from unime.image_tokens_unime import patch_share
from unime.trainers.activation_checkpointing import (
    calling,
    checkpointed_layers,
    checkpointing_function,
    compute_last_adapter_first,
)
from unime.trainers.gradient_cache import cached_loss, with_last_layer_shortcut
from unime.trainers.pass_planning import MEMORY_MARGIN, PlannedPass, checkpointing_of_layers, plan_passes


ROOT = Path(__file__).resolve().parents[1]
TEXTS, IMAGES = 16, 4  # items of the micro-batches that are counted


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    recipes: list[str] = field(
        default_factory=lambda: ["llava-onevision-7b", "qwen2-vl-2b"], metadata={"help": "Folders in recipes/."}
    )
    memory: list[float] = field(
        default_factory=lambda: [24, 80], metadata={"help": "GB of each of 8 GPUs, as they are sold."}
    )
    micro_batch_tokens: list[int] = field(
        default_factory=lambda: [4096, 8192], metadata={"help": "Token budgets of a micro-batch."}
    )
    output: str = field(default=str(ROOT / "benchmarks/results/passes.json"), metadata={"help": "Output file."})


def items_of_micro_batches(items: int, item_cost: float, micro_batch_tokens: int) -> list[int]:
    """Return the number of items of each micro-batch under a token budget."""
    most = max(1, int(micro_batch_tokens // item_cost))
    return [most] * (items // most) + [items % most] * (items % most > 0)


@dataclass
class FixedPasses:
    """A graph cache whose passes are given, for [`cached_loss`]."""

    layers: Sequence[Any]
    passes: Sequence[PlannedPass]

    def start(self, micro_batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Do nothing."""

    def keeps(self, index: int) -> bool:
        """Return whether the graph of a micro-batch is kept."""
        return self.passes[index].kept

    @contextmanager
    def building(self, index: int, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the layers keep what is given for a micro-batch."""
        ways = checkpointing_of_layers(self.passes[index].level, len(self.layers))
        with calling(
            {layer: checkpointing_function(layer, way) for layer, way in zip(self.layers, ways, strict=True)}
        ):
            yield

    def backward(self) -> AbstractContextManager:
        """Do nothing."""
        return nullcontext()

    def finish(self) -> None:
        """Do nothing."""


class Counts(dict[str, np.ndarray]):
    """What a micro-batch costs: `forward`, `graph`, `kept` and so on, see [`count`].

    `graph` and `kept` have a value for each of the levels at which a stack of layers has changed, see `levels`.
    """

    def at(self, name: str, level: float, levels: Sequence[int]) -> float:
        """Return a value at a level; between two of `levels` it changes linearly."""
        return float(np.interp(level, levels, self[name]))

    def executed(self, planned: PlannedPass, levels: Sequence[int]) -> float:
        """Return the operations of the passes of a micro-batch."""
        return self.at("graph", planned.level, levels) + (not planned.kept) * float(self["forward"])


def levels_of(decoder_layers: int, tower_layers: int) -> list[int]:
    """Return the levels at which the language model, then the tower, and then both have changed."""
    layers = decoder_layers + tower_layers
    return [0, decoder_layers, layers, 2 * layers]


def ordered_layers(model: Any) -> list[Any]:
    """Return the checkpointed layers in the order of the levels."""
    backbone = model.get_base_model().backbone
    decoder = set(backbone.get_decoder().modules())
    return sorted(checkpointed_layers(backbone), key=lambda layer: layer not in decoder)


def embedding(model: Any) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Return the function that embeds a micro-batch, as in a training."""
    return with_last_layer_shortcut(model.get_base_model(), lambda tensors: model(**tensors).embeddings)


def run(model: Any, micro_batches: Sequence[MicroBatch], cache: FixedPasses) -> tuple[float, float, float]:
    """Run the passes of [`cached_loss`] and return the operations, the bytes that are kept, and their peak."""
    memory, kept = FakeMemory(), []

    def loss_fn(embeddings: Tensor) -> Tensor:
        gc.collect()
        kept.append(memory.allocated())
        return embeddings.sum()

    with memory, counting_flops() as counter:
        cached_loss(embedding(model), micro_batches, loss_fn, cache).backward()
    return counter.get_total_flops(), kept[0], memory.peak()


def count(config: Any, adapter: LoraConfig, micro_batches: Sequence[MicroBatch]) -> list[Counts]:
    """Return the costs of micro-batches on a model with few layers.

    These are the operations of a pass without a graph (`forward`), those of a pass with a graph and its backward pass
    at each level (`graph`), the bytes of this graph (`kept`) and what passes need beside it if it is checkpointed
    (`transient`); and the operations with a checkpointed graph and adapters in PEFT's order (`before`).
    """
    model = fake_model(config, adapter)
    layers = ordered_layers(model)
    _, tower_layers = real_depth(config)
    gc.collect()
    gc.freeze()  # later collections are faster
    before = [run(model, [tensors], FixedPasses(layers, [PlannedPass(True, 0)]))[0] for tensors in micro_batches]
    compute_last_adapter_first(model.get_base_model().backbone)
    costs = []
    for tensors, old in zip(micro_batches, before, strict=True):
        levels = levels_of(len(layers) - tower_layers, tower_layers)
        graphs = [run(model, [tensors], FixedPasses(layers, [PlannedPass(True, level)])) for level in levels]
        with counting_flops() as counter, torch.no_grad():
            embedding(model)(tensors)
        forward = counter.get_total_flops()
        flops, kept, peaks = np.array(graphs).T
        values = {"forward": forward, "before": old, "graph": flops, "kept": kept, "transient": peaks[0] - kept[0]}
        costs.append(Counts({name: np.asarray(value) for name, value in values.items()}))
    gc.unfreeze()
    return costs


def count_real_depth(backbone: str, adapter: LoraConfig, micro_batches: Sequence[MicroBatch]) -> list[Counts]:
    """Return the costs of micro-batches on a model of full depth, from models with 2 or 3 layers in each stack."""
    depths = real_depth(configuration(backbone))
    base, decoder, tower = (
        count(with_layers(configuration(backbone), *layers), adapter, micro_batches)
        for layers in ((2, 2), (3, 2), (2, 3))
    )
    more, more_of_tower = depths[0] - 2, depths[1] - 2
    costs = []
    for a, b, c in zip(base, decoder, tower, strict=True):
        deep = {name: a[name] + more * (b[name] - a[name]) + more_of_tower * (c[name] - a[name]) for name in a}
        costs.append(Counts(deep | {"transient": a["transient"]}))  # of one layer at a time
    return costs


def measure(script: ScriptArguments, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a recipe."""
    recipe = ROOT / "recipes" / name / "stage2.yaml"
    data, args, model_args, _ = read_recipe(recipe, [])
    backbone = backbone_of(recipe, model_args.model_name_or_path)
    config = configuration(backbone)
    levels = levels_of(*real_depth(config))
    side: Any = data.image_size  # a number in these recipes
    content = image_rows(config, side)
    image_tokens = TEXT_TOKENS + int(content["image_tokens"])
    image_cost = image_tokens + content["patches"] * patch_share(config)
    num_images = round(args.per_device_train_batch_size * MMEB_IMAGES)
    num_texts = 2 * args.per_device_train_batch_size - num_images
    tensors = [texts(TEXTS, TEXT_TOKENS), images(config, IMAGES, TEXT_TOKENS, side)]
    costs = count_real_depth(backbone, get_peft_config(model_args), tensors)
    a_text, an_image = (
        Counts({key: value / number for key, value in cost.items()})
        for cost, number in zip(costs, (TEXTS, IMAGES), strict=True)
    )
    for memory, budget in product(script.memory, script.micro_batch_tokens):
        overrides = ["--micro_batch_tokens", str(budget)]
        (gpu,) = chosen_gpus([memory], [])
        (plan,) = plan_recipe(recipe, 8, [gpu], overrides=overrides)["plans"]
        micro_batches = [
            Counts({key: value * number for key, value in item.items()})
            for item, total, cost in ((a_text, num_texts, TEXT_TOKENS), (an_image, num_images, image_cost))
            for number in items_of_micro_batches(total, cost, budget)
        ]
        parts = {part: size for part, size in plan["memory, GB"].items() if part not in ("one graph", "kept graphs")}
        one_graph = max(float(costs["kept"][0] + costs["transient"]) for costs in micro_batches)
        free = (gpu.total_gb - sum(parts.values())) * 1e9 - one_graph
        sizes = [[costs.at("kept", level, levels) for level in range(levels[-1] + 1)] for costs in micro_batches]
        passes = plan_passes(sizes, free)
        useful = sum(float(costs["graph"][-1]) for costs in micro_batches)
        before = sum(float(costs["before"] + costs["forward"]) for costs in micro_batches)
        before -= float(micro_batches[0]["forward"])  # the first graph is always kept
        after = sum(costs.executed(one, levels) for costs, one in zip(micro_batches, passes, strict=True))
        kept = sum(size[one.level] for size, one in zip(sizes, passes, strict=True) if one.kept)
        full, _, selective, none = (an_image["kept"] / image_tokens / 1e3).tolist()
        yield {
            "recipe": name,
            "GPU": gpu.name,
            "GB": gpu.total_gb,
            "micro-batch": budget,
            "before": before / useful,
            "after": after / useful,
            "unime plan": plan["executed / useful"],
            "graphs kept": f"{sum(one.kept for one in passes)} of {len(passes)}",
            "useful, PFLOP": useful / 1e15,
            "memory, GB": parts | {"one graph": one_graph / 1e9, "kept graphs": kept / 1e9},
            "kept, KB per token of an image": {"checkpointed": full, "selective": selective, "none": none},
        }


def main(script: ScriptArguments) -> None:
    """Count the recipes and write the results."""
    rows = []
    for name in script.recipes:
        for row in measure(script, name):
            print(json.dumps(row), flush=True)
            rows.append(row)
    ratios = [{name: value for name, value in row.items() if not isinstance(value, dict)} for row in rows]
    print(result_files.table(ratios))
    result_files.write(script.output, {"GPUs": 8, "margin": MEMORY_MARGIN}, rows, "peft", "bitsandbytes")


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
