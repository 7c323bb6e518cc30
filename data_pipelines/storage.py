"""Files on this machine and behind fsspec URLs, read whole or in ranges, safely from several threads."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from data_pipelines.errors import DataError

Read = Callable[[int, int], bytes]
"""(start, length) -> so many bytes of one file."""


class Storage:
    """A folder or file, local or remote.

    Args:
        url: a path, or a URL that fsspec knows (`s3://`, `gs://`, `https://`, `memory://` ...).

    Attributes:
        root: its path within the file system, as the methods below take and give them.

    Raises:
        DataError: if nothing reads such URLs here.
    """

    def __init__(self, url: str | Path):
        try:
            self._fs, self.root = fsspec.core.url_to_fs(str(url))
        except (ImportError, ValueError) as error:
            raise DataError(f"{url} cannot be opened: {error}; install what reads such URLs, or give a path") from error
        self._local = isinstance(self._fs, LocalFileSystem)

    def name(self, path: str) -> str:
        """What messages call a file: its path, or its URL where it is remote."""
        return path if self._local else str(self._fs.unstrip_protocol(path))

    def is_file(self, path: str) -> bool:
        """Whether there is such a file."""
        with self._named(path):
            return bool(self._fs.isfile(path))

    def files(self, depth: int) -> dict[str, tuple[int, str]]:
        """Path -> (bytes, version) of all files, in order, at most so many folders deep; one file is its own list.

        A file that changes gets another version.

        Raises:
            DataError: if there is nothing, or it cannot be listed.
        """
        with self._named(self.root):
            if not self._fs.exists(self.root):
                raise DataError(f"{self.name(self.root)} does not exist; give the folder or file that holds the data")
            found = self._fs.find(self.root, maxdepth=depth, detail=True)
        return {path: (int(entry["size"] or 0), _version(entry)) for path, entry in sorted(found.items())}

    def folders(self, suffix: str) -> list[str]:
        """Folders directly below whose names end so, in order."""
        with self._named(self.root):
            entries = self._fs.ls(self.root, detail=True) if self._fs.isdir(self.root) else []
        found = (entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory")
        return sorted(name for name in found if name.endswith(suffix))

    def size(self, path: str) -> int:
        """Bytes of a file."""
        with self._named(path):
            return int(self._fs.size(path))

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file, from `start`, so many or all that follow.

        Raises:
            DataError: if it cannot be read or ends before.
        """
        with self._named(path):
            if not self._local:
                data = self._fs.cat_file(path, start, None if length is None else start + length)
            else:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    data = _read_at(descriptor, start, length)
                finally:
                    os.close(descriptor)
        if length is not None and len(data) != length:
            raise DataError(f"{self.name(path)} is truncated: it ends before byte {start + length}; fetch it again")
        return data

    @contextmanager
    def reader(self, path: str) -> Iterator[Read]:
        """A function that reads ranges of one file, which stays open meanwhile."""
        if not self._local:
            yield partial(self.read, path)
            return
        with self._named(path):
            descriptor = os.open(path, os.O_RDONLY)

        def read(start: int, length: int) -> bytes:
            with self._named(path):
                return _read_at(descriptor, start, length)

        try:
            yield read
        finally:
            os.close(descriptor)

    def open(self, path: str) -> BinaryIO:
        """A seekable file; for one thread at a time."""
        with self._named(path):
            return self._fs.open(path, "rb")

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Whatever the file system raises, as one line that names the file."""
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # clients of object stores have exceptions of their own, with no common ancestor
            lines = str(getattr(error, "strerror", None) or error).splitlines()
            reason = lines[0] if lines and lines[0] else type(error).__name__
            raise DataError(
                f"{self.name(path)} cannot be read ({reason}); check the path, the network and your credentials"
            ) from error


def read_parquet(file: str | Path | BinaryIO, **options: Any) -> pa.Table:
    """A parquet file as a table, by this thread alone.

    Arrow's threads may still be at work when a short program ends, which then aborts or hangs (apache/arrow issues
    34314 and 50482).

    Args:
        file: path or open file.
        options: of `pyarrow.parquet.read_table`.
    """
    return pq.read_table(file, use_threads=False, **options)


def _read_at(descriptor: int, start: int, length: int | None) -> bytes:
    length = os.fstat(descriptor).st_size - start if length is None else length
    data = os.pread(descriptor, max(length, 0), start)
    while len(data) < length:  # the kernel hands out at most 2 GiB at once
        more = os.pread(descriptor, length - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


def _version(entry: dict[str, Any]) -> str:
    marks = (entry.get(mark) for mark in ("mtime", "ETag", "etag", "md5Hash", "LastModified", "last_modified"))
    return str(next((mark for mark in marks if mark is not None), ""))
