"""What a training step costs in memory and in floating-point operations, from the shapes of a model alone.

The model may be on the meta device. Costs are per vector: a token of the language model or a patch of the vision
tower. A transformer layer keeps for its backward pass, per vector of width `h` with an MLP of width `f`:

- the input of each norm (in float32 for RMSNorm, and under autocast also for LayerNorm);
- queries, keys, values, the output of attention and its log-sum-exp;
- the operands of the activation function: three vectors of width `f` in a gated MLP;
- the input of each trained linear layer; for an adapter with dropout, its own copy of the input and a mask.

A checkpointed layer keeps its input only and computes the rest again, one layer at a time. A selectively checkpointed
layer also keeps the results of all linear layers but the last of the MLP, of the first products of adapters, and of
attention if it attends to many tokens. The tests compare these counts with the bytes that are allocated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any, cast

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from ..modeling_unime import UniMEModel
from .activation_checkpointing import MIN_KEPT_ATTENTION
from .pass_planning import Checkpointing
from .trained_weights import modules_without_gradient


ATTENTION_BACKWARD = 2.5  # relative to the forward pass: five products instead of two, as fused kernels recompute one
ADAPTER_BYTES = 4  # PEFT holds adapters in float32


@dataclass(frozen=True)
class Numerics:
    """Bytes of the numbers that a layer keeps.

    Args:
        activation (`int`, *optional*, defaults to 2): Bytes of an activation: 2 for bfloat16.
        mask (`int`, *optional*, defaults to 1): Bytes of an element of a dropout mask: 1 on GPUs, those of the adapter
            on CPUs.
        layer_norm (`int`, *optional*, defaults to 4): Bytes of an input of LayerNorm: 4 under autocast on GPUs.
        autocast (`bool`, *optional*, defaults to `True`): Whether adapters cast their inputs: under autocast each
            adapter keeps a copy of its own.
    """

    activation: int = 2
    mask: int = 1
    layer_norm: int = 4
    autocast: bool = True


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer, or the sum over several, per vector.

    Args:
        forward (`float`): Operations of the forward pass, without attention scores.
        backward (`float`): Operations of the backward pass, without attention scores.
        attention (`float`): Operations of attention in the forward pass, per vector that is attended to.
        attention_backward (`float`): The same, in the backward pass.
        last_linear (`float`): Operations of the last linear layer of the MLP, whose result no backward pass needs.
        adapter_outputs (`float`): Operations of the second products of adapters.
        full (`float`): Bytes kept with full checkpointing.
        selective (`float`): Bytes kept with selective checkpointing, without the result of attention.
        attention_result (`float`): Bytes of that result.
        none (`float`): Bytes kept without checkpointing.
    """

    forward: float = 0
    backward: float = 0
    attention: float = 0
    attention_backward: float = 0
    last_linear: float = 0
    adapter_outputs: float = 0
    full: float = 0
    selective: float = 0
    attention_result: float = 0
    none: float = 0

    def __add__(self, other: "LayerCost") -> "LayerCost":
        """Return the cost of both."""
        return LayerCost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def kept(self, checkpointing: Checkpointing, keeps_attention: bool = False) -> float:
        """Return the bytes that are kept."""
        selective = self.selective + self.attention_result * keeps_attention
        return (self.full, selective, self.none)[checkpointing]

    def recomputed(self, checkpointing: Checkpointing, attended: float, keeps_attention: bool) -> float:
        """Return the operations that the backward pass computes again."""
        attention = self.attention * attended
        selective = self.adapter_outputs + attention * (not keeps_attention)
        return (self.forward + attention - self.last_linear, selective, 0)[checkpointing]


@dataclass(frozen=True)
class StackCost:
    """The cost of a stack of layers: the language model or the vision tower.

    Args:
        total ([`LayerCost`]): The sum over its layers.
        layer ([`LayerCost`]): The layer that keeps most.
        layers (`tuple[LayerCost, ...]`): Its layers.
        width (`float`): Width of the vectors.
        working (`float`): Bytes per vector that the passes of one layer need for a moment.
    """

    total: LayerCost = LayerCost()
    layer: LayerCost = LayerCost()
    layers: tuple[LayerCost, ...] = ()
    width: float = 0
    working: float = 0

    def transient(self, checkpointing: Checkpointing) -> float:
        """Return the bytes per vector that a pass with a graph needs beside what it keeps."""
        again = self.layer.none - self.layer.kept(checkpointing) if checkpointing is not Checkpointing.NONE else 0
        return self.working + again

    def keeps_attention(self, attended: float) -> bool:
        """Return whether selective checkpointing keeps the result of attention to a number of vectors."""
        return attended >= MIN_KEPT_ATTENTION * self.width


