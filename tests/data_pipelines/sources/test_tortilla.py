import json

import numpy as np
import pytest
from corpora import at_10m, benv2, tortilla

from data_pipelines.errors import DataError
from data_pipelines.modalities import modality
from data_pipelines.sources import open_source
from data_pipelines.sources.tortilla import Instrument, TortillaSource


@pytest.fixture(scope="module")
def samples():
    earth = open_source("procedural", samples=2, tile=60, modalities=("S2L2A", "S1GRD"))
    return [earth[0], earth[1]]


@pytest.fixture
def file(tmp_path, samples):
    path = tmp_path / "mini.tortilla"
    path.write_bytes(benv2(samples))
    return path


def test_samples_labels_and_places(file, samples):
    source = open_source("tortilla", path=str(file))
    assert source.index.keys.tolist() == [s.key for s in samples]
    for found, drawn in zip(source, samples, strict=False):
        assert np.array_equal(found.rasters["S1GRD"].grids[10], at_10m(drawn, "S1GRD"))
        assert np.array_equal(found.rasters["S2L2A"].grids[20], drawn.rasters["S2L2A"].grids[20])
        assert found.transform == drawn.transform and found.epsg == drawn.epsg
        assert json.loads(found.attributes["labels"]) == ["Pastures"] and found.attributes["split"] == "train"
        assert found.rasters["S2L2A"].time == np.datetime64("2018-05-29T00:00:00")


def test_the_real_file(fixtures_dir):
    source = TortillaSource(fixtures_dir / "benchmarks" / "benv2.tortilla")
    assert len(source) == 9
    for sample in source:
        vv, vh = sample.rasters["S1GRD"].grids[10].astype(np.float32).mean(axis=(1, 2))
        assert 4 < vv - vh < 16  # stored VH first, 5 to 15 dB apart
        assert sample.rasters["S2L2A"].grids[10].shape == (12, 120, 120)  # interpolated bands stay at 10 m
        assert sample.transform[0] == 10 and json.loads(sample.attributes["labels"])
    assert source.index.lon[0] == pytest.approx(-7.3210, abs=1e-4)


def test_swapped_polarisations_are_refused(file):
    straight = Instrument("S1GRD", ("VV", "VH"))
    with pytest.raises(DataError, match=r"image s1 has VV at -.* below VH"):
        TortillaSource(file, instruments={"s1": straight})[0]


def test_a_folder_of_parts(tmp_path, samples):
    for n, sample in enumerate(samples):
        (tmp_path / f"part{n}.tortilla").write_bytes(benv2([sample]))
    assert len(TortillaSource(tmp_path, modalities=("S2L2A",))) == 2


@pytest.mark.parametrize("spoil", [lambda d: d[:-500], lambda d: d[:100], lambda d: b"XX" + d[2:], lambda d: b""])
def test_a_damaged_file_is_named(file, spoil):
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DataError, match=r"mini\.tortilla") as error:
        TortillaSource(file)
    assert "\n" not in str(error.value)


def test_a_damaged_image_is_named(file):
    data = bytearray(file.read_bytes())
    data[200:20_000] = bytes(19_800)
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"mini\.tortilla sample"):
        _ = TortillaSource(file)[0]


def test_foreign_images_are_named(tmp_path):
    blob = tortilla([({"tortilla:id": "lidar", "tortilla:file_format": "HDF5"}, b"1")])
    (tmp_path / "a.tortilla").write_bytes(tortilla([({"tortilla:id": "x", "lon": 1.0, "lat": 2.0}, blob)]))
    with pytest.raises(DataError, match="holds images lidar; those that are read are s1, s2"):
        TortillaSource(tmp_path)
    named = {"lidar": Instrument("DEM", modality("DEM").band_names)}
    with pytest.raises(DataError, match="image lidar is a HDF5, not a GTiff"):
        TortillaSource(tmp_path, instruments=named)[0]
