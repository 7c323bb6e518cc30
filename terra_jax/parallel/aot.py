"""The train step of a config, compiled for TPUs that are not there: whether it fits, what it does, how fast it can be.

The program is the one that training runs (`training.build`), with its shardings and its donated state; only the arrays
are missing.
"""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
from ml_collections import ConfigDict

from terra_jax.errors import TerraJaxError
from terra_jax.parallel.flops import count_flops
from terra_jax.parallel.hardware import GIB, Chip, chip_of
from terra_jax.parallel.hlo import Cost, cost_of
from terra_jax.parallel.mesh import check_batch_size, make_mesh
from terra_jax.parallel.roofline import exchanges, roofline
from terra_jax.parallel.topology import topology_devices
from terra_jax.training.build import Program, build
from terra_jax.training.objective import Objective
from terra_jax.training.optimiser import AdamW

MakeObjective = Callable[[ConfigDict], Objective]


@dataclass(frozen=True)
class Target:
    """What is compiled for.

    Attributes:
        topology: "v5e:16x16".
        slices: number of them.
        devices: all of them.
        chip: what each can do.
    """

    topology: str
    slices: int
    devices: list[Any]
    chip: Chip

    @classmethod
    def named(cls, topology: str, slices: int = 1) -> "Target":
        """The target of a name.

        Raises:
            ConfigError: no such topology, or no compiler for it.
        """
        devices = topology_devices(topology, slices)
        return cls(topology, slices, devices, chip_of(devices[0].device_kind))


@dataclass(frozen=True)
class Lowered:
    """A train step, traced and lowered for a target.

    Attributes:
        config: as it was lowered.
        target: for what.
        program: shardings and shapes.
        step: what `jax.jit(...).lower` gives.
        model_flops: of one step on one device, recomputation left out.
    """

    config: ConfigDict
    target: Target
    program: Program
    step: Any
    model_flops: float

    @property
    def state_bytes(self) -> int:
        """Of one device's part of parameters, optimiser, teacher and all else that a step hands to the next."""
        leaves = jax.tree.leaves(self.program.abstract_state)
        return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)

    def digest(self) -> str:
        """Hash of the module, by which the result of compiling it is known again."""
        return hashlib.sha256(self.step.as_text().encode()).hexdigest()


def lower(config: ConfigDict, target: Target, objective: MakeObjective) -> Lowered:
    """Trace and lower a config's train step, which takes seconds; compiling it takes minutes.

    Args:
        config: of a run; "dtype=auto" means bfloat16, as on the target.
        target: what to compile for.
        objective: config -> objective, without data.

    Raises:
        ConfigError: mesh or batch do not divide, or options contradict each other.
    """
    mesh = make_mesh(**config.mesh, devices=target.devices)
    check_batch_size(config.batch_size, config.accumulation, mesh)
    config = resolved(config)
    program, step = traced(config, mesh, objective)
    plain = step if config.remat == "none" else traced(changed(config, remat="none"), mesh, objective)[1]
    return Lowered(config, target, program, step.lower(), count_flops(plain.jaxpr) / len(target.devices))


def traced(config: ConfigDict, mesh: jax.sharding.Mesh, objective: MakeObjective) -> tuple[Program, Any]:
    """The program of a config on a mesh, and its step as `jax.jit(...).trace` gives it."""
    optimiser = AdamW.from_config(config.optimizer, config.steps)
    program = build(objective(config), optimiser, mesh, accumulation=config.accumulation, seed=config.seed)
    step = cast(Any, program.step)  # a jax.jit
    return program, step.trace(program.abstract_state, program.abstract_batch(config.batch_size))


def resolved(config: ConfigDict) -> ConfigDict:
    """A config as the target reads it: "dtype=auto" means bfloat16 there, whatever this machine computes in."""
    return changed(config, dtype="bfloat16" if config.dtype == "auto" else config.dtype)


def changed(config: ConfigDict, **values: Any) -> ConfigDict:
    """A copy of a config with other values; `mesh` takes a dict of axes."""
    copy = ConfigDict(config.to_dict())
    copy.update(values)
    return copy


