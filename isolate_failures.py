"""Batch processing that isolates the items at fault by bisection."""

from collections.abc import Callable, Sequence
from typing import TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")
Fault = TypeVar("Fault", bound=Exception)


def map_isolating_failures(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], fault: type[Fault]
) -> list[Result | Fault]:
    """Process all items together; if that fails, process the halves, until only the items at fault have an error.

    Args:
        work (`Callable`): Maps one or more items to as many results, in their order.
        items (`Sequence`): The items.
        fault (`type`): Exception that a bad item raises; any other exception propagates.

    Returns:
        `list`: The result or the exception of each item, in order.
    """
    if not items:
        return []
    try:
        return list(work(items))
    except fault as error:
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return [*map_isolating_failures(work, items[:middle], fault), *map_isolating_failures(work, items[middle:], fault)]
