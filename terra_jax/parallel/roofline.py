"""The least time that a compiled step takes on given chips: arithmetic, memory and interconnect, each at its peak."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from terra_jax.parallel.hardware import Chip
from terra_jax.parallel.hlo import Collective, Cost, Product

SUBLANES = 8
"""Rows of a matrix are padded to a multiple of this, its other two sides to that of the matrix unit."""


def roofline(cost: Cost, chip: Chip, coordinates: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Seconds of one step by each limit.

    What the vector unit computes is left out, and so is every latency: no step is faster, most are slower.

    Args:
        cost: of one device's program.
        chip: its peaks.
        coordinates: place of every device on the torus, with the slice in front, in the order of the mesh.

    Returns:
        "compute", "memory", "interconnect" and "network" (between slices) in seconds; "max", if all overlap; "sum", if
        nothing does; "limit", the largest of the four.
    """
    bounds = [max(place[i] for place in coordinates) + 1 for i in range(1, len(coordinates[0]))]
    padded = sum(times * padded_flops(product, chip.mxu) for product, times in cost.products.items())
    parts = {
        "compute": padded / chip.flops,
        "memory": cost.bytes / chip.hbm_bandwidth,
        "interconnect": 0.0,
        "network": 0.0,
    }
    for exchange, times in cost.collectives.items():
        places = [coordinates[i] for i in exchange.group]
        for part, seconds in exchange_seconds(exchange, chip, places, bounds).items():
            parts[part] += times * seconds
    limit = max(parts, key=lambda part: parts[part])
    return {**parts, "max": parts[limit], "sum": sum(parts.values()), "limit": limit}


def padded_flops(product: Product, mxu: int) -> float:
    """Operations that the matrix unit spends on a product: its sides filled up, the better of the operands held.

    Args:
        product: sizes.
        mxu: side of the matrix unit.
    """
    k, (low, high) = _up(product.k, mxu), sorted((product.m, product.n))
    sides = min(_up(low, SUBLANES) * _up(high, mxu), _up(high, SUBLANES) * _up(low, mxu))
    return 2.0 * product.count * product.passes * k * sides


def exchange_seconds(
    exchange: Collective, chip: Chip, places: Sequence[tuple[int, ...]], bounds: Sequence[int]
) -> Mapping[str, float]:
    """Time of one exchange along rings of the torus, or over the network where its group lies in several slices.

    Args:
        exchange: kind and operand.
        chip: bandwidths.
        places: of the group's devices, the slice in front.
        bounds: devices along each axis of the torus.
    """
    if exchange.kind == "dcn":
        return {"network": exchange.bytes / chip.dcn}
    size = len(places)
    if size < 2:
        return {}
    sent = {
        "all-reduce": 2 * (size - 1) / size,
        "all-gather": float(size - 1),  # of each device's part
        "collective-permute": 1.0,
    }.get(exchange.kind, (size - 1) / size)
    if len({place[0] for place in places}) > 1:
        return {"network": exchange.bytes * sent / chip.dcn}
    links = 0
    for axis, bound in enumerate(bounds, start=1):
        extent = len({place[axis] for place in places})
        if extent > 1:  # a closed ring is used in both directions at once
            links += 2 if extent == bound and bound % chip.ring == 0 else 1
    return {"interconnect": exchange.bytes * sent / (max(links, 1) * chip.link)}


def exchanges(collectives: Mapping[Collective, int]) -> list[dict[str, Any]]:
    """Collectives of one step by kind and size of group: "kind", "group", "count", "bytes" of operands a device."""
    sums: dict[tuple[str, int], list[int]] = {}
    for exchange, times in collectives.items():
        entry = sums.setdefault((exchange.kind, len(exchange.group)), [0, 0])
        entry[0] += times
        entry[1] += times * exchange.bytes
    return [
        {"kind": kind, "group": group, "count": count, "bytes": size}
        for (kind, group), (count, size) in sorted(sums.items())
    ]


def _up(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple
