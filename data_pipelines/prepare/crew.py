"""Shards made by several processes of this machine, each of which opens the plan for itself."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.prepare.plan import Plan, Preparation


def in_processes(plan: Plan, shards: Sequence[int], workers: int, note: Callable[[int], Any]) -> None:
    """Make shards by worker processes, which end with this one, however it ends.

    Args:
        plan: what is prepared.
        shards: numbers of those to make.
        workers: number of processes.
        note: called with how many more samples are done.

    Raises:
        DataError: what a worker raised, or that it was killed.
    """
    context = multiprocessing.get_context("spawn")
    crew: dict[Connection, multiprocessing.process.BaseProcess] = {}
    try:
        for share in (shards[k::workers] for k in range(workers)):
            mine, theirs = context.Pipe(duplex=False)
            crew[mine] = context.Process(target=_work, args=(plan, share, theirs), daemon=True)
            crew[mine].start()
            theirs.close()
        while crew:
            for end in wait(list(crew)):
                _listen(end, crew, note)  # type: ignore[arg-type]
    finally:
        for process in crew.values():
            process.kill()
            process.join()


def _listen(
    end: Connection, crew: dict[Connection, multiprocessing.process.BaseProcess], note: Callable[[int], Any]
) -> None:
    try:
        message = end.recv()
    except EOFError:
        process = crew.pop(end)
        process.join()
        if process.exitcode:
            how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"status {process.exitcode}"
            raise DataError(
                f"a worker ended with {how} (out of memory?); run again to go on, with fewer --workers"
            ) from None
        return
    if isinstance(message, str):
        raise DataError(message)
    note(message)


def _work(plan: Plan, shards: Sequence[int], told: Connection) -> None:
    """A worker: telling how far it is fails once nobody listens any more, and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the first one ends the others
    try:
        preparation = Preparation(plan)
        folder = preparation.folder()
        for shard in shards:
            preparation.make(folder, shard, told.send)
    except DataError as error:
        told.send(str(error))
    except BrokenPipeError:
        sys.exit(1)
