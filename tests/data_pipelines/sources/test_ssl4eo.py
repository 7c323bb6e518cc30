from dataclasses import replace

import numpy as np
import pytest
import xarray
import zarr
from corpora import at_10m, write_ssl4eo
from fakes import same_raster

from data_pipelines.errors import DataError
from data_pipelines.sources import open_source
from data_pipelines.sources.ssl4eo import Ssl4eoSource

NAMES = ("S2L1C", "S2L2A", "S2RGB", "S1GRD")


@pytest.fixture(scope="module")
def places():
    """Three places of two dates; a place's dates are drawn apart and put at one spot."""
    earth = open_source("procedural", samples=6, tile=24, modalities=NAMES)
    return [
        [replace(earth[i], key=f"00807{i}"), replace(earth[i + 3], key=f"00807{i}", lon=earth[i].lon)] for i in range(3)
    ]


@pytest.fixture(params=[True, False], ids=["a chunk a place", "a chunk a date"])
def root(request, tmp_path, places):
    write_ssl4eo(tmp_path, places[:2], chunked=request.param)
    return write_ssl4eo(tmp_path, places[2:], 2, chunked=request.param)


def test_a_sample_is_a_place_at_a_date(root, places):
    source = open_source("ssl4eo", path=str(root))
    assert source.index.keys.tolist() == [f"00807{i}_{t}" for i in range(3) for t in range(2)]
    assert np.array_equal(source.index.lat, np.repeat([p[0].lat for p in places], 2))
    for n, found in enumerate(source):
        drawn = places[n // 2][n % 2]
        assert list(found.rasters) == list(NAMES) and found.attributes["place"] == drawn.key
        assert all(same_raster(raster, drawn.rasters[name]) for name, raster in found.rasters.items())
        assert found.epsg == places[n // 2][0].epsg and found.transform == places[n // 2][0].transform


def test_a_series_is_all_dates_of_a_place(root, places):
    source = open_source("ssl4eo", path=str(root), series=True, modalities=("S1GRD", "S2L2A"))
    assert source.index.keys.tolist() == ["008070", "008071", "008072"]
    raster = source[1].rasters["S2L2A"]
    assert raster.grids[10].shape == (2, 4, 24, 24)
    assert np.array_equal(raster.grids[60][1], places[1][1].rasters["S2L2A"].grids[60])
    assert raster.time.tolist() == [s.rasters["S2L2A"].time for s in places[1]]


def test_the_fixture_opens_with_plain_tools(root, places):
    path = root / "train" / "S2L2A" / "ssl4eos12_train_seasonal_data_000001.zarr.zip"
    store = zarr.storage.ZipStore(path, mode="r")
    dataset = xarray.open_dataset(store, engine="zarr", zarr_format=2, mask_and_scale=False)
    assert dataset.bands.dims == ("sample", "time", "band", "y", "x") and dataset.time_.dtype.kind == "M"
    assert np.array_equal(dataset.bands.values[1, 1], at_10m(places[1][1], "S2L2A"))
    assert zarr.open_group(store, mode="r", zarr_format=2)["sample"][:].tolist() == ["008070", "008071"]


def test_a_batch_may_lack_a_modality(root):
    (root / "train" / "S1GRD" / "ssl4eos12_train_seasonal_data_000002.zarr.zip").unlink()
    source = Ssl4eoSource(root)
    assert source[4].attributes["missing"] == "S1GRD" and "missing" not in source[0].attributes
    with pytest.raises(DataError, match="has no DEM; it has S2L1C"):
        Ssl4eoSource(root, modalities=("DEM",))


def test_other_places_under_one_number_are_refused(root, places, tmp_path):
    write_ssl4eo(tmp_path / "other", places[1:])
    file = "train/S1GRD/ssl4eos12_train_seasonal_data_000001.zarr.zip"
    (root / file).write_bytes((tmp_path / "other" / file).read_bytes())
    with pytest.raises(DataError, match=r"S1GRD/.*000001\.zarr\.zip holds other places than .*S2L1C"):
        Ssl4eoSource(root)


@pytest.mark.parametrize("spoil", [lambda d: d[:-50], lambda d: d[:2000] + b"\0" * 2000 + d[4000:], lambda d: b""])
def test_damage_is_named(root, spoil):
    path = root / "train" / "S2L2A" / "ssl4eos12_train_seasonal_data_000001.zarr.zip"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"S2L2A/ssl4eos12_train_seasonal_data_000001\.zarr\.zip") as error:
        source = Ssl4eoSource(root)
        _ = [source[i] for i in range(4)]
    assert "\n" not in str(error.value)


def test_empty_folders_and_small_tiles_are_refused(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no <MODALITY>/\*\.zarr\.zip"):
        Ssl4eoSource(tmp_path / "empty")
    with pytest.raises(DataError, match="24 x 24 pixels, smaller than tile=32"):
        Ssl4eoSource(root, tile=32)[0]
