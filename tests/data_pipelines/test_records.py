import json
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import elevation_sample, same, samples
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import records
from data_pipelines.errors import DataError
from data_pipelines.modalities import Unit
from data_pipelines.sample import Raster, Sample


@settings(max_examples=40, deadline=None)
@given(samples(), st.sampled_from(["lz4", "zstd"]))
def test_a_sample_survives_a_record_exactly(sample, compression):
    record = records.encode_sample(sample, compression)
    assert same(sample, records.decode_sample(record))
    name = next(iter(sample.rasters))
    assert list(records.decode_sample(record, {name}).rasters) == [name]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64", "uint16"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 64)])
def test_any_named_array_survives(dtype, shape):
    array = np.asarray(np.random.default_rng(0).normal(size=shape) * 100).astype(dtype)
    header, arrays = records.unpack(records.pack({"note": "é"}, {"x/1": array, "t": np.array(array, order="F")}))
    assert header == {"note": "é"} and list(arrays) == ["x/1", "t"]
    for other in arrays.values():
        assert other.dtype == array.dtype and np.array_equal(other, array) and other.flags.writeable


def test_arrays_that_are_no_numbers_are_refused():
    for array in (np.array(["a"]), np.array([1], ">i4"), np.array([None])):
        with pytest.raises(DataError, match="little-endian"):
            records.pack({}, {"x": array})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_record_is_never_decoded(data):
    record = bytearray(records.encode_sample(elevation_sample(3)))
    if data.draw(st.booleans()):
        record = record[: data.draw(st.integers(0, len(record) - 1))]
    else:
        record[data.draw(st.integers(0, len(record) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DataError):
        records.decode_sample(bytes(record))


def test_a_newer_version_is_refused_by_name():
    record = bytearray(records.encode_sample(elevation_sample(3)))
    struct.pack_into("<H", record, 4, records.VERSION + 1)
    with pytest.raises(DataError, match=r"version 2.*upgrade"):
        records.unpack(bytes(record))


def test_a_dataset_describes_itself(tmp_path):
    with records.RecordWriter(tmp_path / "d", shard_size=2, licence="CC0-1.0") as writer:
        for i in range(5):
            writer.write(elevation_sample(i), scene=i, split="val" if i == 4 else "")
    manifest = records.read_manifest(tmp_path / "d")
    assert manifest["licence"] == "CC0-1.0" and [shard["samples"] for shard in manifest["shards"]] == [2, 2, 1]
    assert manifest["modalities"]["DEM"]["unit"] == "metre" and manifest["writer"].startswith("terra_jax")
    index = records.read_index(tmp_path / "d", manifest)
    assert index["key"].tolist() == [f"s{i}" for i in range(5)] and index["scene"].tolist() == list(range(5))
    assert index["split"][4] == "val" and (index["DEM"] == 32).all() and (index["S2L2A"] == 0).all()
    schema = pq.read_schema(tmp_path / "d" / "shard-00000.parquet")
    assert json.loads(schema.metadata[records.METADATA_KEY])["format"] == records.FORMAT
    assert not [path for path in (tmp_path / "d").iterdir() if path.name.startswith(".")]


def test_a_broken_off_writer_leaves_whole_shards_and_no_dataset(tmp_path):
    def write(fail_at: int):
        with records.RecordWriter(tmp_path, shard_size=2) as writer:
            for i in range(5):
                if i == fail_at:
                    raise KeyboardInterrupt
                writer.write(elevation_sample(i))

    with pytest.raises(KeyboardInterrupt):
        write(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-00000.arrayrecord", "shard-00000.parquet"]
    with pytest.raises(DataError, match="unfinished"):
        records.read_manifest(tmp_path)
    write(-1)
    assert len(records.read_manifest(tmp_path)["shards"]) == 3
    with pytest.raises(DataError, match="holds a dataset already"):
        records.RecordWriter(tmp_path)


def test_keys_and_units_are_kept_straight(tmp_path):
    writer = records.RecordWriter(tmp_path)
    writer.write(elevation_sample(1))
    with pytest.raises(DataError, match="'s1' is written twice"):
        writer.write(elevation_sample(1))
    other = elevation_sample(2)
    with pytest.raises(DataError, match="DEM in byte, those before in metre"):
        raster = Raster(other.rasters["DEM"].grids, Unit.BYTE)
        writer.write(Sample("s2", {"DEM": raster}, 0, 0, 32631, other.transform))
    writer.close()
