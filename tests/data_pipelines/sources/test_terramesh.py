import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray
import zarr
from corpora import at_10m, terramesh_member, write_tar, write_terramesh, zarr_zip
from fakes import same_raster

from data_pipelines.errors import DataError
from data_pipelines.loader import Loader
from data_pipelines.recipes.terrafm import TerraFMRecipe
from data_pipelines.sources import open_source
from data_pipelines.sources.terramesh import TerraMeshSource

MAJORTOM = ("S2L2A", "S1RTC", "DEM", "LULC", "NDVI")
SSL4EO = ("S2L2A", "S1GRD", "DEM", "LULC", "NDVI")


def drawn(modalities, keys, tile=30):
    earth = open_source("procedural", samples=len(keys), tile=tile, modalities=modalities)
    return [replace(earth[i], key=key) for i, key in enumerate(keys)]


@pytest.fixture(scope="module")
def samples():
    return drawn(MAJORTOM, ("282D_485L_3_3", "282D_485L_3_2", "38D_378R_2_3")) + drawn(SSL4EO, ("0194630_1",))


@pytest.fixture
def root(tmp_path, samples):
    write_terramesh(tmp_path, samples[:2])
    write_terramesh(tmp_path, samples[2:3], "majortom_shard_000002")
    return write_terramesh(tmp_path, samples[3:], "ssl4eos12_shard_000794")


def test_samples_come_back_as_they_went_in(root, samples):
    source = open_source("terramesh", path=str(root))
    assert source.index.keys.tolist() == [s.key for s in samples] and source.problems == {}
    assert np.array_equal(source.index.lon, [s.lon for s in samples])
    for found, drawn_sample in zip(source, samples, strict=False):
        assert set(found.rasters) == set(drawn_sample.rasters) and found.epsg == drawn_sample.epsg
        assert found.transform == drawn_sample.transform and found.source == "terramesh"
        for name, raster in found.rasters.items():
            assert same_raster(raster, drawn_sample.rasters[name]), name
        assert found.attributes["scene"] >= 0


def test_both_kinds_of_radar_are_joined_and_absence_is_told(root):
    source = TerraMeshSource(root, modalities=("S1GRD", "S2L2A", "S1RTC"))
    assert source.present["S1RTC"].tolist() == [True, True, True, False]
    assert source.present["S1GRD"].tolist() == [False, False, False, True]
    assert [s.attributes["missing"] for s in source] == ["S1GRD"] * 3 + ["S1RTC"]
    assert list(source[3].rasters) == ["S2L2A", "S1GRD"]
    with pytest.raises(DataError, match=r"has no S2L1C; it has S2L2A, S1GRD"):
        TerraMeshSource(root, modalities=("S2L1C",))


def test_a_sample_that_one_tar_lacks_stays_in(root, samples):
    write_tar(
        root / "train" / "DEM" / "majortom_shard_000001.tar",
        [(f"{samples[1].key}.zarr.zip", terramesh_member(samples[1], "DEM"))],
    )
    source = TerraMeshSource(root, samples=2)
    assert source[0].attributes["missing"] == "S1GRD,DEM" and "DEM" in source[1].rasters


def test_fixtures_open_with_plain_tools(samples, tmp_path):
    for name in samples[0].rasters:
        path = tmp_path / f"{name}.zarr.zip"
        path.write_bytes(terramesh_member(samples[0], name))
        store = zarr.storage.ZipStore(path, mode="r")
        assert np.array_equal(zarr.open_group(store, mode="r", zarr_format=2)["bands"][0], at_10m(samples[0], name))
        dataset = xarray.open_dataset(store, engine="zarr", zarr_format=2, mask_and_scale=False)
        assert np.array_equal(dataset.bands.values[0], at_10m(samples[0], name))
        if samples[0].rasters[name].time is not None:
            assert dataset.time.values[0] == samples[0].rasters[name].time


def test_series_and_other_orders_of_dimensions(tmp_path, samples):
    earth = drawn(("S2L2A",), ("a", "b"))
    stack = np.stack([at_10m(s, "S2L2A") for s in earth])
    four = replace(
        earth[0],
        rasters={"S2L2A": replace(earth[0].rasters["S2L2A"], time=np.array([s.rasters["S2L2A"].time for s in earth]))},
    )
    write_tar(tmp_path / "S2L2A" / "a.tar", [("0000001.zarr.zip", terramesh_member(four, "S2L2A", array=stack))])
    raster = TerraMeshSource(tmp_path)[0].rasters["S2L2A"]
    assert raster.grids[20].shape == (2, 6, 15, 15) and raster.time.tolist() == [s.rasters["S2L2A"].time for s in earth]
    # Other writers put the bands first, an integer "crs" beside them, and say nothing of where the pixels lie.
    arrays = {
        "bands": (stack[:1].transpose(1, 0, 2, 3), ("band", "time", "y", "x")),
        "crs": (np.asarray(earth[0].epsg), ()),
        "center_lat": (np.asarray(earth[0].lat), ()),
        "center_lon": (np.asarray(earth[0].lon), ()),
    }
    write_tar(tmp_path / "S2L2A" / "a.tar", [("0000001.zarr.zip", zarr_zip(arrays))])
    sample = TerraMeshSource(tmp_path)[0]
    assert np.array_equal(sample.rasters["S2L2A"].grids[60], earth[0].rasters["S2L2A"].grids[60])
    assert sample.epsg == earth[0].epsg and np.allclose(sample.transform, earth[0].transform, atol=60)


