"""Folders to write into, on this machine and behind fsspec URLs, in which files appear whole or not at all."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data_pipelines.errors import DataError


class Folder:
    """A folder by its path or URL (`gs://`, `s3://`, `memory://` ...); methods raise OSError where it fails them.

    Args:
        url: of the folder, which need not be there yet.

    Raises:
        DataError: if nothing reads such URLs here.
    """

    def __init__(self, url: str | Path):
        try:
            self._fs, self._root = fsspec.core.url_to_fs(str(url))
        except (ImportError, ValueError) as error:
            raise DataError(f"{url} cannot be opened: {error}; install what reads such URLs, or give a path") from error
        self._local = isinstance(self._fs, LocalFileSystem)
        self._url = str(url)

    def __str__(self) -> str:
        return self._url

    @property
    def path(self) -> Path | None:
        """Where it lies on this machine; None where it does not."""
        return Path(self._root) if self._local else None

    def make(self) -> list[str]:
        """Make it if need be; names of what lies in it, but for hidden files, in order."""
        with self._failing():
            self._fs.makedirs(self._root, exist_ok=True)
            entries = self._fs.ls(self._root, detail=False) if self._fs.isdir(self._root) else []
        names = sorted(entry.rstrip("/").rpartition("/")[2] for entry in entries)
        return [name for name in names if not name.startswith(".")]

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        with self._failing():
            return bool(self._fs.isfile(self._at(name)))

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._failing():
            return int(self._fs.info(self._at(name))["size"])

    def open(self, name: str) -> BinaryIO:
        """A file to read."""
        with self._failing():
            return self._fs.open(self._at(name), "rb")

    def read_text(self, name: str) -> str:
        """A text file."""
        with self._failing():
            return self._fs.cat_file(self._at(name)).decode()

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, in place of one that may be there."""
        with self.aside(name) as path:
            path.write_text(text)
            self.publish(path, name)

    @contextmanager
    def aside(self, name: str) -> Iterator[Path]:
        """A path of this machine at which a file can be made before it is published; cleared away afterwards."""
        if self._local:
            path = Path(self._root) / f".{name}.{secrets.token_hex(6)}.part"  # of this writer alone
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="terra_jax-") as folder:
            yield Path(folder) / name

    def publish(self, aside: Path, name: str) -> None:
        """Put a file into place once its bytes are on disk, so that a power cut cannot leave it empty."""
        if self._local:
            with aside.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(aside, Path(self._root) / name)
            return
        with self._failing():
            self._fs.put_file(str(aside), self._at(name))

    def remove(self, name: str) -> None:
        """Remove a file that may be there."""
        with self._failing():
            if self._fs.isfile(self._at(name)):
                self._fs.rm_file(self._at(name))

    def clear(self, prefix: str) -> None:
        """Remove what killed processes left of files whose names begin so."""
        if self._local:
            for orphan in Path(self._root).glob(f".{prefix}*.part"):
                orphan.unlink(missing_ok=True)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Whatever the file system raises, as OSError: clients of object stores have exceptions of their own."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(str(error).partition("\n")[0] or type(error).__name__) from error
