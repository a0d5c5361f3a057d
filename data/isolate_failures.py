"""Work on items together, and where that fails find the items at fault by halving."""

from collections.abc import Callable, Sequence
from typing import TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")
Fault = TypeVar("Fault", bound=Exception)


def map_isolating_failures(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], fault: type[Fault]
) -> list[Result | Fault]:
    """Work on all items together; where that fails, on the halves: only the items at fault have an error.

    Args:
        work (`Callable`): From one or more items to as many results in their order.
        items (`Sequence`): The items.
        fault (`type`): The error that an item may cause; any other ends the work.

    Returns:
        `list`: For each item its result or its error.
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
