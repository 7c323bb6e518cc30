import json
import os
import struct
import tracemalloc
import zipfile
from io import BytesIO

import numcodecs
import numpy as np
import pytest
import zarr
from corpora import terramesh_member, zarr_zip
from fakes import mutated
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.sources import open_source
from data_pipelines.zarr_zip import ZarrZip

FUZZ = int(os.environ.get("TERRA_JAX_FUZZ", "300"))
LIMIT = 1 << 20


@pytest.fixture(scope="module")
def member() -> bytes:
    sample = open_source("procedural", samples=1, tile=48, modalities=("S2L2A",))[0]
    return terramesh_member(sample, "S2L2A")


def opened_by_zarr(data: bytes, tmp_path):
    path = tmp_path / "plain.zarr.zip"
    path.write_bytes(data)
    return zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r", zarr_format=2)


def test_reads_what_plain_zarr_reads(member, tmp_path):
    group, plain = ZarrZip.of(member, "a.zarr.zip"), opened_by_zarr(member, tmp_path)
    assert group.arrays == sorted(plain.array_keys())
    for name in group.arrays:
        ours, theirs = group.read(name), plain[name][...]
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name
        assert group.attributes(name).items() >= dict(plain[name].attrs).items()


def test_xarray_opens_the_fixture_too(member, tmp_path):
    import xarray

    path = tmp_path / "plain.zarr.zip"
    path.write_bytes(member)
    dataset = xarray.open_dataset(zarr.storage.ZipStore(path, mode="r"), engine="zarr", zarr_format=2)
    assert dataset.bands.dims == ("time", "band", "y", "x") and dataset.time.dtype.kind == "M"
    assert np.array_equal(dataset.bands.values, ZarrZip.of(member, "a").read("bands"))


@pytest.mark.parametrize(
    "compressor",
    [
        None,
        numcodecs.Blosc("zstd", 3, numcodecs.Blosc.BITSHUFFLE),
        numcodecs.Zlib(),
        numcodecs.GZip(),
        numcodecs.Zstd(),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("separator, deflate", [(".", False), ("/", True)])
def test_chunks_codecs_and_orders(tmp_path, compressor, order, separator, deflate):
    array = np.random.default_rng(0).integers(0, 9, (3, 5, 7)).astype("<i2")
    options = {"compressor": compressor, "order": order, "separator": separator, "deflate": deflate}
    data = zarr_zip({"a": (array, "tyx")}, chunks={"a": (2, 5, 3)}, **options)
    group = ZarrZip.of(data, "a.zarr.zip")
    assert np.array_equal(group.read("a"), array)
    assert np.array_equal(opened_by_zarr(data, tmp_path)["a"][...], array)
    assert np.array_equal(group.read("a", 2), array[2]) and np.array_equal(group.read("a", 1, 4), array[1, 4])
    assert np.array_equal(group.read("a", None, 3), array[:, 3]) and group.read("a", 2, 4, 6) == array[2, 4, 6]
    with pytest.raises(DataError, match=r"a has shape \(3, 5, 7\), no position \(3,\)"):
        group.read("a", 3)


def test_a_chunk_that_was_left_out_is_the_fill_value():
    data = zarr_zip({"a": (np.ones((4, 4), "<f2"), "yx")}, chunks={"a": (2, 4)})
    held = {name: data for name, data in entries(data) if name != "a/1.0"}
    held["a/.zarray"] = held["a/.zarray"].replace(b'"fill_value": 0', b'"fill_value": "NaN"')
    array = ZarrZip.of(archive(held), "a").read("a")
    assert (array[:2] == 1).all() and np.isnan(array[2:]).all()


def test_only_what_is_asked_for_is_read(member):
    asked = []

    def read(start, length):
        asked.append(length)
        return member[start : start + length]

    group = ZarrZip(read, len(member), "a")
    group.read("center_lat")
    assert sum(asked) < 6000 < len(member)


def entries(data: bytes):
    with zipfile.ZipFile(BytesIO(data)) as file:
        return [(name, file.read(name)) for name in file.namelist()]


def archive(held: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, data in held.items():
            file.writestr(name, data)
    return buffer.getvalue()


def with_metadata(data: bytes, **changes) -> bytes:
    held = dict(entries(data))
    stated = json.loads(held["bands/.zarray"]) | changes
    return archive(held | {"bands/.zarray": json.dumps(stated).encode()})


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1, 12, 1 << 20, 1 << 20]},
        {"shape": [1, 12, 48, 1 << 62], "chunks": [1, 1, 1, 1]},
        {"chunks": [1, 12, 1 << 30, 48]},
        {"shape": [1, 12, -48, 48]},
        {"shape": [1, 12, 48]},
        {"shape": "48"},
        {"shape": [True, 12, 48, 48]},
        {"chunks": [1, 12, 0, 48]},
        {"chunks": [1, 12, 40, 48]},
        {"dtype": "|O"},
        {"dtype": "<U999999"},
        {"dtype": "<i4"},
        {"dtype": [["a", "<i2"]]},
        {"filters": [{"id": "delta"}]},
        {"compressor": {"id": "pickle"}},
        {"compressor": {}},
        {"compressor": None},
        {"compressor": {"id": "zstd"}},
        {"compressor": {"id": "zlib"}},
        {"fill_value": {"a": 1}},
        {"fill_value": "abc"},
        {"zarr_format": 3},
        {"order": "K"},
    ],
)
def test_declarations_that_do_not_hold_are_refused(member, changes):
    with pytest.raises(DataError, match=r"^a\.zarr\.zip") as error:
        ZarrZip.of(with_metadata(member, **changes), "a.zarr.zip", limit=LIMIT).read("bands")
    assert "\n" not in str(error.value)


