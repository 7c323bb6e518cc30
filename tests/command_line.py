"""The real command line in this process, and a size of run that takes seconds."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import jax
from jax.experimental.compilation_cache import compilation_cache

from terra_jax.cli import main
from terra_jax.parallel.mesh import make_mesh

TINY = tuple(
    f"--config.{change}"
    for change in (
        "steps=4",
        "batch_size=4",
        "data.samples=40",
        "data.tile=24",
        "data.modalities=(S2L2A,S1RTC)",
        "views.global_size=16",
        "views.local_size=8",
        "views.local_views=0",
        "objective.prototypes=16",
        "objective.head_hidden=16",
        "objective.head_bottleneck=8",
        "checkpoint.every=2",
        "evaluation.every=0",
        "evaluation.bank=0",
    )
)
"""Overrides of a nano config: 4 steps, a checkpoint every 2, no kNN. Runs that share them share their compiled step."""

TINY_EVALUATION = tuple(
    f"--config.{change}"
    for change in ("data.samples=600", "evaluation.bank=24", "evaluation.queries=24", "evaluation.batch_size=24")
)
"""Beside TINY: enough tiles for kNN."""

TINY_TOKENIZER = tuple(
    f"--config.{change}"
    for change in (
        "steps=4",
        "batch_size=4",
        "data.samples=120",
        "data.tile=36",
        "views.sizes=(32,)",
        "checkpoint.every=2",
        "objective.ema_momentum=0.5",
        "evaluation.every=2",
        "evaluation.samples=6",
        "evaluation.codebook_samples=12",
        "evaluation.batch_size=4",
    )
)
"""The same for a nano config of a tokenizer."""

TINY_SKYSENSE = tuple(
    f"--config.{change}"
    for change in (
        "steps=4",
        "batch_size=2",
        "data.samples=300",
        "data.cache=false",
        "data.frames.S2L2A=3",
        "data.frames.S1GRD=2",
        "views.frames.S2L2A=2",
        "views.frames.S1GRD=2",
        "views.shipped.S2L2A=3",
        "views.shipped.S1GRD=2",
        "views.global_size=4",
        "objective.outputs.pixel=16",
        "objective.outputs.object=16",
        "objective.outputs.image=16",
        "objective.head_hidden=16",
        "objective.head_bottleneck=8",
        "checkpoint.every=2",
        "evaluation.every=0",
        "evaluation.bank=12",
        "evaluation.queries=8",
        "evaluation.pixels=8",
        "evaluation.batch_size=4",
    )
)
"""The same for a nano config of SkySense."""


class Result(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]


def runner(cache: Path) -> Command:
    """A function that runs `terra-jax ARGUMENTS` on one device, compiling fast and each program only once."""
    one_device = partial(make_mesh, devices=jax.devices()[:1])

    def run(*arguments: str | Path) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            quick_compilation(cache),
            patch("terra_jax.training.loop.make_mesh", one_device),
            patch("terra_jax.training.doctor.make_mesh", one_device),
        ):
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as stop:  # argparse's way of ending
                status = int(stop.code or 0)
        return Result(status, out.getvalue(), err.getvalue())

    return run


@contextmanager
def quick_compilation(cache: Path | None = None) -> Iterator[None]:
    """Compile without optimising, which takes longer than the tests run; keep what took long in a folder."""
    options = {"jax_disable_most_optimizations": True, "jax_compilation_cache_dir": cache and str(cache)}
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
