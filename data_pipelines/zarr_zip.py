"""Reader of zarr v2 groups in zip files, for untrusted input: small, fast, and bounded in what it allocates.

Only what is asked for is read: the zip's directory, then the chunks of an array, each checked against its CRC-32, its
declared and its held size before it is decoded. Whatever is wrong with a file becomes one DataError that names it.

Sources: PKWARE's APPNOTE 6.3 for the container, the zarr storage specification version 2 for what is in it.
"""

import functools
import itertools
import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.codecs import CODECS
from data_pipelines.errors import DataError
from data_pipelines.storage import Read
from data_pipelines.zip_directory import Entry, read_directory

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR, _END64 = struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_ENTRIES, _DIRECTORY_BYTES, _TEXT_BYTES, _CHUNKS = 100_000, 1 << 25, 1 << 24, 1 << 16
_DTYPE = re.compile(r"[<>|][biufUSM]\d{1,6}(\[(ns|us|ms|s|m|h|D)\])?")
_SMALL, _MOST_KNOWN = 2048, 4096
_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class _Known(NamedTuple):
    """A small file: its bytes as they lie in the archive, before and after the time of writing, and what they hold."""

    head: bytes
    rest: bytes
    content: bytes


@dataclass(frozen=True)
class ArrayInfo:
    """What a zarr array says of itself: shape, chunks, dtype, and how its chunks are stored."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    codec: str | None
    fill: Any
    order: str
    separator: str


_known: dict[tuple[str, int, int, int], "_Known"] = {}
"""(path, checksum, packed size, size) -> small file that was read and checked."""


class ZarrZip:
    """A zarr v2 group in a zip file.

    Args:
        read: gives ranges of the file.
        size: bytes of the file.
        name: what messages call it.
        limit: most bytes that one array may decode to.

    Raises:
        DataError: if it is no whole zip file of sane proportions.
    """

    def __init__(self, read: Read, size: int, name: str, limit: int = 1 << 30):
        self._read, self._size, self.name, self._limit = read, size, name, limit
        self._data: bytes | None = None  # all of it, where it is in memory
        self._entries = self._directory()

    @classmethod
    def of(cls, data: bytes, name: str, limit: int = 1 << 30) -> "ZarrZip":
        """The group in a file that is in memory."""
        view = memoryview(data)
        group = cls(lambda start, length: view[start : start + length], len(data), name, limit)  # type: ignore[arg-type,return-value]
        group._data = data
        return group

    def __contains__(self, array: str) -> bool:
        return f"{array}/.zarray" in self._entries

    @cached_property
    def arrays(self) -> list[str]:
        """Names of the arrays at the top."""
        return sorted(name.partition("/")[0] for name in self._entries if re.fullmatch(r"[^/]+/\.zarray", name))

    def attributes(self, array: str = "") -> dict[str, Any]:
        """Attributes of an array, or of the group; empty where there are none."""
        path = f"{array}/.zattrs" if array else ".zattrs"
        if path not in self._entries:
            return {}
        try:
            return dict(_parse_object(bytes(self._bytes(path, _TEXT_BYTES))))
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.name}: {path} is no JSON object; {_AGAIN}") from error

    def info(self, array: str) -> ArrayInfo:
        """Shape, dtype and storage of an array.

        Raises:
            DataError: if it is absent, not of the kinds that are read, or too large.
        """
        if array not in self:
            version = " (it is of zarr version 3)" if "zarr.json" in self._entries else ""
            raise DataError(f"{self.name} has no array {array!r}{version}; it has {', '.join(self.arrays) or 'none'}")
        path = f"{array}/.zarray"
        try:
            info = _parse_info(bytes(self._bytes(path, _TEXT_BYTES)))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.name}: {path} is not of an array that is read here; {_AGAIN}") from error
        if max(math.prod(info.shape), math.prod(info.chunks)) * info.dtype.itemsize > self._limit:
            stated = f"{info.shape} {info.dtype.str} in chunks of {info.chunks}"
            raise DataError(f"{self.name}: {array} declares {stated}, more than {self._limit} bytes; refused")
        return info

    def read(self, array: str, *at: int | None) -> np.ndarray:
        """An array, or the part of it at fixed positions along its first dimensions.

        Args:
            array: its name.
            at: positions; None takes all of a dimension.

        Raises:
            DataError: if it is absent, corrupt or beyond the limits.
        """
        info = self.info(array)
        fixed = (*at, *(None,) * (len(info.shape) - len(at)))
        if len(at) > len(info.shape) or any(
            i is not None and not 0 <= i < n for i, n in zip(fixed, info.shape, strict=True)
        ):
            raise DataError(f"{self.name}: {array} has shape {info.shape}, no position {at}; {_AGAIN}")
        if not at and info.chunks == info.shape:  # all in one chunk, as members of tars are: it is decoded into place
            return self._chunk(array, info, (0,) * len(info.shape), np.empty(info.shape, info.dtype))
        axes = list(zip(fixed, info.shape, info.chunks, strict=True))
        numbers = [range(-(-n // c)) if i is None else range(i // c, i // c + 1) for i, n, c in axes]
        if math.prod(len(r) for r in numbers) > _CHUNKS:
            raise DataError(f"{self.name}: {array} has more than {_CHUNKS} chunks; refused")
        out = np.empty([n for i, n, _ in axes if i is None], info.dtype)
        part = np.empty(info.chunks, info.dtype)
        for number in itertools.product(*numbers):
            placed = list(zip(number, axes, strict=True))
            into = tuple(slice(k * c, min((k + 1) * c, n)) for k, (i, n, c) in placed if i is None)
            held = tuple(slice(min(c, n - k * c)) if i is None else i % c for k, (i, n, c) in placed)
            out[into] = self._chunk(array, info, number, part)[held]
        return out

    def _chunk(self, array: str, info: ArrayInfo, number: tuple[int, ...], target: np.ndarray) -> np.ndarray:
        """A decoded chunk, in the memory of `target`."""
        path = f"{array}/{info.separator.join(map(str, number)) or '0'}"
        if path not in self._entries:
            self._check_names()  # so that no chunk is taken for one that was left out because its name is damaged
            target[...] = 0 if info.fill is None else info.fill
            return target
        flat = target.reshape(-1).view(np.uint8)
        try:
            held = self._bytes(path, _packed_limit(flat.nbytes))
            if flat.nbytes <= _SMALL and isinstance(held, bytes):
                flat[:] = np.frombuffer(_decoded(info.codec, held, flat.nbytes), np.uint8)
            else:
                CODECS[info.codec](held, flat)
        except (RuntimeError, ValueError, zlib.error) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.name}: {path} cannot be decoded ({_reason(error)}); {_AGAIN}") from error
        return target if info.order == "C" else flat.view(info.dtype).reshape(info.chunks[::-1]).T

    # ---- the container ----------------------------------------------------------------------------------------------

    def _bytes(self, path: str, limit: int) -> bytes | memoryview:
        """A file of the archive, unpacked and checked."""
        entry = self._entries[path]
        if self._data is None or entry.size > _SMALL:
            return self._unpacked(path, entry, limit)
        # Members of a corpus say the same of themselves: what was read and checked need not be unpacked again.
        known, start = _known.get((path, *entry[2:])), entry.offset
        if known is not None and self._data[start : start + 10] == known.head:  # the time of writing follows
            rest = self._data[start + 14 : start + 14 + len(known.rest)]
            if rest == known.rest:
                return known.content
        content = bytes(self._unpacked(path, entry, limit))
        header, _ = self._local_header(path, entry, 0)
        held = self._data[start : start + header + entry.packed]
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[path, *entry[2:]] = _Known(held[:10], held[14:], content)
        return content

    def _unpacked(self, path: str, entry: Entry, limit: int) -> bytes | memoryview:
        if max(entry.size, entry.packed) > limit:
            raise DataError(f"{self.name}: {path} declares {entry.size} bytes, more than {limit}; refused")
        start, held = self._local_header(path, entry, entry.packed)
        data = held[start : start + entry.packed]
        if len(data) != entry.packed:
            raise DataError(f"{self.name}: {path} is truncated; {_AGAIN}")
        if entry.method == 8:
            unpacker = zlib.decompressobj(-15)
            try:
                data = unpacker.decompress(data, entry.size + 1)
            except zlib.error as error:
                raise DataError(f"{self.name}: {path} cannot be inflated; {_AGAIN}") from error
        elif entry.method != 0:
            raise DataError(f"{self.name}: {path} is packed by zip method {entry.method}; {_AGAIN}")
        if len(data) != entry.size or zlib.crc32(data) != entry.crc:
            raise DataError(f"{self.name}: {path} does not match its checksum: it is corrupt; {_AGAIN}")
        return data

    def _local_header(self, path: str, entry: Entry, more: int) -> tuple[int, bytes]:
        """Where a file's data begins in the bytes that are returned with it; so many of them are there if held."""
        expected = _LOCAL.size + len(path.encode())
        held = self._range(entry.offset, min(expected + more, self._size - entry.offset))
        if len(held) < expected or bytes(held[:4]) != b"PK\3\4":
            raise DataError(f"{self.name}: {path} is not where the directory says; {_AGAIN}")
        *_, name_length, extra_length = _LOCAL.unpack_from(held)
        if bytes(held[_LOCAL.size : _LOCAL.size + name_length]) != path.encode():
            raise DataError(f"{self.name}: {path} has another name where it lies; {_AGAIN}")
        if extra_length:
            held = self._range(entry.offset, min(expected + extra_length + more, self._size - entry.offset))
        return expected + extra_length, held

    def _check_names(self) -> None:
        for path, entry in self._entries.items():
            self._local_header(path, entry, 0)

    def _range(self, start: int, length: int) -> bytes:
        if start < 0 or length < 0 or start + length > self._size:
            raise DataError(f"{self.name} points beyond its end; {_AGAIN}")
        return self._read(start, length)

    def _directory(self) -> Mapping[str, Entry]:
        count, length, start = self._end()
        if count > _ENTRIES or length > _DIRECTORY_BYTES:
            raise DataError(f"{self.name} lists {count} files in {length} bytes, more than is sane; refused")
        table = bytes(self._range(start, length))
        try:
            return read_directory(table, count)
        except (ValueError, struct.error) as error:
            raise DataError(f"{self.name} has a damaged zip directory; {_AGAIN}") from error

    def _end(self) -> tuple[int, int, int]:
        """Entries, bytes and offset of the directory."""
        # Writers of arrays leave no comment: look at the very end before reading what a comment could take up.
        for reach in (_END.size, _END.size + _LONGEST_COMMENT):
            start = max(self._size - reach, 0)
            tail = bytes(self._range(start, self._size - start))
            found = tail.rfind(b"PK\5\6")
            if found >= 0 and found + _END.size <= len(tail):
                break
        else:
            raise DataError(f"{self.name} is no whole zip file (truncated?); {_AGAIN}")
        _, disk, first, here, count, length, offset, comment = _END.unpack_from(tail, found)
        if found + _END.size + comment != len(tail) or disk or first or here != count:
            raise DataError(f"{self.name} has a damaged end of its zip directory; {_AGAIN}")
        if count == 0xFFFF or 0xFFFFFFFF in (length, offset):
            locator = start + found - _END64_LOCATOR.size
            try:
                mark, _, place, _ = _END64_LOCATOR.unpack(bytes(self._range(locator, _END64_LOCATOR.size)))
                mark64, *_, count, length, offset = _END64.unpack(bytes(self._range(place, _END64.size)))
            except struct.error as error:
                raise DataError(f"{self.name} has a damaged end of its zip directory; {_AGAIN}") from error
            if (mark, mark64) != (b"PK\6\7", b"PK\6\6"):
                raise DataError(f"{self.name} has a damaged end of its zip directory; {_AGAIN}")
        return count, length, offset


