"""Compiling in a process of its own: a compiler that crashes takes nothing else with it."""

import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from terra_jax.errors import TerraJaxError


def compile_apart(
    config: ConfigDict,
    *,
    target: tuple[str, int],
    objective: Callable[[ConfigDict], Any],
    say: Callable[[str], None],
    every: float = 60,
) -> Any:
    """Lower and compile a config's train step in another process.

    Args:
        config: of a run.
        target: topology and number of slices to compile for (`aot.Target.named`).
        objective: config -> objective; a function that can be imported by its name.
        say: takes a line now and then, since a large model takes minutes.
        every: seconds between these lines.

    Returns:
        As `aot.compile_step`.

    Raises:
        TerraJaxError, DataError: as raised there; or the compiler crashed, with its own words.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        arguments = (sender, str(log), config.to_dict(), target, objective)
        child = context.Process(target=_compile, args=arguments, daemon=True)
        child.start()
        sender.close()
        began = time.monotonic()
        while not receiver.poll(every):
            say(f"compiling {config.model} for {target[0]}: {time.monotonic() - began:.0f} s so far")
        try:
            result = receiver.recv()
        except EOFError:
            child.join()
            raise TerraJaxError(_crashed(child.exitcode, log.read_text(errors="replace"))) from None
        child.join()
    if isinstance(result, Exception):
        raise result
    return result


def _compile(
    sender: Connection, log: str, config: dict[str, Any], target: tuple[str, int], objective: Callable
) -> None:
    """Work of the other process; what its libraries say goes to a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    from terra_jax.parallel.aot import Target, compile_step, lower

    try:
        sender.send(compile_step(lower(ConfigDict(config), Target.named(*target), objective)))
    except (TerraJaxError, DataError) as error:
        sender.send(error)


def _crashed(status: int | None, said: str) -> str:
    reasons = re.findall(r"(Check failed: .*|\w*Error: .*|.*[Kk]illed.*)", said) or said.split("\n")[-2:-1]
    reason = reasons[0][:300] if reasons else "it was killed, perhaps for want of memory"
    return f"the compiler (libtpu {version('libtpu')}) ended with status {status}: {reason}"