def test_places_come_from_the_released_table(root, samples):
    rows = [
        {"zarr": f"{s.key}.zarr.zip", "center_lon": s.lon + 1, "center_lat": s.lat, "cloud_cover": 3.0} for s in samples
    ]
    pq.write_table(pa.Table.from_pylist(rows[:2]), root / "train_metadata.parquet")
    source = TerraMeshSource(root)
    assert np.allclose(source.index.lon, [samples[0].lon + 1, samples[1].lon + 1, samples[2].lon, samples[3].lon])
    assert source[0].attributes["cloud_cover"] == 3.0 and "cloud_cover" not in source[2].attributes


def test_it_reads_urls(root, samples):
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/terramesh", recursive=True)
    try:
        source = TerraMeshSource("memory://terramesh", modalities=("DEM",))
        assert np.array_equal(source[3].rasters["DEM"].grids[10], samples[3].rasters["DEM"].grids[10])
    finally:
        memory.rm("/terramesh", recursive=True)


def test_many_threads_read_alike(root):
    source = TerraMeshSource(root)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: source[i % 4], range(32)))
    assert all(same_raster(s.rasters["S2L2A"], found[i % 4].rasters["S2L2A"]) for i, s in enumerate(found))


def tar_of(root, name="S2L2A"):
    return root / "train" / name / "majortom_shard_000001.tar"


def test_a_truncated_tar_is_named_and_the_rest_is_read(root, samples):
    path = tar_of(root)
    path.write_bytes(path.read_bytes()[:-12_000])
    source = TerraMeshSource(root)
    assert list(source.problems) == [str(path)] and "truncated" in source.problems[str(path)]
    assert same_raster(source[0].rasters["S2L2A"], samples[0].rasters["S2L2A"])
    with pytest.raises(DataError, match=r"majortom_shard_000001\.tar is truncated"):
        source[1]
    path.write_bytes(path.read_bytes()[:100])
    assert "S2L2A" in TerraMeshSource(root)[0].attributes["missing"]


def test_a_flipped_byte_is_named(root):
    path = tar_of(root)
    data = bytearray(path.read_bytes())
    source = TerraMeshSource(root)
    data[int(source._members["S2L2A"][0, 1]) + int(source._members["S2L2A"][0, 2]) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"S2L2A/majortom_shard_000001\.tar member 282D_485L_3_3\.zarr\.zip: .*corrupt"):
        source[0]


def spoilt(sample, name, array=None, **arrays):
    values = at_10m(sample, name)[None] if array is None else array
    base = {"bands": (values, ("time", "band", "y", "x")), "crs": (np.asarray(sample.epsg), ())}
    base |= {"center_lat": (np.asarray(sample.lat), ()), "center_lon": (np.asarray(sample.lon), ())}
    return zarr_zip(base | arrays)


@pytest.mark.parametrize(
    "name, spoil, message",
    [
        ("S2L2A", lambda s: spoilt(s, "S2L2A", at_10m(s, "S2L2A")[None, :11]), r"expected 12 bands \(B01"),
        ("S2L2A", lambda s: spoilt(s, "S2L2A", band=(np.array(["B99"] * 12), ("band",))), "S2L2A lacks B01"),
        ("S1RTC", lambda s: spoilt(s, "S1RTC", 10 ** (at_10m(s, "S1RTC")[None] / 10)), "look like linear"),
        ("S1RTC", lambda s: spoilt(s, "S1RTC", at_10m(s, "S1RTC")[None] * np.nan), "no data .NaN. in 100"),
        ("S2L2A", lambda s: spoilt(s, "S2L2A", at_10m(s, "S2L2A")[None] / np.float32(10_000)), "look like reflectance"),
        ("LULC", lambda s: spoilt(s, "LULC", at_10m(s, "LULC")[None] + np.uint8(90)), "holds class 9"),
        ("DEM", lambda s: spoilt(s, "DEM", at_10m(s, "DEM")[None, :, :20]), r"DEM is \(20, 30\) pixels, others \(30"),
        ("NDVI", lambda s: spoilt(s, "NDVI", at_10m(s, "NDVI")[None] * np.float16(100)), "beyond -1..1"),
        ("DEM", lambda s: b"no zip", "no whole zip file"),
        ("DEM", lambda s: zarr_zip({"data": (np.zeros(3), "x")}), "no array 'bands'; it has data"),
    ],
)  # fmt: skip
def test_a_member_that_is_not_what_it_should_be_is_refused(root, samples, name, spoil, message):
    members = [(f"{s.key}.zarr.zip", spoil(s) if s is samples[0] else terramesh_member(s, name)) for s in samples[:2]]
    write_tar(tar_of(root, name), members)
    source = TerraMeshSource(root)
    with pytest.raises(DataError, match=message) as error:
        source[0]
    assert "282D_485L_3_3" in str(error.value) and "\n" not in str(error.value)
    assert name in source[1].rasters


