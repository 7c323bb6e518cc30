"""The token format: a corpus as discrete tokens, in ArrayRecord shards that several processes make and a kill spares.

    job.json                  what is being made; written first, so that no other job mixes with it
    shard-00000.arrayrecord   records of the source's first `shard_size` samples in order, all settings of each
    shard-00000.parquet       one row a sample; says how large the shard is, and is renamed into place after it
    manifest.json             the job, its shards and the samples left out; written last: a corpus with one is whole

A shard is a function of the job and its number. Therefore it does not matter which process makes it, nor when: what
is there is kept, what is not is made, and the result is the same. (So samples left out are tried again once their
shard's files are removed.) A record is `records.pack`'s.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines.errors import DataError
from data_pipelines.records import pack, unpack
from data_pipelines.sources import Index
from data_pipelines.transforms.crops import Crop

FORMAT, VERSION = "terra_jax.tokens", 1
JOB, MANIFEST = "job.json", "manifest.json"

_COLUMNS = {"key": "string", "lon": "float64", "lat": "float64", "region": "int32", "split": "string", "scene": "int8"}
_SCHEMA = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _COLUMNS.items()])
_LARGEST = np.iinfo(np.uint16).max


# ---- one record ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenRecord:
    """One sample under one crop setting, as tokens.

    Attributes:
        key: of the sample.
        setting: number of the crop setting.
        crop: where the sample was cut, the same for all modalities: pixels cut by it align with the tokens.
        shape: (height, width) of the sample in 10 m pixels.
        ids: modality -> token ids: (h, w), or (3,) for "coords"; int32.
        fingerprints: modality -> which tokenizer made them.
    """

    key: str
    setting: int
    crop: Crop
    shape: tuple[int, int]
    ids: Mapping[str, np.ndarray]
    fingerprints: Mapping[str, str]


def encode_record(record: TokenRecord) -> bytes:
    """A record as bytes; `decode_record` returns it exactly.

    Raises:
        DataError: if an id does not fit the format's 16 bits.
    """
    for name, ids in record.ids.items():
        if ids.size and not (ids.min() >= 0 and ids.max() <= _LARGEST):
            raise DataError(f"sample {record.key}: {name} has tokens beyond 0..{_LARGEST}, more than a record can hold")
    header = {
        "key": record.key,
        "setting": record.setting,
        "crop": asdict(record.crop),
        "shape": list(record.shape),
        "fingerprints": dict(record.fingerprints),
    }
    return pack(header, {name: ids.astype(np.uint16) for name, ids in record.ids.items()})


def decode_record(record: bytes) -> TokenRecord:
    """The record of bytes.

    Raises:
        DataError: if it is foreign, of a newer version or corrupt.
    """
    header, arrays = unpack(record)
    height, width = header["shape"]
    return TokenRecord(
        key=header["key"],
        setting=header["setting"],
        crop=Crop(**header["crop"]),
        shape=(height, width),
        ids={name: ids.astype(np.int32) for name, ids in arrays.items()},
        fingerprints=header["fingerprints"],
    )


# ---- making a corpus ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenJob:
    """What a corpus is made of: everything that its records depend on.

    Attributes:
        source: what the samples are: name, digest of the keys, options of a drawn source.
        tokenizers: modality -> {"model", "fingerprint", "codebook"}.
        size: pixels per side that crops are resized to.
        settings: crops a sample.
        scale: least area of a random crop.
        seed: of the random crops.
        samples: of the source.
        shard_size: samples a shard.
    """

    source: Mapping[str, str | int]
    tokenizers: Mapping[str, Mapping[str, str | int]]
    size: int
    settings: int
    scale: float
    seed: int
    samples: int
    shard_size: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard_size)

    def positions(self, shard: int) -> range:
        """The source's samples that a shard holds."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.samples))


class TokenWriter:
    """Writes a corpus shard by shard, in any order and from any number of processes.

    Args:
        path: folder; made if need be, or one in which the same job was begun.
        job: what is made.

    Raises:
        DataError: if the folder holds another job, or cannot be written.
    """

    def __init__(self, path: str | Path, job: TokenJob):
        self.root, self.job = Path(path), job
        stated = {"format": FORMAT, "version": VERSION, **asdict(job)}
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not (self.root / JOB).exists():
                foreign = sorted(entry.name for entry in self.root.iterdir() if not entry.name.startswith("."))
                if foreign and not (self.root / JOB).exists():  # which another process may have written meanwhile
                    raise DataError(f"{self.root} holds {foreign[0]} but no {JOB}; choose another folder")
                _write_json(self.root / JOB, stated)
        except OSError as error:
            raise DataError(f"{self.root} cannot be written ({error.strerror}); choose another folder") from error
        _check_same_job(self.root, json.loads(json.dumps(stated)))

    def has(self, shard: int) -> bool:
        """Whether a shard was committed."""
        return _committed(self.root, shard) is not None

    def commit(
        self, shard: int, index: Index, records: Iterable[TokenRecord], left_out: Mapping[str, str] | None = None
    ) -> None:
        """Write a shard; it appears whole or not at all.

        Args:
            shard: its number.
            index: of the samples that are in it, in order.
            records: all settings of the first sample, then of the second, and so on.
            left_out: key -> reason, of samples that cannot be read.
        """
        names = _names(shard)
        asides = {suffix: self.root / f".{name}.{os.getpid()}.part" for suffix, name in names.items()}
        try:
            written = _write_records(asides["arrayrecord"], records)
            if written != len(index) * self.job.settings:
                raise ValueError(f"shard {shard} has {written} records for {len(index)} samples")
            stated = {"bytes": asides["arrayrecord"].stat().st_size, "left_out": dict(left_out or {})}
            columns = {"key" if name == "keys" else name: column for name, column in vars(index).items()}
            pq.write_table(
                pa.table(columns, schema=_SCHEMA.with_metadata({FORMAT: json.dumps(stated)})), asides["parquet"]
            )
            for suffix, name in names.items():
                _publish(asides[suffix], self.root / name)
        except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
            reason = str(error).partition(";")[0]
            raise DataError(f"{self.root} cannot be written ({reason}); make room and run again") from error
        finally:
            for aside in asides.values():
                aside.unlink(missing_ok=True)

    def finish(self) -> dict[str, Any] | None:
        """Write the manifest and return it; None, if shards are still missing.

        Of several processes whichever comes last does it; two that come at once write the same.
        """
        shards: list[dict[str, Any]] = []
        left_out: dict[str, str] = {}
        for number in range(self.job.shards):
            if (committed := _committed(self.root, number)) is None:
                return None
            samples, stated = committed
            names = _names(number)
            shards.append(
                {
                    "file": names["arrayrecord"],
                    "index": names["parquet"],
                    "samples": samples,
                    "records": samples * self.job.settings,
                    "bytes": stated["bytes"],
                }
            )
            left_out |= stated["left_out"]
        samples = sum(shard["samples"] for shard in shards)
        counts = {"samples": samples, "records": samples * self.job.settings}
        manifest = {"format": FORMAT, "version": VERSION, "job": asdict(self.job), **counts}
        manifest |= {"left_out": left_out, "shards": shards}
        _write_json(self.root / MANIFEST, manifest)
        for orphan in self.root.glob(".shard-*.part"):  # of processes that were killed
            orphan.unlink(missing_ok=True)
        return manifest


