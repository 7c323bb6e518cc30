"""The token format: a corpus as discrete tokens, in ArrayRecord shards that several processes make and a kill spares.

A corpus is the folder of a job (`data_pipelines.jobs`). A shard holds all settings of its first sample, then of the
second, and so on; a record is `records.pack`'s. The manifest names the samples left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipelines.errors import DataError
from data_pipelines.folders import Folder
from data_pipelines.jobs import JOB, MANIFEST, Format, Job, JobFolder, read_json
from data_pipelines.records import pack, unpack
from data_pipelines.sources import Index
from data_pipelines.storage import read_parquet
from data_pipelines.transforms.crops import Crop

FORMAT = Format("terra_jax.tokens", 1, "corpus", "tokenise again")

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
        ids: modality -> token ids: (h, w), or (3,) for "coords"; int32. Modalities that the sample lacks are absent.
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
class TokenJob(Job):
    """What a corpus is made of: everything that its records depend on.

    Attributes:
        source: what the samples are: name, digest of the keys, options of a drawn source.
        tokenizers: modality -> {"model", "fingerprint", "codebook"}.
        size: pixels per side that crops are resized to.
        settings: crops a sample.
        scale: least area of a random crop.
        seed: of the random crops.
        partial: whether samples may lack some of the modalities.
    """

    source: Mapping[str, str | int]
    tokenizers: Mapping[str, Mapping[str, str | int]]
    size: int
    settings: int
    scale: float
    seed: int
    partial: bool = False


class TokenWriter:
    """Writes a corpus shard by shard, in any order and from any number of processes.

    Args:
        path: folder or fsspec URL; made if need be, or one in which the same job was begun.
        job: what is made.

    Raises:
        DataError: if the folder holds another job, or cannot be written.
    """

    def __init__(self, path: str | Path, job: TokenJob):
        self.job, self._folder = job, JobFolder(path, FORMAT, job)

    def __str__(self) -> str:
        return str(self._folder)

    def has(self, shard: int) -> bool:
        """Whether a shard was committed."""
        return self._folder.has(shard)

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

        def table(written: int) -> pa.Table:
            if written != len(index) * self.job.settings:
                raise ValueError(f"shard {shard} has {written} records for {len(index)} samples")
            columns = {"key" if name == "keys" else name: column for name, column in index.own.items()}
            return pa.table(columns, schema=_SCHEMA)

        self._folder.commit(shard, map(encode_record, records), table, {"left_out": dict(left_out or {})})

    def finish(self) -> dict[str, Any] | None:
        """Write the manifest and return it; None, if shards are still missing."""
        found = self._folder.shards()
        if found is None:
            return None
        left_out = {key: reason for shard in found for key, reason in shard.stated["left_out"].items()}
        shards = [
            {
                "file": shard.file,
                "index": shard.index,
                "samples": shard.samples,
                "records": shard.samples * self.job.settings,
                "bytes": shard.stated["bytes"],
                "sha256": shard.stated["sha256"],
            }
            for shard in found
        ]
        counts = {name: sum(shard[name] for shard in shards) for name in ("samples", "records")}
        manifest = {"format": FORMAT.name, "version": FORMAT.version, "job": asdict(self.job), **counts}
        manifest |= {"left_out": left_out, "shards": shards}
        self._folder.finish(manifest)
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
    manifest = read_json(Folder(root), MANIFEST, FORMAT)
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
        table = pa.concat_tables([read_parquet(file, schema=_SCHEMA) for file in files])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"the index of a shard beside {files[0]} cannot be read; tokenise again") from error
    columns = {name: table[name].to_numpy() for name in table.column_names}
    keys, first = np.unique(columns["key"].astype(np.str_), return_index=True)
    if len(keys) < len(table):
        doubled = columns["key"][np.setdiff1d(np.arange(len(table)), first)[0]]
        raise DataError(f"sample {doubled!r} occurs twice in the corpora to be joined; leave one of them out")
    text = {name: columns[name].astype(np.str_) for name in ("key", "split")}
    return Index(keys=text["key"], split=text["split"], **{n: columns[n] for n in ("lon", "lat", "region", "scene")})
