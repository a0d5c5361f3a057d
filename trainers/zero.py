"""Gradient caching under DeepSpeed's ZeRO, which reduces gradients in its own backward pass.

Stage 1 shards the optimizer, stage 2 the gradients too, stage 3 the weights too. To ZeRO the micro-batches of a step
are what gradient accumulation is to other trainers: each is sent back through the engine, which is told of the last
one. The processes must take the same steps, as under FSDP2 (`sharding.common_plan`).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from .gradient_cache import SendBack


if TYPE_CHECKING:  # an extra, which those who train without it lack
    from deepspeed import DeepSpeedEngine


def through(engine: "DeepSpeedEngine") -> SendBack:
    """Return what sends gradients back through an engine, summed over the processes: ZeRO takes their mean."""
    processes = distributed.get_world_size()

    def send_back(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(last)
        engine.optimizer.clear_backward_seen_flag()  # as a forward pass would, of which kept graphs need no second
        with torch.enable_grad():  # this runs in a hook of the loss's own backward
            engine.backward((embeddings * gradient).sum() * processes, scale_wrt_gas=False)

    return send_back