def test_some_stray_indices_are_no_reason_to_refuse(tmp_path, samples):
    array = at_10m(samples[0], "NDVI")[None].copy()
    array[0, 0, 0, 0] = -7.5
    write_tar(tmp_path / "NDVI" / "a.tar", [("a.zarr.zip", spoilt(samples[0], "NDVI", np.tile(array, (1, 1, 3, 3))))])
    assert TerraMeshSource(tmp_path)[0].rasters["NDVI"].grids[10][0, 0, 0] == -7.5


def test_nodata_is_kept_when_asked_for(tmp_path, samples):
    array = at_10m(samples[0], "S1RTC")[None].copy()
    array[0, 1, 3, 4] = np.nan
    write_tar(tmp_path / "S1RTC" / "a.tar", [("a.zarr.zip", spoilt(samples[0], "S1RTC", array))])
    with pytest.raises(DataError, match=r"0\.11% of band VH"):
        TerraMeshSource(tmp_path)[0]
    kept = open_source("terramesh", path=str(tmp_path), keep_nodata=True)[0]
    assert np.isnan(kept.rasters["S1RTC"].grids[10][1, 3, 4])


def test_folders_without_tars_and_small_tiles_are_refused(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no <MODALITY>/\*\.tar"):
        TerraMeshSource(tmp_path / "empty")
    with pytest.raises(DataError, match="30 x 30 pixels, smaller than tile=64"):
        TerraMeshSource(root, tile=64)[0]
    with pytest.raises(IndexError):
        TerraMeshSource(root)[4]


def test_indices_are_kept_where_it_is_said(root, tmp_path):
    kept = tmp_path / "kept"
    first = open_source("terramesh", path=str(root), cache=str(kept))
    assert len(list(kept.iterdir())) == 15
    assert open_source("terramesh", path=str(root), cache=str(kept)).index.keys.tolist() == first.index.keys.tolist()


DRIFT = int(os.environ.get("TERRA_JAX_FUZZ", "300")) // 5


def test_drifted_members_are_refused_by_name(tmp_path, samples):
    """Whole archives with other arrays in them than there should be: refused, or read where they still make sense."""
    arrays = {
        "bands": (at_10m(samples[0], "DEM")[None], ("time", "band", "y", "x")),
        "time": (np.zeros(1, np.int64), ("time",)),
        "band": (np.array(["DEM"]), ("band",)),
        "crs": (np.asarray(32631), ()),
        "x": (600_005.0 + 10 * np.arange(30), ("x",)),
        "y": (5_000_005.0 - 10 * np.arange(30), ("y",)),
        "center_lat": (np.asarray(1.0), ()),
        "center_lon": (np.asarray(1.0), ()),
    }
    members = []
    for seed in range(DRIFT):
        rng = np.random.default_rng([4, seed])
        changed = dict(arrays)
        name = str(rng.choice(list(arrays)))
        shape = tuple(rng.integers(0, 4, int(rng.integers(0, 5))))
        values = rng.normal(0, 1e6, shape)
        with np.errstate(all="ignore"):
            values = values.astype(str(rng.choice(["<i2", "|u1", "<f2", "<f8", "<i8", "|b1", "<U3", "<M8[ns]"])))
        changed[name] = (values, [str(d) for d in rng.choice(["time", "band", "y", "x", "z"], len(shape))])
        if seed % 4 == 0:
            changed.pop(name)
        members.append((f"{seed:05d}.zarr.zip", zarr_zip(changed)))
    write_tar(tmp_path / "DEM" / "a.tar", members)
    source, refused = TerraMeshSource(tmp_path), 0
    for i in range(DRIFT):
        try:
            source[i]
        except DataError as error:
            refused += 1
            assert f"{i:05d}" in str(error) and "\n" not in str(error)
    assert refused > DRIFT // 3


def test_batches_are_those_of_the_source_it_was_made_from(tmp_path):
    """What a model sees does not depend on the format: order, tiles, crops and masks are equal to the bit."""
    names = ("S2L2A", "S1RTC")
    earth = open_source("procedural", samples=6, tile=48, modalities=names)
    write_terramesh(tmp_path, [earth[i] for i in range(6)])
    recipe = TerraFMRecipe(names, tile=24, local_views=2, global_scale=(0.4, 1.0), local_scale=(0.1, 0.4))
    streams = [
        Loader(source, recipe, np.arange(6), batch_size=4, seed=5, threads=2)
        for source in (earth, open_source("terramesh", path=str(tmp_path), modalities=names))
    ]
    for _ in range(4):
        drawn, read = (next(stream) for stream in streams)
        assert drawn.keys() == read.keys() and all(np.array_equal(drawn[key], read[key]) for key in drawn)
    for stream in streams:
        assert stream.failures == {}
        stream.close()