_AGAIN = "fetch it again or remove it"


# The members of a corpus describe their arrays in the same words: those are parsed once.


@functools.lru_cache(maxsize=256)
def _parse_object(text: bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


@functools.lru_cache(maxsize=256)
def _parse_info(text: bytes) -> ArrayInfo:
    stated = _parse_object(text)
    shape, chunks = tuple(stated["shape"]), tuple(stated["chunks"])
    compressor, dtype = stated["compressor"], stated["dtype"]
    order, separator = stated["order"], stated.get("dimension_separator", ".")
    whole = all(type(n) is int for n in (*shape, *chunks)) and min((*shape, 0)) >= 0 and min((*chunks, 1)) >= 1
    usable = whole and len(shape) == len(chunks) <= 8 and order in ("C", "F") and separator in (".", "/")
    if not (usable and stated["zarr_format"] == 2 and isinstance(dtype, str) and _DTYPE.fullmatch(dtype)):
        raise ValueError
    codec = None if compressor is None else compressor["id"]
    if stated.get("filters") or codec not in CODECS:
        raise ValueError
    info = ArrayInfo(shape, chunks, np.dtype(dtype), codec, _fill(stated.get("fill_value")), order, separator)
    if not info.dtype.itemsize:
        raise ValueError
    np.full((), 0 if info.fill is None else info.fill, info.dtype)  # refuses a fill value of another kind
    return info


@functools.lru_cache(maxsize=4096)
def _decoded(codec: str | None, held: bytes, size: int) -> bytes:
    """A small chunk: names of bands and the like are the same in all members."""
    out = np.empty(size, np.uint8)
    CODECS[codec](held, out)
    return out.tobytes()


def _fill(value: Any) -> Any:
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


def _packed_limit(size: int) -> int:
    """Most that a chunk may take up in the archive: codecs add little to what they cannot compress."""
    return size + size // 8 + 4096


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
