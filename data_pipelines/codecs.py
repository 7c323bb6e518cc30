"""Decoders of compressed arrays from untrusted files: into memory that is there already, never into more.

Each takes the held bytes and an array of uint8 that it fills exactly; ValueError, RuntimeError or zlib.error say what
is wrong with the bytes.
"""

import struct
import zlib
from collections.abc import Callable

import numpy as np
from numcodecs import blosc, zstd

blosc.use_threads = False  # the loader's threads are the parallelism; Blosc's own would fight them

Bytes = bytes | memoryview


def decode_raw(held: Bytes, out: np.ndarray) -> None:
    """Bytes as they are."""
    if len(held) != out.nbytes:
        raise ValueError(f"{len(held)} bytes instead of {out.nbytes}")
    out[:] = np.frombuffer(held, np.uint8)


def decode_blosc(held: Bytes, out: np.ndarray) -> None:
    """A Blosc buffer, of any of its codecs."""
    if len(held) < 16:
        raise ValueError("no Blosc header")
    size, _, packed = struct.unpack_from("<3L", held, 4)
    if (size, packed) != (out.nbytes, len(held)):
        raise ValueError(f"Blosc declares {size} bytes in {packed}, expected {out.nbytes} in {len(held)}")
    if out.nbytes:
        blosc.decompress(held, out)


def decode_zlib(held: Bytes, out: np.ndarray) -> None:
    """A stream with zlib's or gzip's header."""
    decode_raw(zlib.decompressobj(47).decompress(held, out.nbytes + 1), out)


def decode_zstd(held: Bytes, out: np.ndarray) -> None:
    """A Zstandard frame that says its size: another would be decoded into a buffer that grows with it."""
    if len(held) < 5 or (not held[4] >> 6 and not held[4] & 0x20):
        raise ValueError("a Zstandard frame that does not say its size")
    zstd.decompress(held, out)


CODECS: dict[str | None, Callable[[Bytes, np.ndarray], None]] = {
    None: decode_raw,
    "blosc": decode_blosc,
    "zlib": decode_zlib,
    "gzip": decode_zlib,
    "zstd": decode_zstd,
}
"""By the names that zarr gives them."""
