"""Work that several processes share and a kill spares: a folder with a job, shards and a manifest.

    job.json                  what is being made; written first, so that no other job mixes with it
    shard-00000.arrayrecord   records of the source's first `shard_size` samples, in order
    shard-00000.parquet       one row a sample; says how large the shard is, and is renamed into place after it
    manifest.json             the job and its shards; written last: a folder with one is whole

A shard is a function of the job and its number. Therefore it does not matter which process makes it, nor when: what
is there is kept, what is not is made, and the result is the same. (So samples left out are tried again once their
shard's files are removed.)
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines.errors import DataError
from data_pipelines.folders import Folder

JOB, MANIFEST = "job.json", "manifest.json"

_STATED = b"terra_jax.shard"  # what the parquet file of a shard says of both, in its schema's metadata


@dataclass(frozen=True)
class Format:
    """What the shards of a kind of job hold.

    Attributes:
        name: as files state it.
        version: the newest that this release reads.
        noun: what messages call the result.
        again: what messages advise where it is damaged.
    """

    name: str
    version: int
    noun: str
    again: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is made; those that inherit add everything that their records depend on.

    Attributes:
        samples: of the source.
        shard_size: samples a shard.
    """

    samples: int
    shard_size: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard_size)

    def positions(self, shard: int) -> range:
        """The source's samples that a shard holds."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.samples))


@dataclass(frozen=True)
class Shard:
    """A committed shard: its two files, the samples in it, and what was stated of it."""

    file: str
    index: str
    samples: int
    stated: dict[str, Any]


class JobFolder:
    """The folder of a job, whose shards come in any order and from any number of processes.

    Args:
        path: folder or fsspec URL; made if need be, or one in which the same job was begun.
        form: what its shards hold.
        job: what is made.

    Raises:
        DataError: if the folder holds another job, or cannot be written.
    """

    def __init__(self, path: str | Path, form: Format, job: Job):
        self.folder, self.form, self.job = Folder(path), form, job
        stated = {"format": form.name, "version": form.version, **asdict(job)}
        try:
            foreign = self.folder.make()
            if JOB not in foreign:
                if foreign and not self.folder.has(JOB):  # which another process may have written meanwhile
                    raise DataError(f"{self.folder} holds {foreign[0]} but no {JOB}; choose another folder")
                self.folder.write_text(JOB, _to_text(stated))
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written ({reason_of(error)}); choose another folder") from error
        _check_same_job(self.folder, form, json.loads(json.dumps(stated)))

    def __str__(self) -> str:
        return str(self.folder)

    def has(self, shard: int) -> bool:
        """Whether a shard was committed."""
        return self.committed(shard) is not None

    def committed(self, shard: int) -> Shard | None:
        """A whole shard; None if it is yet to be made."""
        file, index = shard_names(shard)
        try:
            with self.folder.open(index) as stream:
                described = pq.read_metadata(stream)
            stated = json.loads(described.metadata[_STATED])
            whole = self.folder.size(file) == stated["bytes"]
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            return None
        return Shard(file, index, described.num_rows, stated) if whole else None

    def commit(
        self, shard: int, records: Iterable[bytes], table: Callable[[int], pa.Table], stated: Mapping[str, Any]
    ) -> None:
        """Write a shard; it appears whole or not at all.

        Args:
            shard: its number.
            records: of its samples, in order.
            table: rows of its samples, given the number of records once they are written.
            stated: what else is to be said of it, as plain values.

        Raises:
            DataError: if the folder cannot be written.
        """
        file, index = shard_names(shard)
        try:
            with self.folder.aside(file) as records_aside, self.folder.aside(index) as index_aside:
                rows = table(_write_records(records_aside, records))
                said = {"bytes": records_aside.stat().st_size, "sha256": sha256_of(records_aside), **stated}
                metadata = {**(rows.schema.metadata or {}), _STATED: json.dumps(said)}
                pq.write_table(rows.replace_schema_metadata(metadata), index_aside)
                self.folder.publish(records_aside, file)
                self.folder.publish(index_aside, index)
        except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
            raise DataError(f"{self.folder} cannot be written ({reason_of(error)}); make room and run again") from error

    def shards(self) -> list[Shard] | None:
        """All shards in order; None, if some are still missing."""
        found = []
        for number in range(self.job.shards):
            if (shard := self.committed(number)) is None:
                return None
            found.append(shard)
        return found

    def remove(self, shard: int) -> None:
        """Take a shard away, so that it is made again."""
        for name in (MANIFEST, *reversed(shard_names(shard))):
            self.folder.remove(name)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest and clear away what killed processes left.

        Of several processes whichever comes last does it; two that come at once write the same.

        Raises:
            DataError: if the folder cannot be written.
        """
        self.write(MANIFEST, manifest)
        self.folder.clear("shard-")

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a file of JSON beside the shards.

        Raises:
            DataError: if the folder cannot be written.
        """
        try:
            self.folder.write_text(name, _to_text(content))
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written ({reason_of(error)}); make room and run again") from error


def shard_names(shard: int) -> tuple[str, str]:
    """Names of a shard's records and of its index, in the order in which they appear."""
    return f"shard-{shard:05d}.arrayrecord", f"shard-{shard:05d}.parquet"


def read_json(folder: Folder, name: str, form: Format) -> dict[str, Any]:
    """A job or manifest, of the format and of no newer version.

    Raises:
        DataError: if it is damaged, foreign or too new.
    """
    where = f"{folder}/{name}"
    try:
        content = json.loads(folder.read_text(name))
        known, version = content["format"] == form.name, int(content["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} is damaged; remove the folder and {form.again}") from error
    if not known:
        raise DataError(f"{where} is of format {content['format']!r}, expected {form.name!r}; choose another folder")
    if version > form.version:
        raise DataError(
            f"{where} has format version {version}, this release reads up to {form.version}; upgrade terra_jax"
        )
    return content


def sha256_of(path: Path) -> str:
    """Checksum of a file, as `sha256sum` prints it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(texts: Iterable[str]) -> str:
    """What tells one list of keys from another."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]


def reason_of(error: Exception) -> str:
    """Why something could not be written, in few words."""
    return str(getattr(error, "strerror", None) or error).partition(";")[0].partition("\n")[0]


def _write_records(path: Path, records: Iterable[bytes]) -> int:
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    count = 0
    try:
        for record in records:
            writer.write(record)
            count += 1
    except BaseException:
        with suppress(RuntimeError):  # what it complains of is not what went wrong first
            writer.close()
        raise
    writer.close()
    return count


def _check_same_job(folder: Folder, form: Format, wanted: dict[str, Any]) -> None:
    begun, wanted = _flat(read_json(folder, JOB, form)), _flat(wanted)
    for name in sorted(begun.keys() | wanted.keys()):
        if begun.get(name) != wanted.get(name):
            was, now = (values.get(name, "absent") for values in (begun, wanted))
            raise DataError(
                f"{folder} holds another {form.noun}: {name} is {was} there and {now} here; choose another folder"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _to_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"
