"""Which settings of a run are worth compiling: step time and memory guessed from the traced program, in seconds.

Rough on purpose: products at their peak, what scans keep for the backward pass, state and exchanges by their sizes. It
orders candidates; the compiler decides (`aot.compile_step`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from terra_jax.parallel.aot import MakeObjective, Target, changed, resolved, traced
from terra_jax.parallel.fitting import MOST_FSDP, REMAT
from terra_jax.parallel.flops import count_flops
from terra_jax.parallel.mesh import make_mesh

FILLED = 0.95
"""Candidates are wanted to leave a little of the memory, since the guess leaves things out."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a config.

    Attributes:
        change: config key -> value.
        seconds: of a step, by its longest part.
        peak_bytes: on one device.
    """

    change: dict[str, Any]
    seconds: float
    peak_bytes: float


@dataclass(frozen=True)
class Sizes:
    """What estimates are made of, over all devices.

    Attributes:
        flops: executed, remat policy -> operations of a step.
        saved: remat policy -> bytes that are kept for the backward pass.
        params: bytes of the parameters, float32.
        state: of all that a step hands to the next.
    """

    flops: dict[str, float]
    saved: dict[str, float]
    params: int
    state: int


def measured(config: ConfigDict, target: Target, objective: MakeObjective, policies: Sequence[str] = REMAT) -> Sizes:
    """Trace a config's step under each rematerialisation policy, on a plain data-parallel mesh."""
    config, mesh, flops, saved = resolved(config), make_mesh(devices=target.devices), {}, {}
    for policy in policies:
        values = {"remat": policy, "accumulation": 1}
        program, step = traced(changed(config, **values), mesh, objective)
        flops[policy], saved[policy] = count_flops(step.jaxpr), saved_bytes(step.jaxpr)
    state = program.abstract_state
    return Sizes(flops, saved, _bytes(state["params"]), _bytes(state))


def saved_bytes(jaxpr: Any) -> float:
    """Bytes of what the scans of a jaxpr stack up, those within a scan's body once."""
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "scan":
            once = equation.params["jaxpr"].jaxpr.outvars
            # what is carried comes out as it is in the body, what is stacked has an axis more
            kept = [o.aval for o, i in zip(equation.outvars, once, strict=True) if o.aval.ndim > i.aval.ndim]
            total += sum(math.prod(array.shape) * array.dtype.itemsize for array in kept)
        for value in equation.params.values():
            if hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
                total += saved_bytes(value)
    return total


def candidates(config: ConfigDict, target: Target, sizes: Sizes) -> list[Candidate]:
    """Ways to run a config on a target, those that seem to fit first and of these the fastest first."""
    chip, devices = target.chip, len(target.devices)
    found = []
    for policy, flops in sizes.flops.items():
        for fsdp in (2**i for i in range(int(math.log2(MOST_FSDP)) + 1)):
            for parts in (2**i for i in range(7)):
                if devices % fsdp or config.batch_size % (devices * parts):
                    continue
                saved, state = sizes.saved[policy] / devices, sizes.state / fsdp
                peak = state + 2 * sizes.params / fsdp + saved / parts
                gathered = 3 * parts * sizes.params / 2 * (fsdp - 1) / fsdp  # bfloat16: teacher, forward, backward
                reduced = 2 * sizes.params / fsdp
                times = (
                    flops / devices / chip.flops,
                    (2 * state + 2 * saved + 2 * (parts - 1) * sizes.params / fsdp) / chip.hbm_bandwidth,
                    (gathered + reduced) / (2 * chip.link),
                )
                change = {"remat": policy, "accumulation": parts, "mesh.data": devices // fsdp, "mesh.fsdp": fsdp}
                found.append(Candidate(change, max(times) + 0.1 * sum(times), peak))
    return sorted(found, key=lambda c: (c.peak_bytes > FILLED * chip.hbm_bytes, c.seconds))


def _bytes(tree: Any) -> int:
    return sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
