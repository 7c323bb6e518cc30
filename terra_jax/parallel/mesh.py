"""The device mesh: axes `data`, `fsdp` and `tensor`, in this order."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
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
        ConfigError: the axes do not multiply to the number of devices, or do not divide over the slices.
    """
    available = list(jax.devices() if devices is None else devices)
    sizes = _fill(dict(zip(AXES, (data, fsdp, tensor), strict=True)), len(available))
    # Explicit axes would make types of the shardings; here they are hints to the partitioner.
    return Mesh(_laid_out(tuple(sizes.values()), available), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch_size(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Make sure that a global batch divides over the devices and the micro-batches.

    Raises:
        ConfigError: it does not.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = shards * accumulation
    if batch_size < 1 or batch_size % unit:
        raise ConfigError(
            f"batch_size={batch_size} must be a multiple of mesh.data x mesh.fsdp x accumulation = "
            f"{shards} x {accumulation} = {unit}; the nearest is {max(round(batch_size / unit), 1) * unit}"
        )


def _laid_out(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Devices so that neighbours on the mesh are neighbours on the interconnect; TPU slices lie along `data`."""
    slices = len({getattr(device, "slice_index", None) for device in devices if device.platform == "tpu"})
    if slices < 2:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise ConfigError(
            f"mesh.data={shape[0]} must be a multiple of the {slices} slices: no other axis may span the slow network"
        )
    within = (shape[0] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)


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
