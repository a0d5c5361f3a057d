"""Whether a recipe fits a GPU, and how long it takes there: computed before a GPU is rented.

Everything here is an estimate: sizes of tensors from the shapes of the model, and time from floating-point operations
at a stated utilization. Memory that the framework takes beside tensors is a margin.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .cost_model import Load, StepCost
from .pass_planning import MEMORY_MARGIN, Checkpointing, executed_flops, plan_passes


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Args:
        name (`str`): Its name.
        memory_gb (`float`): Its memory as it is sold.
        total_gb (`float`): The memory that PyTorch reports, in 10^9 bytes.
        tflops (`float`): Peak rate of dense bfloat16 products with sums in float32, in 10^12 operations a second.
    """

    name: str
    memory_gb: float
    total_gb: float
    tflops: float


# Rates are those of NVIDIA's data sheets without sparsity: Ada architecture white paper (RTX 4090), A100, H100 SXM and
# H200 SXM data sheets. Total memory as in PyTorch's out-of-memory errors: 23.64, 39.39, 79.11, 79.15 and 139.8 GiB.
GPUS = (
    Gpu("RTX 4090", 24, 25.38, 165.2),
    Gpu("A100-40GB", 40, 42.29, 312),
    Gpu("H100-80GB", 80, 84.94, 989.4),
    Gpu("A100-80GB", 80, 84.99, 312),
    Gpu("H200", 141, 150.1, 989.4),
)

CONTEXT_GB = 1.0  # CUDA context, and workspaces of cuBLAS and NCCL, which the driver counts as taken
NF4_BYTES = 0.5 + 4 / 64  # four bits, and a float32 scale for each block of 64
NESTED_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # the scales in 8 bits
# Of one thread that decodes, resizes and normalizes JPEGs: between 13 and 46 images a second, by family.
IMAGES_PER_SECOND_AND_CORE = 25


