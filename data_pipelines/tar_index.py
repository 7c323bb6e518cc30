"""Where the members of a tar file lie, from one pass over its headers.

Sources: POSIX.1-2001 (ustar and pax interchange formats), and GNU's long names.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.errors import DataError
from data_pipelines.storage import Read, Storage, read_parquet

_BLOCK = 512
_LONGEST_HEADER = 1 << 20  # of a pax or long-name member
_METADATA = b"terra_jax.tar_index"


@dataclass(frozen=True)
class TarIndex:
    """Members of a tar file, in order.

    Attributes:
        names: of regular files.
        offsets, sizes: of their contents, bytes, int64.
        problem: why the file could not be followed to its end; "" where it is whole. Members before that are listed,
            the one that is cut off too.
    """

    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    problem: str = ""


def index_tar(read: Read, size: int) -> TarIndex:
    """Walk the headers of a tar file.

    Args:
        read: gives ranges of the file.
        size: bytes of the file.
    """
    names: list[str] = []
    places: list[tuple[int, int]] = []
    problem = ""
    try:
        for name, offset, length in _members(read, size):
            names.append(name)
            places.append((offset, length))
    except ValueError as error:
        problem = str(error)
    columns = np.asarray(places, np.int64).reshape(-1, 2)
    return TarIndex(names, columns[:, 0].copy(), columns[:, 1].copy(), problem)


def index_tars(
    storage: Storage,
    files: Sequence[tuple[str, int, str]],
    cache: str | Path | None = None,
    threads: int = 8,
    progress: Callable[[], None] | None = None,
) -> list[TarIndex]:
    """Indices of many tar files.

    Args:
        storage: where they lie.
        files: (path, bytes, version) of each.
        cache: folder that keeps the indices for the next time; a file that changed is read again.
        threads: that read at once.
        progress: called after each file.

    Raises:
        DataError: if a file or the cache cannot be read.
    """

    def one(file: tuple[str, int, str]) -> TarIndex:
        path, size, version = file
        kept = None if cache is None else Path(cache) / f"{_digest(storage.name(path), size, version)}.parquet"
        index = None if kept is None else _load(kept)
        if index is None:
            with storage.reader(path) as read:
                index = index_tar(read, size)
            if kept is not None:
                _save(kept, index)
        if progress is not None:
            progress()
        return index

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, files))


def _members(read: Read, size: int) -> Iterator[tuple[str, int, int]]:
    place, named, stated = 0, "", None
    while True:
        header = bytes(read(place, min(_BLOCK, size - place))) if place < size else b""
        if len(header) < _BLOCK:
            raise ValueError(f"truncated: it ends at byte {size} without the mark of an end")
        if not header.strip(b"\0"):
            return
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise ValueError(f"the header at byte {place} is damaged")
        length, kind = _number(header[124:136]), header[156:157]
        content = place + _BLOCK
        if kind in b"xgL":
            text = _header_text(read, content, length, size)
            if kind == b"L":
                named = text.rstrip(b"\0").decode(errors="replace")
            elif kind == b"x":
                records = _pax(text)
                named, stated = records.get("path", named), records.get("size", stated)
        else:
            length = length if stated is None else _decimal(stated)
            if kind in (b"0", b"\0", b"7"):
                yield named or _name(header), content, length
            named, stated = "", None
        place = content + -(-length // _BLOCK) * _BLOCK
        if place > size:
            raise ValueError(f"truncated: a member ends at byte {content + length} of {size}")


def _header_text(read: Read, start: int, length: int, size: int) -> bytes:
    if length > _LONGEST_HEADER or start + length > size:
        raise ValueError(f"the header at byte {start - _BLOCK} declares {length} bytes")
    return bytes(read(start, length))


def _pax(text: bytes) -> dict[str, str]:
    records = {}
    while text:
        length = _decimal(text.partition(b" ")[0].decode(errors="replace"))
        if not 0 < length <= len(text):
            raise ValueError("a pax header is damaged")
        key, _, value = text[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        records[key.decode(errors="replace")] = value.decode(errors="replace")
        text = text[length:]
    return records


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError("a pax header is damaged")
    return int(text)


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's and star's base 256
        value = int.from_bytes(field[1:], "big")
        if field[0] != 0x80 or value >= 1 << 62:
            raise ValueError("a header holds a number out of range")
        return value
    digits = field.strip(b"\0 ")
    if digits.strip(b"01234567"):
        raise ValueError("a header holds no octal number where one belongs")
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    name, prefix = (part.partition(b"\0")[0] for part in (header[:100], header[345:500]))
    if header[257:262] == b"ustar" and header[257:265] != b"ustar  \0" and prefix:
        name = prefix + b"/" + name
    return name.decode(errors="replace")


# ---- indices kept between runs ---------------------------------------------------------------------------------------


def _digest(name: str, size: int, version: str) -> str:
    return hashlib.blake2b(f"{name}\n{size}\n{version}".encode(), digest_size=16).hexdigest()


def _load(path: Path) -> TarIndex | None:
    if not path.exists():
        return None
    try:
        table = read_parquet(path)
        problem = json.loads(table.schema.metadata[_METADATA])["problem"]
        return TarIndex(
            table["name"].to_pylist(), table["offset"].to_numpy().copy(), table["size"].to_numpy().copy(), problem
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None  # it is made again


def _save(path: Path, index: TarIndex) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    table = pa.table({"name": pa.array(index.names, pa.string()), "offset": index.offsets, "size": index.sizes})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata({_METADATA: json.dumps({"problem": index.problem})}), aside)
        os.replace(aside, path)
    except OSError as error:
        raise DataError(f"{path.parent} cannot be written ({error.strerror}); choose another cache folder") from error
    finally:
        aside.unlink(missing_ok=True)
