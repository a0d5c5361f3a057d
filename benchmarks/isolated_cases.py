"""Run cases in another process, so that one that fails, crashes or hangs does not stop those that follow."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar


Case = TypeVar("Case")
Row = dict[str, Any]
Measure = Callable[[Any], Iterable[Row]]


def run_cases(
    measure: Measure, cases: Sequence[Case], case_seconds: float, total_seconds: float
) -> Iterator[tuple[Case, list[Row], str]]:
    """Yield each case with its rows, and with the reason if it did not finish.

    All cases run in one process, as importing the libraries takes longer than many a case. A case that does not finish
    ends the process with everything that it holds, such as the memory of a GPU; the next case starts another one.

    Args:
        measure (`Callable`): Yields the rows of a case. A module-level function or a `partial` of one.
        cases (`Sequence`): The cases.
        case_seconds (`float`): Time limit of a case, which includes the start of a process.
        total_seconds (`float`): Time limit of all cases; those that have not started by then do not run.
    """
    deadline = time.monotonic() + total_seconds
    worker: tuple[BaseProcess, Connection] | None = None
    try:
        for case in cases:
            if time.monotonic() > deadline:
                yield case, [], f"not run: the {total_seconds:g} s for all cases were over"
                continue
            worker = worker or _start(measure)
            rows, reason = _run(case, *worker, min(case_seconds, deadline - time.monotonic()))
            if reason:
                _end(*worker)
                worker = None
            yield case, rows, reason
    finally:
        if worker is not None:
            _end(*worker)


def _start(measure: Measure) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")  # a fork cannot use CUDA
    connection, of_worker = context.Pipe()
    process = context.Process(target=_serve, args=(measure, of_worker), daemon=True)
    process.start()
    of_worker.close()  # the worker has its own; when that is closed too, `recv` fails instead of waiting
    return process, connection


def _end(process: BaseProcess, connection: Connection) -> None:
    connection.close()
    process.kill()
    process.join()


def _run(case: Any, process: BaseProcess, connection: Connection, seconds: float) -> tuple[list[Row], str]:
    rows: list[Row] = []
    deadline = time.monotonic() + seconds
    connection.send(case)
    while connection.poll(max(0, deadline - time.monotonic())):
        try:
            message = connection.recv()
        except EOFError:
            process.join()
            return rows, f"its process ended with exit code {process.exitcode}"
        if not isinstance(message, dict):
            return rows, message
        rows.append(message)
    return rows, f"stopped after {seconds:.0f} s"


def _serve(measure: Measure, connection: Connection) -> None:
    """Measure the cases that arrive; after the rows of each, send the reason why it failed, or an empty one."""
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        try:
            for row in measure(case):
                connection.send(row)
        except Exception as error:  # of any kind: the parent process names the case and goes on
            connection.send(f"{type(error).__name__}: {str(error).strip()}"[:500])
        else:
            connection.send("")