def test_an_array_that_is_absent_is_named(member):
    with pytest.raises(DataError, match=r"a has no array 'rgb'; it has band, bands, center_lat"):
        ZarrZip.of(member, "a").read("rgb")
    with pytest.raises(DataError, match="of zarr version 3"):
        ZarrZip.of(archive({"zarr.json": b"{}"}), "a").read("bands")


def test_bombs_are_refused_before_they_unfold(member):
    zeros = zarr_zip({"a": (np.zeros((2000, 2000), "<i2"), "yx")}, deflate=True)  # 8 MB in a few hundred bytes
    bomb = zarr_zip({"a": (np.zeros(100, "<i2"), "x")}, compressor=None)
    held = dict(entries(bomb)) | {"a/0": b"\0" * (1 << 24)}
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in held.items():
            file.writestr(name, data)
    lying = bytearray(buffer.getvalue())
    place = lying.find(b"PK\1\2", lying.find(b"PK\1\2") + 1)
    for start in range(place, len(lying)):  # the directory says 200 bytes, and the data inflates to 16 MB
        if lying[start : start + 4] == b"PK\1\2" and lying[start + 46 : start + 49] == b"a/0":
            lying[start + 24 : start + 28] = struct.pack("<L", 200)
    tracemalloc.start()
    for data in (zeros, buffer.getvalue(), bytes(lying)):
        with pytest.raises(DataError, match=r"refused|corrupt"):
            ZarrZip.of(data, "a", limit=LIMIT).read("a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * LIMIT


def test_zip64_archives_are_read(member, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    large = archive(dict(entries(member)))
    assert b"PK\6\6" in large
    assert np.array_equal(ZarrZip.of(large, "a").read("bands"), ZarrZip.of(member, "a").read("bands"))


def read_all(data: bytes) -> dict[str, np.ndarray]:
    group = ZarrZip.of(data, "a.zarr.zip", limit=LIMIT)
    return {name: group.read(name) for name in ("bands", "band", "time", "center_lat", "x") if name in group}


def test_fuzz_never_a_crash_nor_a_wrong_pixel(member):
    truth, refused = read_all(member), 0
    tracemalloc.start()
    for seed in range(FUZZ):
        rng = np.random.default_rng([1, seed])
        data = mutated(member, rng)
        if seed % 3 == 0:  # damage at the end, where the directory is
            cut = len(member) - 4000
            data = member[:cut] + mutated(member[cut:], rng)
        try:
            found = read_all(data)
        except DataError as error:
            refused += 1
            assert str(error).startswith("a.zarr.zip") and "\n" not in str(error)
            continue
        for name, array in found.items():
            assert array.dtype == truth[name].dtype and np.array_equal(array, truth[name]), (seed, name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 0.7 * FUZZ and peak < 16 * LIMIT


def test_fuzz_of_what_carries_the_right_checksum(member):
    """Damage within entries whose checksums are made to fit: codecs and metadata on their own."""
    held = dict(entries(member))
    names = ["bands/0.0.0.0", "bands/.zarray", "bands/.zattrs", "band/0", "x/0"]
    tracemalloc.start()
    for seed in range(FUZZ):
        rng = np.random.default_rng([2, seed])
        name = names[int(rng.integers(len(names)))]
        data = archive(held | {name: mutated(held[name], rng)})
        try:
            group = ZarrZip.of(data, "a.zarr.zip", limit=LIMIT)
            group.attributes("bands")
            for array in ("bands", "band", "x"):
                assert group.read(array).nbytes <= LIMIT
        except DataError as error:
            assert str(error).startswith("a.zarr.zip") and "\n" not in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * LIMIT


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_anything_at_all_is_refused_by_name(data):
    with pytest.raises(DataError, match=r"^a\.zarr\.zip"):
        ZarrZip.of(data, "a.zarr.zip").read("bands")


def test_members_of_one_layout_are_told_apart():
    """What is remembered of one member must not leak into another, nor hide its damage."""

    def group(first: int, size: int = 7) -> bytes:
        arrays = {
            "bands": (
                np.arange(first, first + 3 * size * size, dtype=np.int16).reshape(3, size, size),
                ("b", "y", "x"),
            ),
            "time": (np.asarray([first], np.int64), ("time",)),
            "band": (np.asarray(["red", "green", "blue"]), ("band",)),
        }
        return zarr_zip(arrays, {"time": {"units": "seconds since 1970-01-01"}}, compressor=None)

    members = [group(first) for first in (0, 5, 1000)] + [group(7, size=5), group(0)]
    for _ in range(2):
        for first, data in zip((0, 5, 1000, 7, 0), members, strict=True):
            found = ZarrZip.of(data, "a.zarr.zip")
            assert found.read("bands").flat[0] == first and found.read("time").tolist() == [first]
            assert found.read("band").tolist() == ["red", "green", "blue"] and len(found.arrays) == 3
    for spoilt in (members[1].index(b'"shape"'), members[1].index(b"green"[:1] + b"\0\0\0r")):
        damaged = bytearray(members[1])
        damaged[spoilt + 2] ^= 1
        with pytest.raises(DataError, match=r"a\.zarr\.zip"):
            read_all(bytes(damaged))
