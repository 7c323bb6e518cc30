import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from corpora import at_10m
from fakes import same_raster

from data_pipelines.errors import DataError
from data_pipelines.sources import open_source
from data_pipelines.sources.tfds_source import TfdsSource
from data_pipelines.tfds.builder import EarthSamples

NAMES = ("S2L2A", "S1RTC", "DEM")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    earth = open_source("procedural", samples=4, tile=24, modalities=NAMES)
    EarthSamples(source=earth, data_dir=folder).download_and_prepare()
    return folder, [earth[i] for i in range(4)]


def test_what_the_builder_wrote_comes_back(built):
    folder, samples = built
    source = open_source("tfds", path=str(folder))
    drawn = {s.key: s for s in samples}
    assert set(source.index.keys) == set(drawn)
    for i, found in enumerate(source):
        sample = drawn[found.key]
        assert source.index.lon[i] == sample.lon and found.attributes["split"] == "train"
        assert all(same_raster(found.rasters[name], raster) for name, raster in sample.rasters.items())
    assert list(TfdsSource(folder, modalities=("DEM",), samples=2)[1].rasters) == ["DEM"]


def eurosat(folder, images, labels):
    """TFDS's eurosat/all (notes 5, TFDS specs: sentinel2 (64, 64, 13) float32, label, filename; B8A last)."""

    class Eurosat(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "eurosat"
        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="all")]  # noqa: RUF012

        def _info(self):
            features = {
                "sentinel2": tfds.features.Tensor(shape=images.shape[1:], dtype=np.float32),
                "label": tfds.features.ClassLabel(names=["AnnualCrop", "Forest"]),
                "filename": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield i, {"sentinel2": image, "label": int(label), "filename": f"Forest_{i}.tif"}

    Eurosat(data_dir=folder, config="all", file_format="array_record").download_and_prepare()


def test_eurosat_has_its_bands_put_in_order(tmp_path, monkeypatch):
    sample = open_source("procedural", samples=1, tile=64, modalities=("S2L1C",))[0]
    stored = at_10m(sample, "S2L1C")
    b8a_last = np.moveaxis(stored[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 8]], 0, -1).astype(np.float32)
    eurosat(tmp_path, np.stack([b8a_last, b8a_last]), [1, 0])
    source = TfdsSource(tmp_path)
    assert sorted(source.index.keys) == ["Forest_0.tif", "Forest_1.tif"] and np.isnan(source.index.lon).all()
    for found in source:
        assert found.attributes["label"] == (1 if found.key == "Forest_0.tif" else 0)
        assert np.array_equal(found.rasters["S2L1C"].grids[60], sample.rasters["S2L1C"].grids[60])
        assert np.array_equal(found.rasters["S2L1C"].grids[20], sample.rasters["S2L1C"].grids[20])


def test_foreign_and_absent_datasets_are_named(tmp_path, built):
    with pytest.raises(DataError, match="is not a folder"):
        TfdsSource(tmp_path / "none")
    with pytest.raises(DataError, match="holds 0 TFDS datasets"):
        TfdsSource(tmp_path)
    with pytest.raises(DataError, match="has no LULC; it has S2L2A, S1RTC, DEM"):
        TfdsSource(built[0], modalities=("LULC",))


def test_no_tensorflow_is_imported(built):
    code = (
        "import sys; from data_pipelines.sources import open_source; "
        f"open_source('tfds', path={str(built[0])!r})[0]; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
