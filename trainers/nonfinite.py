"""What is said where a loss, a gradient or a weight is not a finite number, and which rows it comes from."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter


_MAX_NAMED_ITEMS = 5  # items; a batch may have thousands


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all numbers of all tensors are finite; those of no tensor are."""
    checks = [tensor.isfinite().all() for tensor in tensors if tensor is not None]
    return not checks or bool(torch.stack([check.to(checks[0].device) for check in checks]).all())


def nonfinite_error(what: str, step: int, found: Sequence[str]) -> ValueError:
    """The error that stops a training before the weights are changed.

    Args:
        what (`str`): What is not finite, such as "the loss is nan".
        step (`int`): The step that cannot be taken, counted from 1.
        found (`Sequence[str]`): Where its items stand in the data; none if they are those of another process.
    """
    named = "; ".join(found[:_MAX_NAMED_ITEMS]) or "none of this process"
    more = f" and {len(found) - _MAX_NAMED_ITEMS} more" if len(found) > _MAX_NAMED_ITEMS else ""
    return ValueError(
        f"step {step}: {what}, with the items {named}{more}: the weights are those of the step before and the last "
        "checkpoint stays; mend or remove these rows, lower the learning rate, or take another dtype"
    )


def check_finite_weights(parameters: Iterable[tuple[str, Parameter]], step: int) -> None:
    """See that trained weights can be saved.

    Raises:
        ValueError: One of them is not finite.
    """
    for name, parameter in parameters:
        if parameter.requires_grad and not all_finite([parameter]):
            raise ValueError(
                f"after step {step} the weight {name} is not finite: nothing is saved and the last checkpoint stays; "
                "go on from there with a lower learning rate"
            )
