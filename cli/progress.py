"""What a long job shows on the terminal: its progress, one line per kind of warning, and what Ctrl-C keeps."""

import os
import re
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TextIO

from .options import printable


INTERRUPTED = 130  # exit status of a command that Ctrl-C ends

P = ParamSpec("P")
Show = Callable[[str, int, int], None]  # stage, entries done, all entries


def interruptible(command: Callable[P, None]) -> Callable[P, None]:
    """Let Ctrl-C end a command at once, also while it opens its corpus and imports libraries."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with _interruptible(lambda: "nothing was embedded"):
            command(*args, **kwargs)

    return run


@contextmanager
def job(kept: Callable[[], str]) -> Iterator[Show]:
    """Run a long job that can be interrupted, and yield a function that shows its progress.

    Args:
        kept (`Callable`): Returns a sentence on what is kept when the job is interrupted.
    """
    with _pillow_warnings(), _progress() as show, _interruptible(kept):
        yield show


@contextmanager
def _progress() -> Iterator[Show]:
    """Show a progress bar per stage on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, rate="")
            speed = progress.tasks[tasks[stage]].speed or 0
            progress.update(tasks[stage], completed=done, total=total, rate=f"{speed:.1f} entries/s")

        yield show


@contextmanager
def _interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C end the process at once: what is written is whole at any time, and threads are not waited for."""

    def stop(signal_number: int, frame: object) -> None:
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # which the progress bar hides
        print(f"{show_cursor}\ninterrupted: {kept()}", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _pillow_warnings() -> Iterator[None]:
    """Count the warnings of Pillow, and print one line for each kind at the end."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}

    def count(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if Path(filename).parent.name != "PIL":
            show_warning(message, category, filename, lineno, file, line)
            return
        text = printable(str(message)).strip()
        kind = re.sub(r"\d+", "0", text)
        counts[kind] += 1
        examples.setdefault(kind, text)

    with warnings.catch_warnings():
        show_warning, warnings.showwarning = warnings.showwarning, count
        warnings.filterwarnings("always", module=r"PIL\.")
        try:
            yield
        finally:
            for kind, number in counts.most_common():
                print(f"{number} warnings of Pillow, such as: {examples[kind]}", file=sys.stderr)
