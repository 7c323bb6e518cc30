"""Every reader of files takes an fsspec URL; memory:// stands for the stores of a cloud."""

from dataclasses import replace

import fsspec
import pytest
from corpora import benv2, write_majortom, write_ssl4eo, write_terramesh
from fakes import same

from data_pipelines.errors import DataError
from data_pipelines.sample import to_dataset
from data_pipelines.sources import open_source


def terramesh(root, samples):
    write_terramesh(root, samples)


def ssl4eo(root, samples):
    write_ssl4eo(root, [[sample] for sample in samples])


def majortom(root, samples):
    write_majortom(root, [replace(s, rasters={"S2L2A": s.rasters["S2L2A"]}) for s in samples])


def tortilla(root, samples):
    (root / "a.tortilla").write_bytes(benv2(samples))


def netcdf(root, samples):
    for sample in samples:
        only = replace(sample, rasters={"S2L2A": sample.rasters["S2L2A"]})
        to_dataset(only).to_netcdf(root / f"{sample.key}.nc", engine="h5netcdf")


def zarr(root, samples):
    for sample in samples:
        to_dataset(sample).to_zarr(root / f"{sample.key}.zarr", consolidated=False)


@pytest.mark.parametrize("write", [terramesh, ssl4eo, majortom, tortilla, netcdf, zarr])
def test_a_url_reads_as_the_folder_does(tmp_path, write):
    earth = open_source("procedural", samples=2, tile=36, modalities=("S2L2A", "S1GRD"))
    write(tmp_path, [earth[0], earth[1]])
    kind = "xarray" if write in (netcdf, zarr) else write.__name__
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), f"/{write.__name__}", recursive=True)
    try:
        local, remote = (open_source(kind, path=path) for path in (str(tmp_path), f"memory://{write.__name__}"))
        assert len(local) == len(remote) == 2
        assert all(same(local[i], remote[i]) for i in range(2))
    finally:
        memory.rm(f"/{write.__name__}", recursive=True)
    with pytest.raises(DataError, match=r"does not exist|cannot be"):
        open_source(kind, path=f"memory://{write.__name__}")
