import numpy as np
import pytest
import rasterio
from fakes import elevation_sample, same, samples
from hypothesis import given, settings

from data_pipelines.errors import DataError
from data_pipelines.modalities import Unit
from data_pipelines.sample import Raster, Sample, from_dataset, to_dataset
from data_pipelines.sources.geotiff import GeoTiffSource


@settings(max_examples=40, deadline=None)
@given(samples())
def test_a_sample_survives_xarray_exactly(sample):
    assert same(sample, from_dataset(to_dataset(sample)))


def test_real_sample_follows_the_conventions(fixtures_dir):
    source = GeoTiffSource(fixtures_dir / "tiles")
    sample = source[0]
    dataset = to_dataset(sample)
    assert same(sample, from_dataset(dataset))
    with rasterio.open(fixtures_dir / "tiles" / "S2L2A" / f"{sample.key}.tif") as file:
        x, y = file.xy(0, 0)
        blue, swir = file.read(2), file.read(11)
    fine, coarse = dataset["S2L2A"], dataset["S2L2A_20m"]
    assert float(fine.x[0]) == x and float(fine.y[0]) == y and float(coarse.x_20m[0]) == x + 5
    assert np.array_equal(fine.sel(band_S2L2A="B02"), blue)
    assert np.array_equal(coarse.sel(band_S2L2A_20m="B11"), swir[::2, ::2])
    assert fine.attrs["standard_name"] == "surface_bidirectional_reflectance" and fine.attrs["units"] == "1e-4"
    assert dataset["S1RTC"].attrs["units"] == "dB" and np.isnan(dataset["S1RTC"].attrs["_FillValue"])
    for variable in (fine, coarse):
        mapping = variable.coords[variable.attrs["grid_mapping"]].attrs
        assert "UTM zone 22S" in mapping["crs_wkt"]
        scale = float(mapping["GeoTransform"].split()[1])
        assert scale == variable.attrs["gsd"] and np.all(np.diff(variable[variable.dims[-1]]) == scale)
    assert fine.coords["time_S2L2A"].values == np.datetime64("2021-07-23T13:22:41")


def test_datasets_of_another_layout_are_refused():
    dataset = to_dataset(elevation_sample(1))
    with pytest.raises(DataError, match="lacks 'rasters'"):
        from_dataset(dataset.drop_attrs())
    with pytest.raises(DataError, match="lacks 'DEM'"):
        from_dataset(dataset.drop_vars("DEM"))


def test_rotated_samples_are_refused():
    rotated = Sample(
        "r", {"DEM": Raster({10: np.zeros((1, 2, 2), np.int16)}, Unit.METRE)}, 0, 0, 32631, (10, 1, 0, 1, -10, 0)
    )
    with pytest.raises(DataError, match="rotated"):
        to_dataset(rotated)