# ---- reading it ---------------------------------------------------------------------------------------------------


def read_manifest(path: str | Path) -> dict[str, Any]:
    """A corpus' job, shards and samples left out, checked against the files.

    Raises:
        DataError: if the folder is no whole corpus, of a newer version, or a shard is missing or truncated.
    """
    root = Path(path)
    if not (root / JOB).exists():
        raise DataError(f"{root} is no corpus of tokens: {JOB} is missing; give a folder of `terra-jax tokenize`")
    if not (root / MANIFEST).exists():
        raise DataError(f"{root} is unfinished: {MANIFEST} is missing; run the same `terra-jax tokenize` again")
    manifest = _read_json(root / MANIFEST)
    for shard in manifest["shards"]:
        file = root / shard["file"]
        size = file.stat().st_size if file.exists() else 0
        if size != shard["bytes"]:
            raise DataError(f"{file} has {size} of {shard['bytes']} bytes: it is missing or damaged; restore it")
    return manifest


def read_index(files: Sequence[Path]) -> Index:
    """The samples of some shards, one after the other.

    Raises:
        DataError: if an index cannot be read or a sample occurs twice.
    """
    try:
        table = pa.concat_tables([pq.read_table(file, schema=_SCHEMA) for file in files])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the index of a shard beside {files[0]} cannot be read; tokenise again") from error
    columns = {name: table[name].to_numpy() for name in table.column_names}
    keys, first = np.unique(columns["key"].astype(np.str_), return_index=True)
    if len(keys) < len(table):
        doubled = columns["key"][np.setdiff1d(np.arange(len(table)), first)[0]]
        raise DataError(f"sample {doubled!r} occurs twice in the corpora to be joined; leave one of them out")
    text = {name: columns[name].astype(np.str_) for name in ("key", "split")}
    return Index(keys=text["key"], split=text["split"], **{n: columns[n] for n in ("lon", "lat", "region", "scene")})


# ---- files --------------------------------------------------------------------------------------------------------


def _names(shard: int) -> dict[str, str]:
    """Suffix -> file name, in the order in which they appear."""
    return {suffix: f"shard-{shard:05d}.{suffix}" for suffix in ("arrayrecord", "parquet")}


def _write_records(path: Path, records: Iterable[TokenRecord]) -> int:
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    count = 0
    try:
        for record in records:
            writer.write(encode_record(record))
            count += 1
    finally:
        writer.close()
    return count


def _committed(root: Path, shard: int) -> tuple[int, dict[str, Any]] | None:
    """Number of samples of a whole shard and what its index states; None if the shard is yet to be made."""
    records, index = (root / name for name in _names(shard).values())
    try:
        described = pq.read_metadata(index)
        stated = json.loads(described.metadata[FORMAT.encode()])
        return (described.num_rows, stated) if records.stat().st_size == stated["bytes"] else None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def _check_same_job(root: Path, wanted: dict[str, Any]) -> None:
    begun, wanted = _flat(_read_json(root / JOB)), _flat(wanted)
    for name in sorted(begun.keys() | wanted.keys()):
        if begun.get(name) != wanted.get(name):
            was, now = (values.get(name, "absent") for values in (begun, wanted))
            raise DataError(f"{root} holds another corpus: {name} is {was} there and {now} here; choose another folder")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        known, version = content["format"] == FORMAT, int(content["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged; remove the folder and tokenise again") from error
    if not known:
        raise DataError(f"{path} is of format {content['format']!r}, expected {FORMAT!r}; choose another folder")
    if version > VERSION:
        raise DataError(f"{path} has format version {version}, this release reads up to {VERSION}; upgrade terra_jax")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    _publish(aside, path)


def _publish(aside: Path, target: Path) -> None:
    """Rename a file into place once its bytes are on disk, so that a power cut cannot leave it empty."""
    with aside.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(aside, target)
