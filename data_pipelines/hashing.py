"""Deterministic pseudo-random numbers that are functions of an identity, not of an order of calls."""

import hashlib
from collections.abc import Iterable

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_ints(values: np.ndarray | int, seed: int = 0) -> np.ndarray:
    """Mix integers to 64 well-distributed bits (the finaliser of SplitMix64, Steele et al. 2014).

    Args:
        values: integers of any shape.
        seed: gives an independent hash function.

    Returns:
        uint64 array of the same shape.
    """
    with np.errstate(over="ignore"):
        salt = _mix(np.asarray(seed, np.int64).astype(np.uint64) + _GOLDEN)
        return _mix(np.asarray(values, np.int64).astype(np.uint64) * _GOLDEN + salt)


def hash_strings(keys: Iterable[str], seed: int = 0) -> np.ndarray:
    """Hash strings to uint64, the same on every machine and Python version."""
    digests = [hashlib.blake2b(str(key).encode(), digest_size=8).digest() for key in keys]
    raw = np.frombuffer(b"".join(digests), "<u8")
    return hash_ints(raw.astype(np.int64), seed)


def to_unit(hashed: np.ndarray) -> np.ndarray:
    """Map uint64 hashes to float64 in [0, 1)."""
    return (np.asarray(hashed, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