@dataclass(frozen=True)
class Rows:
    """What the mean row of the training data holds.

    Args:
        items (`float`): Items of a row: a query and a positive, or one text.
        images (`float`): Images of a row; an item has at most one.
        text_tokens (`float`): Tokens of an item that are not those of images.
        image_tokens (`float`): Tokens of an image.
        patches (`float`): Patches of an image in the vision tower.
        tile_patches (`float`): Those of them that attend to each other.
        patch_numbers (`float`): Numbers of a patch: `3 * patch_size**2` and frames.
        patch_share (`float`): Share of a token as which a patch counts in `micro_batch_tokens`.
    """

    items: float
    images: float
    text_tokens: float
    image_tokens: float = 0
    patches: float = 0
    tile_patches: float = 0
    patch_numbers: float = 0
    patch_share: float = 0

    def loads(self, rows: float, micro_batch_tokens: int) -> list[Load]:
        """Return the micro-batches of `rows` rows, texts first."""
        texts, images = rows * (self.items - self.images), rows * self.images
        loads = []
        for items, has_image in ((texts, 0), (images, 1)):
            item_tokens = self.text_tokens + has_image * self.image_tokens
            item_cost = item_tokens + has_image * self.patches * self.patch_share
            count = math.ceil(items / max(1, micro_batch_tokens // item_cost))
            share = items / count if count else 0
            image = share * has_image
            load = Load(share * item_tokens, image * self.image_tokens, image * self.patches, item_tokens)
            loads += [replace(load, image_patches=self.tile_patches)] * count
        return loads


@dataclass(frozen=True)
class Setup:
    """How a recipe trains on some GPUs.

    Args:
        rows_per_gpu (`int`): `per_device_train_batch_size`.
        micro_batch_tokens (`int`): Token budget of a micro-batch.
        graph_cache_gb (`float`): Budget of the kept graphs; `inf` is the memory that is left.
        checkpointing (`bool`): Whether `activation_checkpointing` is on.
        steps (`int`): Optimizer steps.
        gpus (`int`): GPUs, one process each.
        quantized_bytes (`float`, *optional*): Bytes per weight of quantized linear layers.
        optimizer_bytes (`float`, *optional*): Bytes of the optimizer per byte of a trained weight.
        shards_weights (`bool`, *optional*, defaults to `False`): FSDP2 and ZeRO-3. 4-bit weights are not sharded.
        shards_optimizer (`bool`, *optional*, defaults to `False`): FSDP2, ZeRO-2 and ZeRO-3; also the gradients.
        host_batches (`int`, *optional*, defaults to 3): Batches that a process holds in host memory, see
            [`batches_in_host_memory`].
        pixel_bytes (`int`, *optional*, defaults to 2): Bytes of a number of a pixel: those of the model's type.
    """

    rows_per_gpu: int
    micro_batch_tokens: int
    graph_cache_gb: float
    checkpointing: bool
    steps: int
    gpus: int
    quantized_bytes: float | None = None
    optimizer_bytes: float = 2
    shards_weights: bool = False
    shards_optimizer: bool = False
    host_batches: int = 3
    pixel_bytes: int = 2


def batches_in_host_memory(num_workers: int, prefetch_factor: int | None = None, pin_memory: bool = True) -> int:
    """Return how many batches one process of a training holds in host memory, at most.

    Each worker makes or has made `prefetch_factor` batches that nobody has taken. The training uses one, accelerate
    has taken the next one, and a batch that is copied into pinned memory exists twice.

    Args:
        num_workers (`int`): `dataloader_num_workers`.
        prefetch_factor (`int`, *optional*, defaults to 2): `dataloader_prefetch_factor`.
        pin_memory (`bool`, *optional*, defaults to `True`): `dataloader_pin_memory`; without effect on a CPU.
    """
    return num_workers * (prefetch_factor or 2) + 2 + pin_memory


def count_parameters(model: nn.Module, setup: Setup) -> dict[str, int]:
    """Return the numbers of all, trained and quantized weights."""
    quantized = 0
    if setup.quantized_bytes is not None:
        linears = (module for module in model.modules() if isinstance(module, nn.Linear))
        quantized = sum(linear.weight.numel() for linear in linears if not linear.weight.requires_grad)
    parameters = list(model.parameters())
    trained = sum(weight.numel() for weight in parameters if weight.requires_grad)
    return {"total": sum(weight.numel() for weight in parameters), "trained": trained, "quantized": quantized}


def constant_bytes(model: nn.Module, setup: Setup, rows: Rows, dimensions: int) -> dict[str, float]:
    """Return the bytes of what does not depend on the micro-batch, by part.

    Args:
        model (`Module`): The model with its adapters, on the meta device.
        setup ([`Setup`]): How it is trained.
        rows ([`Rows`]): The rows.
        dimensions (`int`): Dimensions of an embedding.
    """
    linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    in_4_bits = {id(weight) for weight in linears if setup.quantized_bytes is not None and not weight.requires_grad}
    whole = sum(weight.nbytes for weight in frozen if id(weight) not in in_4_bits)
    quantized = sum(weight.numel() for weight in frozen if id(weight) in in_4_bits) * (setup.quantized_bytes or 0)
    of_weights = setup.gpus if setup.shards_weights else 1
    of_optimizer = setup.gpus if setup.shards_optimizer else 1
    adapters = sum(weight.nbytes for weight in trained)
    if setup.shards_optimizer:  # mixed precision with weights in float32
        adapters = sum(4 * weight.numel() for weight in trained)
    gathered = 0.0
    if setup.shards_weights:  # a layer and the next one, which is gathered ahead
        layers = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
        in_full = ([w for w in layer.parameters() if id(w) not in in_4_bits] for stack in layers for layer in stack)
        gathered = 2 * max(sum(2 * weight.numel() for weight in weights) for weights in in_full)
    queries = setup.rows_per_gpu * setup.gpus
    embeddings = 3 * 4 * rows.items * queries * dimensions  # all items, the candidates, and their gradient
    return {
        "weights": quantized + whole / of_weights + (gathered if setup.shards_weights else 0),
        "dequantized layer": max(weight.numel() for weight in linears) * 2 if in_4_bits else 0,
        "trained weights": adapters / of_weights,
        "gradients": adapters / of_optimizer,
        "optimizer": setup.optimizer_bytes * adapters / of_optimizer,
        # Masks of all pairs; the similarities themselves are computed in slices of 2**18.
        "candidates, similarities": embeddings + 4 * queries**2 + 8 * 4 * 2**18,
    }


def training_plan(
    cost: StepCost, constant: Mapping[str, float], rows: Rows, setup: Setup, gpu: Gpu, utilization: float
) -> dict[str, Any]:
    """Return the plan for one kind of GPU: memory by part, what fits, operations and hours.

    Args:
        cost ([`StepCost`]): The cost of the model's passes.
        constant (`Mapping`): The result of [`constant_bytes`].
        rows ([`Rows`]): The rows.
        setup ([`Setup`]): How the recipe trains.
        gpu ([`Gpu`]): The kind of GPU.
        utilization (`float`): Executed operations per second over the peak rate of the GPU.
    """
    least = Checkpointing.FULL if setup.checkpointing else Checkpointing.NONE
    margin = (MEMORY_MARGIN * gpu.total_gb + CONTEXT_GB) * 1e9

    def used(micro_batch_tokens: int) -> dict[str, float]:
        """Return the bytes with one graph at a time, by part."""
        loads = rows.loads(setup.rows_per_gpu, micro_batch_tokens)
        pixels = max(load.patches for load in loads) * rows.patch_numbers * setup.pixel_bytes
        return {**constant, "pixels": pixels, "one graph": max(cost.peak(least, load) for load in loads)}

    def left(micro_batch_tokens: int) -> float:
        return gpu.total_gb * 1e9 - margin - sum(used(micro_batch_tokens).values())

    choices = range(1024, 131072 + 1, 1024)
    fitting = [tokens for tokens in choices if left(tokens) >= 0]
    loads = rows.loads(setup.rows_per_gpu, setup.micro_batch_tokens)
    forward, backward = [cost.forward(load) for load in loads], [cost.backward(load) for load in loads]
    if setup.checkpointing:
        again, graphs = list(map(cost.recomputed_by_level, loads)), list(map(cost.kept_by_level, loads))
    else:
        again, graphs = [[0.0]] * len(loads), [[cost.kept(least, load)] for load in loads]
    free = max(0.0, left(setup.micro_batch_tokens))

    def planned(graph_cache_gb: float) -> tuple[float, float]:
        """Return the executed operations, and the bytes of graphs beside the smallest one."""
        # a budget in GB leaves checkpointing as it is
        sizes = graphs if math.isinf(graph_cache_gb) else [graph[:1] for graph in graphs]
        passes = plan_passes(sizes, free if math.isinf(graph_cache_gb) else graph_cache_gb * 1e9)
        kept = sum(graph[one.level] for graph, one in zip(graphs, passes, strict=True) if one.kept)
        second = max(graph[one.level] - graph[0] for graph, one in zip(graphs, passes, strict=True))
        return executed_flops(passes, forward, backward, again), max(kept - graphs[0][0], second)

    useful = sum(forward) + sum(backward)
    parts = used(setup.micro_batch_tokens)
    total, parts["kept graphs"] = planned(setup.graph_cache_gb)
    seconds = total / (utilization * gpu.tflops * 1e12)
    batch_pixels = setup.rows_per_gpu * rows.images * rows.patches * rows.patch_numbers * setup.pixel_bytes
    images_per_second = setup.rows_per_gpu * rows.images / seconds
    return {
        "GPU": f"{setup.gpus} x {gpu.name}",
        "memory, GB": {name: size / 1e9 for name, size in parts.items()} | {"margin": margin / 1e9},
        "total, GB": (sum(parts.values()) + margin) / 1e9,
        "fits": sum(parts.values()) + margin <= gpu.total_gb * 1e9,
        "largest micro_batch_tokens": max(fitting, default=0),
        "graph cache that fits, GB": free / 1e9,
        "useful PFLOP per step and GPU": useful / 1e15,
        "executed PFLOP per step and GPU": total / 1e15,
        "executed / useful": total / useful,
        "executed / useful, best plan": planned(math.inf)[0] / useful,
        "seconds per step": seconds,
        "steps": setup.steps,
        "hours": setup.steps * seconds / 3600,
        "host memory of batches, GB": setup.gpus * setup.host_batches * batch_pixels / 1e9,
        "CPU cores for images": math.ceil(setup.gpus * images_per_second / IMAGES_PER_SECOND_AND_CORE),
    }
