"""Directories of zip files, read fast where many files have the same layout.

Source: PKWARE's APPNOTE 6.3.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

_CENTRAL = struct.Struct("<4s6H3L5H2L")
_NUMBERS = (42, 16, 20, 24)  # where an entry has its offset, checksum, packed size and size
_TIME = (12, 13, 14, 15)
_MOST_LAYOUTS = 64


class Entry(NamedTuple):
    """A file of the archive, as its directory lists it."""

    offset: int
    method: int
    crc: int
    packed: int
    size: int


_layouts: dict[tuple[int, int], "_Layout"] = {}
"""(bytes, entries) -> layout of the last directory of that size."""


def read_directory(table: bytes, count: int) -> Mapping[str, Entry]:
    """Path -> entry.

    Args:
        table: the directory.
        count: of its entries.

    Raises:
        ValueError, struct.error: if it is damaged.
    """
    layout = _layouts.get((len(table), count))
    if layout is not None and (found := layout.entries(table)) is not None:
        return found
    place, names = 0, []
    entries: dict[str, Entry] = {}
    for _ in range(count):
        fields = _CENTRAL.unpack_from(table, place)
        crc, packed, size, name_length, extra_length, comment_length = fields[7:13]
        offset, name = fields[16], place + _CENTRAL.size
        extra = name + name_length
        path = table[name:extra].decode()
        names.append((place, path))
        place = extra + extra_length + comment_length
        if 0xFFFFFFFF in (size, packed, offset):
            size, packed, offset = _wide((size, packed, offset), table[extra : extra + extra_length])
        if fields[0] != b"PK\1\2" or path in entries or fields[3] & 1:  # the last: encrypted
            raise ValueError
        entries[path] = Entry(offset, fields[4], crc, packed, size)
    if place != len(table):
        raise ValueError
    if len(_layouts) >= _MOST_LAYOUTS:
        _layouts.clear()
    _layouts[len(table), count] = _Layout(table, names)
    return entries


class _Layout:
    """Where the fields of a directory lie: members of a corpus list the same files, with other sizes and checksums.

    Args:
        table: the directory.
        names: where each entry begins in it, and its path.
    """

    def __init__(self, table: bytes, names: list[tuple[int, str]]):
        places = np.array([place for place, _ in names], np.int64).reshape(-1)
        methods = [int.from_bytes(table[place + 10 : place + 12], "little") for place, _ in names]
        self._rows = {name: (row, method) for row, ((_, name), method) in enumerate(zip(names, methods, strict=True))}
        self._numbers = (places[:, None] + np.array(_NUMBERS))[..., None] + np.arange(4)  # offset, crc, packed, size
        self._fixed = np.full(len(table), 0xFF, np.uint8)
        self._fixed[self._numbers] = 0
        self._fixed[places[:, None] + np.array(_TIME)] = 0
        self._rest = np.frombuffer(table, np.uint8) & self._fixed

    def entries(self, table: bytes) -> Mapping[str, Entry] | None:
        """The entries of a directory that differs in numbers alone; None of any other."""
        held = np.frombuffer(table, np.uint8)
        if not np.array_equal(held & self._fixed, self._rest):
            return None
        numbers = held[self._numbers].view("<u4")[..., 0]
        if (numbers[:, [0, 2, 3]] == 0xFFFFFFFF).any():  # beyond 32 bits: other fields tell
            return None
        return _Listed(self._rows, numbers.tolist())


class _Listed(Mapping[str, Entry]):
    """Entries that are put together when they are asked for: few of them are."""

    def __init__(self, rows: dict[str, tuple[int, int]], numbers: list[list[int]]):
        self._rows, self._numbers = rows, numbers

    def __getitem__(self, path: str) -> Entry:
        row, method = self._rows[path]
        offset, crc, packed, size = self._numbers[row]
        return Entry(offset, method, crc, packed, size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, path: object) -> bool:
        return path in self._rows


def _wide(sizes: tuple[int, ...], extra: bytes) -> list[int]:
    """Sizes beyond 32 bits, from the zip64 field."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, place + 4))
            return [next(values, -1) if value == 0xFFFFFFFF else value for value in sizes]
        place += 4 + length
    raise ValueError("sizes without their zip64 field")
