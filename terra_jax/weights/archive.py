"""Random access to the members of a zip file, each checked against its CRC before its bytes are trusted."""

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from terra_jax.errors import WeightsError

LOCAL_SIGNATURE = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")
CHUNK = 1 << 20
ENCRYPTED = 0x1


@dataclass
class Archive:
    """The table of contents of a zip file; its members are read one by one and the file is held open only meanwhile."""

    path: Path
    size: int
    members: dict[str, zipfile.ZipInfo]
    verified: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, path: Path) -> "Archive":
        """Reads the table of contents.

        Raises:
            WeightsError: The file is truncated, damaged or no zip file.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                return cls(path, path.stat().st_size, {info.filename: info for info in archive.infolist()})
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, OverflowError) as error:
            raise WeightsError(f"{path}: is truncated or damaged ({error}); fetch or save it again") from error

    def read(self, name: str, limit: int | None = None) -> np.ndarray:
        """All bytes of a member as uint8, at most `limit` of them, checked against the CRC."""
        info = self._member(name)
        if limit is not None and info.file_size > limit:
            raise WeightsError(f"{self.path}: {name} of {info.file_size} bytes is larger than any state dict needs")
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        data = self._inflated(info) if deflated else self._stored(info, 0, info.file_size)
        self._check(info, zlib.crc32(data.data))
        return data

    def read_range(self, name: str, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop) of a member as uint8; the whole member's CRC is checked the first time."""
        info = self._member(name)
        if (start == 0 and stop == info.file_size) or info.compress_type == zipfile.ZIP_DEFLATED:
            return self.read(name)[start:stop]
        if name not in self.verified:
            crc = 0
            for offset in range(0, info.file_size, CHUNK):
                crc = zlib.crc32(self._stored(info, offset, min(offset + CHUNK, info.file_size)).data, crc)
            self._check(info, crc)
        return self._stored(info, start, stop)

    def _member(self, name: str) -> zipfile.ZipInfo:
        info = self.members.get(name)
        if info is None:
            raise WeightsError(f"{self.path}: lacks its member {name!r}; fetch or save it again")
        if info.flag_bits & ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise WeightsError(f"{self.path}: {name!r} is encrypted or compressed in an unknown way; save it again")
        stored_size = info.file_size if info.compress_type == zipfile.ZIP_STORED else info.compress_size
        if info.compress_size != stored_size or info.header_offset + stored_size > self.size:
            raise self._damaged(name)
        return info

    def _stored(self, info: zipfile.ZipInfo, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop) of what the file holds for a member."""
        data = np.empty(stop - start, np.uint8)
        try:
            with open(self.path, "rb") as stream:
                stream.seek(info.header_offset)
                signature, name_size, extra_size = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
                stream.seek(name_size + extra_size + start, io.SEEK_CUR)
                if signature != LOCAL_SIGNATURE or stream.readinto(data.data) != data.size:
                    raise self._damaged(info.filename)
        except (OSError, struct.error) as error:
            raise self._damaged(info.filename) from error
        return data

    def _inflated(self, info: zipfile.ZipInfo) -> np.ndarray:
        """All bytes of a deflated member, never more than it announces."""
        packed = self._stored(info, 0, info.compress_size)
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed.data, info.file_size + 1)
        except zlib.error as error:
            raise self._damaged(info.filename) from error
        if len(data) != info.file_size:
            raise self._damaged(info.filename)
        return np.frombuffer(data, np.uint8)

    def _check(self, info: zipfile.ZipInfo, crc: int) -> None:
        """Compares CRCs; PyTorch writes 0 if told not to compute them (`torch.serialization.set_crc32_options`)."""
        if info.CRC not in (0, crc):
            raise WeightsError(f"{self.path}: {info.filename!r} is damaged (wrong CRC); fetch or save it again")
        self.verified.add(info.filename)

    def _damaged(self, name: str) -> WeightsError:
        return WeightsError(f"{self.path}: {name!r} is truncated or damaged; fetch or save it again")