def compile_step(step: Lowered) -> dict[str, Any]:
    """Compile a lowered step and say what it needs and how fast it can be.

    Returns:
        JSON values, for one device and one step unless said otherwise: "run" (what was compiled), "argument_bytes",
        "peak_bytes", "hbm_bytes", "fits", "model_flops" (without recomputation), "compiled_flops", "bytes_moved",
        "collectives" (`roofline.exchanges`), "roofline" (`roofline.roofline`, seconds), "mfu_upper_bound" (model FLOPs
        by what the chip could do in the roofline's longest time) and "checks" (`checks`). What follows from the
        compiled program is None where it does not fit, or where the compiler does not print it (TPU7x).

    Raises:
        TerraJaxError: the compiler gives up for another reason than memory.
    """
    chip = step.target.chip
    report: dict[str, Any] = {
        "run": _run(step),
        "argument_bytes": step.state_bytes,
        "peak_bytes": 0,
        "hbm_bytes": int(chip.hbm_bytes),
        "fits": False,
        "model_flops": step.model_flops,
        "compiled_flops": None,
        "bytes_moved": None,
        "collectives": None,
        "roofline": None,
        "mfu_upper_bound": None,
        "checks": None,
    }
    try:
        compiled = step.step.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = out_of_memory(error)
        return report | {"peak_bytes": needed, "hbm_bytes": available}
    memory = compiled.memory_analysis()
    report |= {
        "argument_bytes": memory.argument_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "fits": True,
    }
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        return report
    cost = cost_of(text, len(step.target.devices))
    times = roofline(cost, chip, coordinates(step.program.mesh))
    return report | {
        "compiled_flops": cost.flops,
        "bytes_moved": cost.bytes,
        "collectives": exchanges(cost.collectives),
        "roofline": times,
        "mfu_upper_bound": step.model_flops / (chip.flops * times["max"]),
        "checks": checks(cost, text),
    }


def checks(cost: Cost, text: str) -> dict[str, Any]:
    """What ought not to be in a program: transfers to the host, float64, float32 products below full precision.

    Products in float32 are slow on purpose where they are asked for at the highest precision (cutting views); any
    others are a network that was to compute in bfloat16. Given as a share of all operations.
    """
    slow = sum(n * p.flops for p, n in cost.products.items() if p.dtype == "f32" and p.passes == 1)
    return {
        "host_transfers": cost.host_transfers,
        "float64": re.search(r"\b(f64|c128)\[", text) is not None,
        "float32_share": slow / cost.flops if cost.flops else 0.0,
    }


def coordinates(mesh: jax.sharding.Mesh) -> list[tuple[int, ...]]:
    """Slice and place on the torus of every device of a mesh, in its order."""
    return [(getattr(d, "slice_index", None) or 0, *d.coords) for d in mesh.devices.flat]


def _run(step: Lowered) -> dict[str, Any]:
    config, target, mesh = step.config, step.target, dict(step.program.mesh.shape)
    shards = mesh["data"] * mesh["fsdp"]
    return {
        "model": config.model,
        "topology": target.topology,
        "slices": target.slices,
        "devices": len(target.devices),
        "mesh": mesh,
        "batch_size": config.batch_size,
        "batch_per_device": config.batch_size / shards / config.accumulation,
        "accumulation": config.accumulation,
        "remat": config.remat,
        "dtype": config.dtype,
        "jax": jax.__version__,
    }


def out_of_memory(error: Exception) -> tuple[int, int]:
    """Bytes that a program would need and that there are, from the compiler's complaint.

    Raises:
        TerraJaxError: it complains of something else.
    """
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
        raise TerraJaxError(f"the compiler gave up: {message.splitlines()[0]}") from error
    sizes = re.search(r"([\d.]+)([KMGT])\)? (?:exceeds available HBM \(|of )([\d.]+)([KMGT])", message)
    if sizes is None:
        raise TerraJaxError(f"the program does not fit: {message.splitlines()[0]}") from error
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    return int(float(sizes[1]) * units[sizes[2]]), int(float(sizes[3]) * units[sizes[4]])
