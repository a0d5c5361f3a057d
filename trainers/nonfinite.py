"""Checks and errors for losses, gradients and weights that are NaN or infinite."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter


MAX_NAMED_ITEMS = 5  # a batch may have thousands


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether all numbers of all tensors are finite; True if there are no tensors."""
    checks = [tensor.isfinite().all() for tensor in tensors if tensor is not None]
    return not checks or bool(torch.stack([check.to(checks[0].device) for check in checks]).all())


def nonfinite_error(what: str, step: int, provenance: Sequence[str]) -> ValueError:
    """Return the error that stops training before the weights are changed.

    Args:
        what (`str`): What is not finite, such as "the loss is nan".
        step (`int`): The step that cannot be taken, counted from 1.
        provenance (`Sequence[str]`): Where the items that cause it come from; empty if another process has them.
    """
    named = "; ".join(provenance[:MAX_NAMED_ITEMS]) or "of another process"
    more = f" and {len(provenance) - MAX_NAMED_ITEMS} more" if len(provenance) > MAX_NAMED_ITEMS else ""
    return ValueError(
        f"step {step}: {what} for the items {named}{more}: the weights and the last checkpoint are unchanged; fix or "
        "remove these rows, lower the learning rate, or use another dtype"
    )


def check_finite_weights(parameters: Iterable[tuple[str, Parameter]], step: int) -> None:
    """Check that the trained weights can be saved.

    Args:
        parameters (`Iterable[tuple[str, Parameter]]`): The names and weights of the model; frozen ones are skipped.
        step (`int`): The last step that was taken, counted from 1.

    Raises:
        ValueError: A weight is not finite.
    """
    for name, parameter in parameters:
        if parameter.requires_grad and not all_finite([parameter]):
            raise ValueError(
                f"the weight {name} is not finite after step {step}: nothing was saved and the last checkpoint is "
                "unchanged; resume from it with a lower learning rate"
            )
