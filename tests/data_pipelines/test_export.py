import pytest
import zarr
from fakes import same_raster

from data_pipelines.errors import DataError
from data_pipelines.export import export_zarr
from data_pipelines.records import RecordWriter
from data_pipelines.sources import open_source


def test_records_to_zarr_and_back(tmp_path):
    earth = open_source("procedural", samples=3, tile=24, modalities=("S2L2A", "S1RTC", "DEM"))
    with RecordWriter(tmp_path / "records") as writer:
        for i in range(3):
            writer.write(earth[i])
    source = open_source("records", path=str(tmp_path / "records"))
    assert export_zarr(source, tmp_path / "zarr", indices=[1]) == 1
    told: list[str] = []
    assert export_zarr(source, tmp_path / "zarr", progress=told.append) == 2 and len(told) == 2
    assert zarr.open_group(tmp_path / "zarr" / f"{told[0]}.zarr", mode="r").metadata.zarr_format == 3
    back = open_source("xarray", path=str(tmp_path / "zarr"))
    for i in range(3):
        assert back.index.keys[i] == earth[i].key and back[i].attributes == dict(earth[i].attributes)
        assert all(same_raster(back[i].rasters[name], raster) for name, raster in earth[i].rasters.items())
    assert not [path for path in (tmp_path / "zarr").iterdir() if path.name.startswith(".")]


def test_a_key_that_is_no_file_name_is_refused(tmp_path):
    earth = open_source("procedural", samples=1, tile=24, modalities=("DEM",))
    earth.index.keys[0] = "../out"
    with pytest.raises(DataError, match=r"'\.\./out' is no name for a file"):
        export_zarr(earth, tmp_path / "zarr")
    assert not (tmp_path / "out.zarr").exists()
