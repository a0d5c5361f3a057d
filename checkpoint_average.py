"""The mean of the weights of several checkpoints of one model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load_model, save_checkpoint


def average_checkpoints(
    checkpoints: Sequence[str | Path], directory: str | Path, weights: Sequence[float] | None = None, **kwargs: Any
) -> Path:
    """Average the weights of checkpoints, and write the result as a checkpoint.

    Runs from the same start that differ in their seed, data or learning rate lie close enough together that the mean
    of their weights is often better than each of them (model soups, arXiv 2203.05482). The processor, the prompts and
    the settings are those of the first checkpoint. Two models are in memory at once.

    Args:
        checkpoints (`Sequence[str | Path]`): Folders or Hub ids of at least two checkpoints of one backbone. Adapters
            are merged as they are loaded.
        directory (`str` or `Path`): Where to write the checkpoint.
        weights (`Sequence[float]`, *optional*, defaults to equal weights): Weight of each checkpoint, divided by
            their sum.
        kwargs: Passed to [`load_model`] (`dtype`, ...).

    Returns:
        `Path`: The directory.

    Raises:
        ValueError: There are fewer than two checkpoints, the weights do not fit, or the tensors of two checkpoints
            differ in names or shapes.
    """
    if len(checkpoints) < 2:
        raise ValueError(f"there is nothing to average in {len(checkpoints)} checkpoint: name at least two")
    weights = [1.0] * len(checkpoints) if weights is None else weights
    if len(weights) != len(checkpoints) or not sum(weights) > 0:
        raise ValueError(
            f"expected one weight for each of the {len(checkpoints)} checkpoints, with a positive sum, got {weights}"
        )
    shares = [weight / sum(weights) for weight in weights]
    model, processor = load_model(str(checkpoints[0]), **kwargs)
    parameters = model.state_dict()
    means = {name: shares[0] * value.float() for name, value in parameters.items() if value.is_floating_point()}
    for checkpoint, share in zip(checkpoints[1:], shares[1:], strict=True):
        others = load_model(str(checkpoint), **kwargs)[0].state_dict()
        shapes, other_shapes = ({n: v.shape for n, v in each.items()} for each in (parameters, others))
        if shapes != other_shapes:
            different = sorted({name for name, _ in set(shapes.items()) ^ set(other_shapes.items())})
            raise ValueError(
                f"{checkpoint} and {checkpoints[0]} are not of one model: {len(different)} tensors differ in name or "
                f"shape, such as {different[0]}"
            )
        for name, mean in means.items():
            mean += share * others[name].float()
    with torch.no_grad():
        for name, mean in means.items():
            parameters[name].copy_(mean)
    return save_checkpoint(model, processor, directory)
