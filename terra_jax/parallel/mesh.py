"""The device mesh: axes `data`, `fsdp` and `tensor`, in this order."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from terra_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
"""`data` replicates parameters, `fsdp` shards them beside the batch, `tensor` shards within a layer."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lay the devices out as a mesh of `data x fsdp x tensor`.

    Args:
        data: number of data-parallel groups; -1 takes all devices that the other axes leave.
        fsdp: number of devices that share the parameters while splitting the batch; -1 as above.
        tensor: number of devices that split single layers; -1 as above.
        devices: what to lay out; all devices of all processes by default.

    Raises:
        ConfigError: the axes do not multiply to the number of devices.
    """
    available = list(jax.devices() if devices is None else devices)
    sizes = _fill(dict(zip(AXES, (data, fsdp, tensor), strict=True)), len(available))
    # jax.make_mesh would default to Explicit axes; the shardings here are hints to the partitioner.
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=available)


def _fill(sizes: dict[str, int], devices: int) -> dict[str, int]:
    """Replace the one -1 and check the product."""
    for name, size in sizes.items():
        if size == 0 or size < -1:
            raise ConfigError(f"mesh.{name}={size} is not a number of devices; use 1 or more, or -1 for all remaining")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(f"mesh.{free[0]} and mesh.{free[1]} are both -1; only one axis can take what remains")
    product = 1
    for size in sizes.values():
        product *= max(size, 1)
    shape = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    if devices % product or (not free and product != devices):
        fitting = [size for size in range(1, devices + 1) if devices % size == 0]
        raise ConfigError(
            f"{shape} does not fit {devices} device(s); the product must be {devices}: "
            f"use sizes out of {fitting}, or mesh.data=-1 for what the other axes leave"
        )
    return {name: devices // product if size == -1 else size for name, size in sizes.items()}
