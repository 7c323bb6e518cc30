import shutil
import sys

import numpy as np
import pytest
import xarray
from corpora import at_10m
from fakes import same_raster

from data_pipelines.errors import DataError
from data_pipelines.sample import to_dataset
from data_pipelines.sources import open_source
from data_pipelines.sources.array_store import ArrayStoreSource

NAMES = ("S2L2A", "S1RTC", "DEM", "LULC")


@pytest.fixture(scope="module")
def samples():
    earth = open_source("procedural", samples=2, tile=30, modalities=NAMES)
    return [earth[0], earth[1]]


@pytest.mark.parametrize("suffix", [".zarr", ".zarr.zip"])
def test_zarr_stores_of_the_project_come_back_exactly(tmp_path, samples, suffix):
    for sample in samples:
        store = tmp_path / f"{sample.key}.zarr"
        to_dataset(sample).to_zarr(store, consolidated=False)
        if suffix == ".zarr.zip":
            shutil.make_archive(str(store), "zip", store)
            shutil.rmtree(store)
    source = open_source("xarray", path=str(tmp_path))
    assert source.index.keys.tolist() == sorted(s.key for s in samples)
    for found, drawn in zip(source, samples, strict=False):
        assert all(same_raster(found.rasters[name], raster) for name, raster in drawn.rasters.items())
        assert (found.epsg, found.transform, found.lon) == (drawn.epsg, drawn.transform, drawn.lon)
        assert found.attributes == dict(drawn.attributes) and found.source == "xarray"
    assert list(ArrayStoreSource(tmp_path, modalities=("DEM",))[0].rasters) == ["DEM"]


def test_one_store_is_a_source_too(tmp_path, samples):
    to_dataset(samples[0]).to_zarr(tmp_path / "one.zarr", consolidated=False)
    assert ArrayStoreSource(tmp_path / "one.zarr").index.keys.tolist() == ["one"]


def plain(sample) -> xarray.Dataset:
    """As anybody would write it: band names, projected coordinates, a coordinate system."""
    from rasterio.crs import CRS

    x = sample.transform[2] + 10 * (np.arange(30) + 0.5)
    y = sample.transform[5] - 10 * (np.arange(30) + 0.5)
    optical = at_10m(sample, "S2L2A")
    names = ["B12", "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11"]
    coords = {"x": x, "y": y, "spatial_ref": ((), 0, {"crs_wkt": CRS.from_epsg(sample.epsg).to_wkt()})}
    radar = {"units": "linear", "radiometric_unit": "linear"}
    power = 10 ** (at_10m(sample, "S1RTC").astype(np.float32) / 10)
    return xarray.Dataset(
        {
            "S2L2A": (("band", "y", "x"), optical[[11, *range(11)]], {"units": "1e-4"}),
            "S1RTC": (("band_S1", "y", "x"), power, radar),
            "DEM": (("y", "x"), at_10m(sample, "DEM")[0]),
        },
        {**coords, "band": names},
        {"campaign": "spring"},
    )


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy", "zarr"])
def test_plain_datasets_are_put_in_order(tmp_path, samples, engine):
    dataset = plain(samples[0])
    if engine == "zarr":
        dataset.to_zarr(tmp_path / "a.zarr", consolidated=True)
    else:
        dataset.to_netcdf(tmp_path / "a.nc", engine=engine)
    source = open_source("xarray", path=str(tmp_path))
    sample = source[0]
    assert same_raster(sample.rasters["DEM"], samples[0].rasters["DEM"])
    assert np.array_equal(sample.rasters["S2L2A"].grids[60], samples[0].rasters["S2L2A"].grids[60])
    assert np.allclose(sample.rasters["S1RTC"].grids[10], samples[0].rasters["S1RTC"].grids[10], atol=0.02)
    assert sample.epsg == samples[0].epsg and sample.transform == samples[0].transform
    assert source.index.lon[0] == pytest.approx(samples[0].lon, abs=1e-3) and sample.attributes["campaign"] == "spring"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda d: d.drop_vars("spatial_ref"), "no coordinate system"),
        (lambda d: d.assign_coords(x=d.x * 2), "pixels of 20 x -10"),
        (lambda d: d.rename({"band": "channel"}), "dimensions channel, "),
        (lambda d: d.assign(S2L2A=d.S2L2A / 10_000), "look like reflectance"),
        (lambda d: d.isel(band=slice(11)), "expected 11 bands|lacks B11"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, samples, spoil, message):
    spoil(plain(samples[0])).to_netcdf(tmp_path / "a.nc", engine="scipy")
    with pytest.raises(DataError, match=message) as error:
        ArrayStoreSource(tmp_path)[0]
    assert "a.nc" in str(error.value) and "\n" not in str(error.value)


def test_damage_and_absence_are_named(tmp_path, samples):
    with pytest.raises(DataError, match=r"holds no \*\.zarr"):
        ArrayStoreSource(tmp_path)
    for name in ("a", "b"):
        plain(samples[0]).to_netcdf(tmp_path / f"{name}.nc", engine="scipy")
    data = (tmp_path / "b.nc").read_bytes()
    (tmp_path / "b.nc").write_bytes(data[: len(data) // 2])
    source = ArrayStoreSource(tmp_path)
    assert "DEM" in source[0].rasters
    with pytest.raises(DataError, match=r"b\.nc") as error:
        source[1]
    assert "\n" not in str(error.value)


def test_a_package_that_is_missing_is_named(tmp_path, samples, monkeypatch):
    to_dataset(samples[0]).to_zarr(tmp_path / "one.zarr", consolidated=False)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(DataError, match=r"terra_jax\[xarray\]"):
        ArrayStoreSource(tmp_path)
