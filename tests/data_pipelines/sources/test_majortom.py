from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from corpora import geotiff, write_majortom
from fakes import same_raster

from data_pipelines.errors import DataError
from data_pipelines.modalities import Unit
from data_pipelines.sources import open_source
from data_pipelines.sources.majortom import MajorTomSource

NAMES = ("S2L1C", "S2L2A", "S1RTC", "DEM")


@pytest.fixture(scope="module")
def cells():
    earth = open_source("procedural", samples=3, tile=36, modalities=NAMES)
    keys = ("110D_457L", "300D_568L", "172U_184L")
    drawn = [replace(earth[i], key=key) for i, key in enumerate(keys)]
    without_radar = {name: raster for name, raster in drawn[2].rasters.items() if name != "S1RTC"}
    return [*drawn[:2], replace(drawn[2], rasters=without_radar)]


@pytest.fixture(params=[True, False], ids=["table", "no table"])
def root(request, tmp_path, cells):
    return write_majortom(tmp_path, cells, metadata=request.param)


def test_cells_are_joined_on_native_grids(root, cells):
    source = open_source("majortom", path=str(root))
    assert source.index.keys.tolist() == [c.key for c in cells]
    assert np.array_equal(source.index.lon, [c.lon for c in cells])
    assert source.present["S1RTC"].tolist() == [True, True, False]
    for found, cell in zip(source, cells, strict=False):
        for name in ("S2L1C", "S2L2A"):
            assert same_raster(found.rasters[name], cell.rasters[name])
        assert found.epsg == cell.epsg and found.transform == cell.transform
        assert found.attributes["cloud_fraction"] == 0.125 and "N0509" in found.attributes["product_id"]
    assert source[2].attributes["missing"] == "S1RTC"


def test_radar_power_becomes_decibels(root, cells):
    raster = MajorTomSource(root, modalities=("S2L2A", "S1RTC"))[0].rasters["S1RTC"]
    drawn = cells[0].rasters["S1RTC"].grids[10]
    assert raster.unit is Unit.DB and raster.grids[10].dtype == np.float16
    assert np.allclose(raster.grids[10], drawn, atol=0.02)


def test_elevation_of_30_m_is_repeated(root, cells):
    dem = MajorTomSource(root, modalities=("DEM", "S2L2A"))[0].rasters["DEM"].grids[10]
    drawn = cells[0].rasters["DEM"].grids[10]
    assert dem.shape == drawn.shape and dem.dtype == np.int16
    assert np.array_equal(dem, drawn[:, ::3, ::3].repeat(3, 1).repeat(3, 2))


def test_the_fixture_opens_with_plain_tools(root, cells):
    file = pq.ParquetFile(root / "Core-S2L2A" / "images" / "part_00001.parquet")
    assert file.metadata.num_row_groups == file.metadata.num_rows == 3
    row = file.read_row_group(1).to_pylist()[0]
    with rasterio.MemoryFile(row["B11"]) as memory, memory.open() as image:
        assert image.dtypes == ("uint16",) and image.res == (20, 20)
        assert np.array_equal(image.read(1), cells[1].rasters["S2L2A"].grids[20][4])


def test_only_parts_that_are_here_count(root, cells, tmp_path_factory):
    if (root / "Core-S2L2A" / "metadata.parquet").exists():
        other = write_majortom(tmp_path_factory.mktemp("other"), [replace(cells[0], key="1U_1R")], name="part_00002")
        table = pq.read_table(other / "Core-S2L2A" / "metadata.parquet")
        path = root / "Core-S2L2A" / "metadata.parquet"
        pq.write_table(pa.concat_tables([pq.read_table(path), table]), path)
        assert MajorTomSource(root).index.keys.tolist() == [c.key for c in cells]


def test_of_one_cell_the_least_cloudy_product_is_read(tmp_path, cells):
    root = write_majortom(tmp_path, [cells[0]], metadata=False)
    path = root / "Core-S2L2A" / "images" / "part_00001.parquet"
    row = pq.read_table(path).to_pylist()[0]
    clear = row | {"cloud_cover": 1.0, "product_id": "clear"}
    pq.write_table(pa.Table.from_pylist([row, clear, row]), path, row_group_size=2)
    assert MajorTomSource(root, modalities=("S2L2A",))[0].attributes["product_id"] == "clear"


def test_many_threads_read_alike(root):
    source = MajorTomSource(root, modalities=("S1RTC",))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: source[i % 2], range(16)))
    assert all(same_raster(s.rasters["S1RTC"], found[i % 2].rasters["S1RTC"]) for i, s in enumerate(found))


def with_column(root, cells, name, **columns):
    path = root / f"Core-{name}" / "images" / "part_00001.parquet"
    rows = pq.read_table(path).to_pylist()
    for column, value in columns.items():
        rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)


def coarse(cell, pixels=18, gsd=20, **changes):
    return geotiff(np.ones((1, pixels, pixels), np.uint16) * 500, replace(cell, **changes), gsd)


@pytest.mark.parametrize(
    "name, column, value, message",
    [
        ("S2L2A", "B11", lambda c: coarse(c)[:100], "column B11 is no readable GeoTIFF"),
        ("S2L2A", "B11", lambda c: b"", "column B11 is no readable GeoTIFF"),
        ("S2L2A", "B11", lambda c: None, "column B11 holds no GeoTIFF"),
        ("S2L2A", "B11", lambda c: coarse(c, 36), r"has \(18, 18\), .*\(36, 36\).* at 20 m, expected \(18, 18\)"),
        ("S2L2A", "B11", lambda c: coarse(c, epsg=32601), "is in EPSG:32601, its cell in EPSG"),
        ("S2L2A", "B11", lambda c: coarse(c, transform=(10, 0, 0, 0, -10, 0)), "off the cell's other images"),
        ("S1RTC", "vv", lambda c: geotiff(c.rasters["S1RTC"].grids[10][:1].astype("f4"), c), "look like db"),
        (
            "S1RTC",
            "vh",
            lambda c: geotiff(np.full((1, 36, 36), -32768, "f4"), c, nodata=-32768),
            "no data .NaN. in",
        ),
        ("S1RTC", "timestamp", lambda c: "yesterday", "timestamp 'yesterday'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, cells, name, column, value, message):
    root = write_majortom(tmp_path, cells, metadata=False)
    with_column(root, cells, name, **{column: value(cells[0])})
    source = MajorTomSource(root)
    with pytest.raises(DataError, match=message) as error:
        source[0]
    assert f"Core-{name}/images/part_00001.parquet row 0" in str(error.value) and "\n" not in str(error.value)
    assert name in source[1].rasters


def test_a_truncated_part_and_an_empty_folder_are_named(root, tmp_path):
    path = root / "Core-S1RTC" / "images" / "part_00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"Core-S1RTC/images/part_00001\.parquet cannot be read"):
        MajorTomSource(root)[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no Core-<MODALITY>"):
        MajorTomSource(tmp_path / "empty")
