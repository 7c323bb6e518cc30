import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.warp import transform

from data_pipelines import grid
from data_pipelines.errors import DataError

LON, LAT = st.floats(-180, 180), st.floats(-85, 85)


def test_real_tiles_lie_in_the_cells_that_name_them(fixtures_dir):
    paths = sorted((fixtures_dir / "tiles" / "S2L2A").glob("*.tif"))
    assert paths
    for path in paths:
        with rasterio.open(path) as file:
            (lon,), (lat,) = transform(file.crs, "EPSG:4326", *zip(file.xy(112, 112), strict=True))
        assert path.stem.startswith(grid.cell_name(lon, lat) + "_")


@given(LON, LAT)
def test_a_cell_holds_the_point_that_it_was_named_for(lon, lat):
    bounds = grid.cell_bounds(grid.cell_name(lon, lat))
    inside = bounds.west - 1e-9 <= lon <= bounds.east + 1e-9
    assert inside or (lon == 180 and bounds.west == -180)
    assert bounds.south - 1e-9 <= lat <= bounds.north + 1e-9


@given(LON, st.floats(-84, 84))
def test_the_middle_of_a_cell_has_its_name(lon, lat):
    name = grid.cell_name(lon, lat)
    bounds = grid.cell_bounds(name)
    assert grid.cell_name((bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2) == name


@pytest.mark.parametrize("name", ["", "282D", "tile_1", "9999U_0R", "0U_9999R"])
def test_other_names_are_refused(name):
    with pytest.raises(DataError, match="Major TOM"):
        grid.cell_bounds(name)


def test_points_off_the_grid_are_refused():
    with pytest.raises(DataError, match="lat 86"):
        grid.cell_name(0, 86)


def test_regions_are_blocks_of_like_area():
    lon, lat = np.meshgrid(np.arange(-179.75, 180, 0.5), np.arange(-69.75, 70, 0.5))
    region = grid.region_of(lon, lat)
    assert region.dtype == np.int32 and region.shape == lon.shape
    areas = np.bincount(region.reshape(-1), weights=np.cos(np.deg2rad(lat)).reshape(-1))
    areas = areas[areas > 0]
    assert areas.max() / areas.min() < 1.25
    assert grid.region_of(180.0, 0.0) == grid.region_of(-180.0, 0.0)
    assert grid.region_of(np.nan, 0.0) == -1


def test_splits_follow_regions_in_the_stated_shares():
    regions = np.arange(36 * 72)
    split = grid.split_of(regions)
    assert set(split) == set(grid.SPLITS)
    assert abs(np.mean(split == "train") - 0.8) < 0.03 and abs(np.mean(split == "val") - 0.1) < 0.02
    assert np.array_equal(split, grid.split_of(regions)) and not np.array_equal(split, grid.split_of(regions, seed=1))
    assert str(grid.split_of(5)) == split[5]


def test_few_regions_are_not_divided():
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 500), rng.uniform(-60, 60, 500)
    assert set(grid.assign_splits(lon, lat)) == set(grid.SPLITS)
    assert np.array_equal(grid.assign_splits(lon, lat), grid.split_of(grid.region_of(lon, lat)))
    assert set(grid.assign_splits(lon[:9], lat[:9])) == {"train"}
    lon[0] = np.nan
    assert grid.assign_splits(lon, lat)[0] == "train"


def test_day_of_year():
    days = grid.day_of_year(np.array(["2020-12-31T23:59:59", "2021-12-31", "2021-01-01", "NaT"], "datetime64[s]"))
    assert days.tolist() == [366, 365, 1, 0] and days.dtype == np.int32
    assert grid.day_of_year(np.datetime64("2021-03-01")) == 60


def test_climates_are_belts_of_latitude():
    lat = np.array([0.0, -23.4, 23.5, -34.9, 40.0, 55.0, -66.4, 66.5, -90.0, np.nan])
    assert grid.climate_of(lat).tolist() == [
        "tropical", "tropical", "subtropical", "subtropical", "temperate", "boreal", "boreal", "polar", "polar", "",
    ]  # fmt: skip
