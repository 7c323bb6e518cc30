"""What one TPU device can do: peaks of arithmetic, memory and interconnect.

Sources: the "System architecture" pages of Cloud TPU's documentation (v4, v5e, v5p, v6e, TPU7x) for arithmetic, HBM's
bandwidth, ports and NICs; "How to Scale Your Model", chapter "How to think about TPUs", for links, rings and padding.
"""

from dataclasses import dataclass

from terra_jax.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Peaks of one device, as JAX counts devices.

    Attributes:
        name: generation, as topologies are named by.
        flops: bfloat16 FLOP/s.
        hbm_bytes: memory that the compiler lets a program have (libtpu 0.0.42), a little less than there is.
        hbm_bandwidth: bytes/s.
        link: bytes/s of one interconnect link in one direction; every axis of the torus has two links.
        ring: an axis whose length is a multiple of this is closed to a ring.
        dcn: bytes/s of the data-centre network between slices, a device's share.
        mxu: side of the matrix unit; matrices are padded to it.
    """

    name: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link: float
    ring: int
    dcn: float
    mxu: int = 128


CHIPS = {
    # Both cores of a chip are one device, a "megacore".
    "TPU v4": Chip("v4", 275e12, 30.75 * GIB, 1.228e12, link=4.5e10, ring=4, dcn=6.25e9),
    "TPU v5 lite": Chip("v5e", 197e12, 15.75 * GIB, 0.819e12, link=5e10, ring=16, dcn=3.125e9),
    "TPU v5": Chip("v5p", 459e12, 95.74 * GIB, 2.765e12, link=1e11, ring=4, dcn=6.25e9),
    "TPU v6 lite": Chip("v6e", 918e12, 31.25 * GIB, 1.64e12, link=1e11, ring=16, dcn=12.5e9, mxu=256),
    # Two devices a chip, each with half of everything.
    "TPU7x": Chip("tpu7x", 1153.5e12, 94.75 * GIB, 3.69e12, link=5e10, ring=4, dcn=6.25e9, mxu=256),
}
"""JAX's `device_kind` -> peaks."""


def chip_of(device_kind: str) -> Chip:
    """The peaks of a device.

    Raises:
        ConfigError: none are known.
    """
    if device_kind not in CHIPS:
        raise ConfigError(f"no peaks are known of {device_kind!r}, only of {', '.join(CHIPS)}")
    return CHIPS[device_kind]