@dataclass(frozen=True)
class Load:
    """The vectors of a micro-batch, or of any other part of a batch.

    Args:
        tokens (`float`): Tokens of the language model, those of images and padding included.
        image_tokens (`float`, *optional*, defaults to 0): Those of them that stand for images.
        patches (`float`, *optional*, defaults to 0): Patches of the vision tower.
        item_tokens (`float`, *optional*, defaults to 0): Tokens of an item, which attend to each other.
        image_patches (`float`, *optional*, defaults to 0): Patches that attend to each other: those of a tile.
    """

    tokens: float
    image_tokens: float = 0
    patches: float = 0
    item_tokens: float = 0
    image_patches: float = 0


class StepCost:
    """Memory and operations of the passes of a model.

    Args:
        model (`Module`): The model or, with adapters, the [`~peft.PeftModel`]; on any device.
        numerics ([`Numerics`], *optional*): Bytes of the numbers that layers keep.

    Raises:
        ValueError: The model is a mixture of experts, whose tokens pass only some weights, or nothing is trained.
    """

    def __init__(self, model: nn.Module, numerics: Numerics = Numerics()):
        embedder = cast(UniMEModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        if not any(weight.requires_grad for weight in model.parameters()):
            raise ValueError("the model has no trained weight: set use_peft, or train all weights")
        if any(weight.ndim == 3 and ".experts." in name for name, weight in model.named_parameters()):
            raise ValueError("the cost of a mixture of experts is not known: a token passes only some of its weights")
        decoder, config = embedder.backbone.get_decoder(), embedder.config.backbone_config
        inside = set(decoder.modules())
        outside = [module for module in embedder.modules() if module not in inside]
        trains_vision = any(weight.requires_grad for module in outside for weight in module.parameters(recurse=False))
        unused = {embedder.get_submodule(name) for name in modules_without_gradient(embedder)}
        (tower,) = [m for m in outside if isinstance(m, nn.ModuleList) and len(m) and _has_attention(m[0])]

        text: Any = config.get_text_config()
        vision: Any = config.vision_config
        vision_heads = vision.num_heads if "num_heads" in vision.to_dict() else vision.num_attention_heads
        self.decoder = _stack(decoder.layers, text.num_attention_heads, True, numerics, True, set())
        self.tower = _stack(tower, vision_heads, False, numerics, trains_vision, unused)
        in_stacks = inside | set(tower.modules())
        # Mergers and projectors, each layer with the input of the activation function behind it.
        rest = [linear for _, linear in _linears(embedder) if linear not in in_stacks]
        activations = LayerCost(none=sum(numerics.activation * _shape(linear)[1] * trains_vision for linear in rest))
        self.projector = sum((_linear(linear, numerics, trains_vision) for linear in rest), activations)
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        # The input of the final norm, and cosines and sines of the positions.
        self.kept_per_token = 4 * text.hidden_size + 2 * numerics.activation * head_dim

    def kept(self, checkpointing: Checkpointing, load: Load) -> float:
        """Return the bytes of a graph that waits for its backward pass."""
        decoder = (self.decoder.total.kept(checkpointing) + self.kept_per_token) * load.tokens
        tower = self.tower.total.kept(checkpointing) * load.patches
        return decoder + tower + self.projector.none * load.image_tokens

    def peak(self, checkpointing: Checkpointing, load: Load) -> float:
        """Return the bytes of a graph and of its backward pass, at the time when most are needed."""
        decoder = self.decoder.transient(checkpointing) * load.tokens
        # By then the graph of the language model is gone.
        freed = self.decoder.total.kept(checkpointing) * load.tokens
        tower = self.tower.transient(checkpointing) * load.patches - freed
        return self.kept(checkpointing, load) + max(decoder, tower)

    def forward(self, load: Load) -> float:
        """Return the operations of a forward pass."""
        decoder, tower = self.decoder.total, self.tower.total
        language = (decoder.forward + decoder.attention * load.item_tokens) * load.tokens
        vision = (tower.forward + tower.attention * load.image_patches) * load.patches
        return language + vision + self.projector.forward * load.image_tokens

    def backward(self, load: Load) -> float:
        """Return the operations of a backward pass, without anything that is computed again."""
        decoder, tower = self.decoder.total, self.tower.total
        language = (decoder.backward + decoder.attention_backward * load.item_tokens) * load.tokens
        vision = (tower.backward + tower.attention_backward * load.image_patches) * load.patches
        return language + vision + self.projector.backward * load.image_tokens

    def kept_by_level(self, load: Load) -> list[float]:
        """Return the bytes of a graph that waits for its backward pass at each level, see [`plan_passes`]."""
        layers = [
            [vectors * layer.kept(way, stack.keeps_attention(attended)) for way in Checkpointing]
            for stack, vectors, attended in self._stacks(load)
            for layer in stack.layers
        ]
        return _by_level(self.kept(Checkpointing.FULL, load), layers)

    def recomputed_by_level(self, load: Load) -> list[float]:
        """Return the operations that a backward pass computes again at each level."""
        layers = [
            [vectors * layer.recomputed(way, attended, stack.keeps_attention(attended)) for way in Checkpointing]
            for stack, vectors, attended in self._stacks(load)
            for layer in stack.layers
        ]
        return _by_level(sum(full for full, _, _ in layers), layers)

    def _stacks(self, load: Load) -> list[tuple[StackCost, float, float]]:
        """Return the stacks in the order of the levels, with their vectors and what a vector attends to."""
        decoder, tower = (self.decoder, load.tokens, load.item_tokens), (self.tower, load.patches, load.image_patches)
        return [decoder, tower]


def _by_level(smallest: float, layers: Sequence[Sequence[float]]) -> list[float]:
    """Return a sum over layers at each level, from its value at level 0 and the three values of each layer."""
    steps = [selective - full for full, selective, _ in layers] + [none - selective for _, selective, none in layers]
    return list(accumulate(steps, initial=smallest))


def _stack(
    layers: nn.ModuleList, heads: int, causal: bool, numerics: Numerics, gradient: bool, unused: set[nn.Module]
) -> StackCost:
    costs = [_layer(layer, heads, causal, numerics, gradient and layer not in unused) for layer in layers]
    return StackCost(
        sum(costs, LayerCost()),
        max(costs, key=lambda cost: cost.none),
        tuple(costs),
        min(_shape(linear)[0] for _, linear in _linears(layers[0])),
        _working(layers[0], numerics) if gradient else 0,
    )


def _layer(layer: nn.Module, heads: int, causal: bool, numerics: Numerics, gradient: bool) -> LayerCost:
    linears = dict(_linears(layer))
    attention = {name: linear for name, linear in linears.items() if "attn" in name}
    mlp = [linear for name, linear in linears.items() if "attn" not in name]
    projected = {name: linear for name, linear in attention.items() if name.split(".")[-1][0] in "qkv"}
    (output,) = [linear for name, linear in attention.items() if name not in projected]
    width, inner = _shape(output)[0], _shape(mlp[-1])[0]
    hidden = _shape(output)[1]
    element = numerics.activation
    fused = len(projected) == 1  # then the values are a view that keeps queries and keys as well
    query_key_value = sum(_shape(linear)[1] for linear in projected.values())
    scores = 4 * width / (2 if causal else 1)
    cost = sum((_linear(linear, numerics, gradient) for linear in linears.values()), LayerCost())
    cost += LayerCost(
        attention=scores,
        attention_backward=scores * ATTENTION_BACKWARD * gradient,
        last_linear=2 * _shape(mlp[-1])[0] * _shape(mlp[-1])[1],
        adapter_outputs=sum(2 * _rank(linear) * _shape(linear)[1] for linear in linears.values()),
    )
    if not gradient:
        return cost
    norms = sum(_norm(name, module, projected, numerics) for name, module in layer.named_modules())
    attended = element * (query_key_value + width + fused * 2 * width) + 4 * heads
    gated = len(mlp) == 3
    quick = any(type(module).__name__ == "QuickGELUActivation" for module in layer.modules())
    activation = element * inner * (3 if gated else 2 if quick else 1)
    # Unlike inputs that adapters copy, these are shared: one before attention, one before the MLP and one in it; the
    # output of attention is kept anyway.
    shares = [
        linear for linear in (next(iter(projected.values())), mlp[0], mlp[-1]) if _shares_input(linear, numerics)
    ]
    inputs = element * sum(_shape(linear)[0] for linear in shares)
    middle = element * inner * (2 if gated else 1)
    saved = LayerCost(
        full=element * hidden,
        selective=element * (2 * hidden + query_key_value + sum(map(_rank, linears.values()))) + middle,
        attention_result=element * width + 4 * heads,
        none=norms + attended + activation + inputs,
    )
    return cost + saved


def _working(layer: nn.Module, numerics: Numerics) -> float:
    last = [linear for name, linear in _linears(layer) if "attn" not in name][-1]
    (inner, hidden), element = _shape(last), numerics.activation
    copies = ADAPTER_BYTES * (1 + _dropout(last)) if _rank(last) and numerics.autocast else 0
    # Forward: the input of the last linear layer, its copies in the precision of the adapter, and two results.
    forward = (element + copies) * inner + 2 * element * hidden
    # Backward: the gradients of that input, of its copies, and of the factors that it is the product of.
    backward = (2.5 * element + copies) * inner + element * hidden
    return max(forward, backward)


def _linears(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear layers, each with its adapter if it has one."""
    for name, child in module.named_modules():
        is_part = "base_layer" in name or "lora_" in name
        if not is_part and (isinstance(child, nn.Linear) or (isinstance(child, LoraLayer) and _is_linear(child))):
            yield name, child


def _has_attention(layer: nn.Module) -> bool:
    return any("attn" in name for name, _ in _linears(layer))


def _is_linear(adapter: LoraLayer) -> bool:
    return isinstance(adapter.get_base_layer(), nn.Linear)


def _base(linear: nn.Module) -> nn.Linear:
    return linear.get_base_layer() if isinstance(linear, LoraLayer) else cast(nn.Linear, linear)


def _shape(linear: nn.Module) -> tuple[int, int]:
    base = _base(linear)
    return base.in_features, base.out_features


def _rank(linear: nn.Module) -> int:
    return sum(linear.r.values()) if isinstance(linear, LoraLayer) else 0


def _dropout(linear: nn.Module) -> bool:
    return isinstance(linear, LoraLayer) and any(isinstance(m, nn.Dropout) for m in linear.lora_dropout.values())


def _shares_input(linear: nn.Module, numerics: Numerics) -> bool:
    """Return whether a layer keeps its input as it is, which other layers may keep as well."""
    if _base(linear).weight.requires_grad:
        return True
    return _rank(linear) > 0 and not _dropout(linear) and not numerics.autocast


def _linear(linear: nn.Module, numerics: Numerics, gradient: bool) -> LayerCost:
    (width, outputs), rank = _shape(linear), _rank(linear)
    product, low_rank = 2 * width * outputs, 2 * rank * (width + outputs)
    backward = (product * (1 + _base(linear).weight.requires_grad) + 2 * low_rank) if gradient else 0
    kept = 0.0
    if rank and gradient:
        kept = numerics.activation * rank
        if not _shares_input(linear, numerics):
            kept += numerics.activation * width + numerics.mask * width * _dropout(linear)
    return LayerCost(forward=product + low_rank, backward=backward, none=kept)


def _norm(name: str, module: nn.Module, projected: dict[str, nn.Module], numerics: Numerics) -> float:
    """Return the bytes that a norm keeps: its input, and under a trained RMSNorm what it multiplies by its weight."""
    is_rms = type(module).__name__.endswith("RMSNorm")
    if not is_rms and not isinstance(module, nn.LayerNorm):
        return 0
    weight = cast(nn.Parameter, module.weight)
    width = weight.numel()
    for part in ("q", "k"):  # norms of the heads
        if name.endswith(f"{part}_norm"):
            width = next(_shape(linear)[1] for key, linear in projected.items() if key.endswith(f"{part}_proj"))
    kept = 4 if is_rms else numerics.layer_norm
    return width * (kept + (numerics.activation if is_rms and weight.requires_grad else 0))
