import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import grid
from data_pipelines.errors import DataError
from data_pipelines.regions import RegionTable, region_ids

LON, LAT = np.array([10.0, 10.1, 120.0, -60.0, np.nan]), np.array([50.0, 50.1, -20.0, 3.0, np.nan])


def test_each_region_with_data_has_a_row_of_its_own():
    table = RegionTable.of(LON, LAT, 8)
    rows = [table.find(lon, lat, "a") for lon, lat in zip(LON[:4], LAT[:4], strict=True)]
    assert rows[0] == rows[1] and len(set(rows)) == 3 and max(rows) < 8
    assert np.array_equal(table.ids, np.unique(grid.region_of(LON[:4], LAT[:4])))


def test_a_place_outside_every_region_is_refused_or_served_by_the_nearest():
    table = RegionTable.of(LON, LAT, 8)
    with pytest.raises(DataError, match=r"sample tile7 at lon 170, lat 10 lies outside all 3 regions of the table"):
        table.find(170.0, 10.0, "tile7")
    assert table.find(121.0, -33.0, "tile7", "nearest") == table.find(120.0, -20.0, "a")
    assert table.find(-179.0, 60.0, "tile7", "nearest") in table.row
    with pytest.raises(DataError, match="sample tile7 has no location"):
        table.find(np.nan, 10.0, "tile7", "nearest")


def test_too_many_regions_are_refused_or_share_rows():
    with pytest.raises(DataError, match="lie in 3 regions and the table has 2 rows; give it 3 rows"):
        RegionTable.of(LON, LAT, 2)
    table = RegionTable.of(LON, LAT, 2, overflow="share")
    assert set(table.row.tolist()) == {0, 1}
    assert table.find(10.0, 50.0, "a") == 0  # the region with most data keeps a row of its own
    with pytest.raises(DataError, match="'drop'; choose refuse or share"):
        RegionTable.of(LON, LAT, 2, overflow="drop")
    with pytest.raises(DataError, match="0 known places"):
        RegionTable.of(np.array([np.nan]), np.array([np.nan]), 2)


def test_tiles_are_those_of_web_mercator():
    assert region_ids(np.array([0.1, -0.1]), np.array([0.1, -0.1]), 1).tolist() == [1, 2]
    # Tile 17/70406/42987 of the usual numbering lies in Berlin.
    assert region_ids(np.array([13.3777]), np.array([52.5163]), 17).tolist() == [42987 * 2**17 + 70406]


@given(st.floats(-180, 180), st.floats(-90, 90), st.sampled_from([None, 5, 9]))
def test_every_place_has_a_region(lon, lat, zoom):
    found = int(region_ids(np.array([lon]), np.array([lat]), zoom)[0])
    assert 0 <= found < (4**zoom if zoom else 36 * 72)
    table = RegionTable.of(np.array([lon]), np.array([lat]), 1, zoom=zoom)
    assert table.find(lon, lat, "a") == 0
