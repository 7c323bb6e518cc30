import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from fakes import elevation_sample, same_raster, write_folder

from data_pipelines.errors import DataError
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources.geotiff import GeoTiffSource
from data_pipelines.tfds import EarthSamples, to_sample


def test_samples_survive_tfds(tmp_path):
    source = GeoTiffSource(write_folder(tmp_path / "tiles"))
    builder = EarthSamples(source=source, data_dir=tmp_path / "tfds", licence="CC0-1.0")
    builder.download_and_prepare()
    again = tfds.builder_from_directory(builder.data_dir)
    assert (builder.data_path / "LICENSE").read_text().strip() == "CC0-1.0"
    keys = source.index.keys.tolist()
    examples = again.as_data_source("train")
    assert len(examples) == 3
    for sample in map(to_sample, examples):
        original = source[keys.index(sample.key)]
        assert (sample.lon, sample.lat, sample.epsg) == (original.lon, original.lat, original.epsg)
        assert sample.transform == original.transform and set(sample.rasters) == set(original.rasters)
        for name, raster in sample.rasters.items():
            grids = {gsd: raster.grids[gsd] for gsd in sorted(raster.grids)}
            assert same_raster(Raster(grids, raster.unit, raster.time), original.rasters[name]), name


def test_a_series_is_refused(tmp_path):
    class Series:
        name = "series"
        index = GeoTiffSource(write_folder(tmp_path / "tiles", keys=("a",))).index

        def __getitem__(self, i):
            one = elevation_sample(i)
            raster = one.rasters["DEM"]
            times = np.array(["2020-01-01", "2020-02-01"], "datetime64[s]")
            series = Raster({10: np.stack([raster.grids[10]] * 2)}, raster.unit, times)
            return Sample("a", {"DEM": series}, 0.0, 0.0, 32631, one.transform)

    with pytest.raises(DataError, match="time series of DEM"):
        EarthSamples(source=Series(), data_dir=tmp_path / "tfds").download_and_prepare()


def test_tensorflow_stays_out():
    script = "import sys, data_pipelines.tfds; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
