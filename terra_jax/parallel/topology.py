"""TPU slices by name, none of which need be at hand: the devices that a program is compiled for."""

import difflib
import importlib.util
import re
from typing import Any

import jax

from terra_jax.errors import ConfigError
from terra_jax.parallel.libtpu import keep_quiet

SHAPES = {
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "tpu7x": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
"""Generation -> shapes of the usual slices, in chips; others are taken too where the compiler knows them."""

KNOWN = tuple(f"{generation}:{shape}" for generation, shapes in SHAPES.items() for shape in shapes)


def topology_devices(name: str, slices: int = 1) -> list[Any]:
    """Devices of a TPU topology that need not exist; they can be compiled for, not run on.

    Args:
        name: generation and shape, "v5e:16x16".
        slices: number of such slices, joined by the data-centre network.

    Raises:
        ConfigError: no such topology, or the compiler for TPUs is not installed.
    """
    _check_name(name)
    if slices < 1:
        raise ConfigError(f"--slices {slices} is too small; use 1 or more")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError('libtpu, the compiler for TPUs, is not installed; pip install "terra_jax[tpu]"')
    keep_quiet()
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if name.startswith("v4"):
        options["chip_config_name"] = "megacore"  # one device a chip, as programs run on v4
    if name.endswith(":1x1"):
        options["chips_per_host_bounds"] = (1, 1, 1)  # a host has 2x2 chips otherwise
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{_unknown(name)} ({str(error).splitlines()[0]})") from error
    return list(described.devices)


def _check_name(name: str) -> None:
    generation, _, shape = name.partition(":")
    dimensions = len(SHAPES[generation][0].split("x")) if generation in SHAPES else 0
    if not dimensions or not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (dimensions - 1), shape):
        raise ConfigError(_unknown(name))


def _unknown(name: str) -> str:
    generation = re.split(r"[:_=-]", name)[0].replace("v5litepod", "v5e").replace("v7x", "tpu7x").replace("tpuv", "v")
    near = difflib.get_close_matches(name, KNOWN, n=3, cutoff=0.6)
    if generation in SHAPES and not near:
        near = [f"{generation}:{shape}" for shape in SHAPES[generation]]
    examples = near or [f"{generation}:{shapes[-1]}" for generation, shapes in SHAPES.items()]
    return f"unknown topology {name!r}; did you mean {', '.join(examples)}?"
