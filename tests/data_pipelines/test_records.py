import json
import os
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import elevation_sample, mutated, same, samples
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import record_index, records
from data_pipelines.errors import DataError
from data_pipelines.grid import cell_name
from data_pipelines.modalities import LAND_COVER, Unit
from data_pipelines.sample import Raster, Sample

FUZZ = int(os.environ.get("TERRA_JAX_FUZZ", "300"))


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
    with pytest.raises(DataError, match=rf"version {records.VERSION + 1}.*upgrade"):
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
    assert json.loads(schema.metadata[record_index.METADATA_KEY])["format"] == records.FORMAT
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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_of_float16_are_held_as_such(dtype):
    exact = np.random.default_rng(0).normal(0, 20, (2, 64, 64)).astype(np.float16).astype(dtype)
    exact[0, 0, :3] = np.nan, np.inf, -0.0
    inexact = exact.copy()
    inexact[1, 5, 5] = 0.1
    large = np.full((3,), 1e30, dtype)
    packed = {name: records.pack({}, {"x": a}) for name, a in (("exact", exact), ("inexact", inexact))}
    assert len(packed["exact"]) < 0.8 * len(packed["inexact"])
    for array in (exact, inexact, large):
        found = records.unpack(records.pack({}, {"x": array}))[1]["x"]
        assert found.dtype == array.dtype and found.tobytes() == array.tobytes()


def test_copies_are_written_on_native_grids_and_come_back(tmp_path):
    from data_pipelines import radiometry
    from data_pipelines.sources import open_source

    drawn = open_source("procedural", samples=1, tile=264, modalities=("S2L2A",))[0]
    fine = {"S2L2A": radiometry.to_10m("S2L2A", drawn.rasters["S2L2A"])}
    shifted = {"S2L2A": Raster({10: np.roll(fine["S2L2A"].grids[10], 1, axis=-1)}, Unit.DN10000)}
    for name, rasters in (("fine", fine), ("shifted", shifted)):
        with records.RecordWriter(tmp_path / name) as writer:
            writer.write(replace(drawn, rasters=rasters))
        found = open_source("records", path=str(tmp_path / name))[0].rasters["S2L2A"]
        assert tuple(found.grids) == ((10, 20, 60) if name == "fine" else (10,))
        assert np.array_equal(radiometry.to_10m("S2L2A", found).grids[10], rasters["S2L2A"].grids[10])
    at_10m, native = (
        len(records.encode_sample(replace(drawn, rasters=r))) for r in (fine, {"S2L2A": drawn.rasters["S2L2A"]})
    )
    assert native < at_10m


def test_the_index_can_be_filtered_without_pixels(tmp_path):
    from data_pipelines.sources import open_source

    earth = open_source("procedural", samples=4, tile=24, modalities=("S2L2A", "LULC"))
    with records.RecordWriter(tmp_path) as writer:
        for i in range(4):
            attributes = {**earth[i].attributes, "S2L2A_offset_removed": 1000}
            writer.write(replace(earth[i], attributes=attributes))
    index = records.read_index(tmp_path, records.read_manifest(tmp_path))
    for i in range(4):
        sample = earth[i]
        cover = [index[f"cover_{name}"][i] for name in LAND_COVER]
        assert sum(cover) == pytest.approx(1) and cover[5] == pytest.approx(
            (sample.rasters["LULC"].grids[10] == 5).mean(), abs=1e-6
        )
        assert index["time"][i] == sample.rasters["S2L2A"].time
        assert index["cloud"][i] == pytest.approx(sample.attributes["cloud_fraction"])
        assert index["cell"][i] == cell_name(sample.lon, sample.lat)
        assert index["S2L2A_offset_removed"][i] == "1000" and index["S2L1C_offset_removed"][i] == ""


@pytest.mark.parametrize("known, cloud", [({"cloud_fraction": 0.25}, 0.25), ({"cloud_cover": 25}, 0.25), ({}, np.nan)])
def test_clouds_are_a_fraction_in_the_index(known, cloud):
    row = record_index.index_row(replace(elevation_sample(1), attributes=known), "", None)
    assert np.array_equal(row["cloud"], cloud, equal_nan=True)


def test_fuzz_never_a_crash_nor_a_wrong_pixel():
    """Mutated records, half of them with a checksum that fits: refused, or what was written."""
    rng = np.random.default_rng(0)
    raster = Raster({10: rng.integers(0, 99, (1, 16, 16)).astype(np.int16)}, Unit.METRE, np.datetime64("2020-01-01"))
    sample = replace(elevation_sample(3), rasters={"DEM": raster})
    record = records.encode_sample(sample)
    length = struct.unpack_from("<I", record, 6)[0]
    tracemalloc.start()
    for seed in range(FUZZ):
        rng = np.random.default_rng([5, seed])
        data = bytearray(mutated(record, rng))
        if seed % 2:  # damage of the header or the blobs alone, signed again
            data = bytearray(record)
            for _ in range(int(rng.integers(1, 4))):
                data[int(rng.integers(14, 14 + length if seed % 4 == 1 else len(data)))] = int(rng.integers(32, 127))
            struct.pack_into("<I", data, 10, zlib.crc32(data[14:], zlib.crc32(data[:10] + bytes(4))))
        try:
            found = records.decode_sample(bytes(data))
        except DataError as error:
            assert "\n" not in str(error)
            continue
        if not seed % 2:
            assert same(found, sample)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 27
