import json
import subprocess
import sys
from dataclasses import replace

import corpora
import numpy as np
import pytest
import tensorflow_datasets as tfds
from fakes import write_folder

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER
from data_pipelines.radiometry import to_10m
from data_pipelines.sources import open_source
from data_pipelines.sources.geotiff import GeoTiffSource
from data_pipelines.tfds import LabelledEarth, to_sample


class Labelled:
    """A source whose samples have further attributes."""

    name = "labelled"

    def __init__(self, source, **attributes):
        self.index, self._source, self._attributes = source.index, source, attributes

    def __len__(self):
        return len(self._source)

    def __getitem__(self, i):
        return replace(self._source[i], attributes={name: values[i] for name, values in self._attributes.items()})


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return GeoTiffSource(write_folder(tmp_path_factory.mktemp("labelled") / "tiles", keys=("a", "b", "c", "d")))


def built(tmp_path, **options):
    builder = LabelledEarth(data_dir=tmp_path / "tfds", **options)
    builder.download_and_prepare()
    return tfds.builder_from_directory(builder.data_dir)


def test_a_multi_label_set_from_a_tortilla(tmp_path):
    earth = open_source("procedural", samples=2, tile=36, modalities=("S2L2A", "S1GRD"))
    path = tmp_path / "set.tortilla"
    path.write_bytes(corpora.benv2([earth[0], earth[1]], labels=("Pastures", "Arable land")))
    source = open_source("tortilla", path=str(path))
    builder = built(tmp_path, source=source, target="labels", classes=("Arable land", "Beaches", "Pastures"))
    assert builder.info.metadata["classes"] == ["Arable land", "Beaches", "Pastures"]
    examples = builder.as_data_source("train")  # the benchmark's own split
    assert len(examples) == 2
    for example in examples:
        assert example["labels"].tolist() == [True, False, True] and example["labels"].dtype == bool
        original = source[source.index.keys.tolist().index(example["key"].decode())]
        for name, raster in original.rasters.items():
            assert np.array_equal(example["rasters"][f"{name}_10"], to_10m(name, raster).grids[10])
        assert to_sample(example).lon == original.lon


def test_the_real_benchmark_file(tmp_path, fixtures_dir):
    source = open_source("tortilla", path=str(fixtures_dir / "benchmarks" / "benv2.tortilla"))
    builder = built(tmp_path, source=source, target="labels")
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == {"test": 2, "train": 5, "validation": 2}
    classes = builder.info.metadata["classes"]
    assert "Pastures" in classes and classes == sorted(classes)
    for name in sizes:
        for example in builder.as_data_source(name):
            key = example["key"].decode()
            said = json.loads(source[source.index.keys.tolist().index(key)].attributes["labels"])
            assert {classes[n] for n in np.flatnonzero(example["labels"])} == set(said)


def test_one_class_a_sample(tmp_path, tiles):
    source = Labelled(tiles, label=["river", "forest", "river", "city"])
    builder = built(tmp_path, source=source, target="label")
    names = builder.info.features["label"].names
    assert names == ["city", "forest", "river"] == builder.info.metadata["classes"]
    found = {example["key"].decode(): names[example["label"]] for example in builder.as_data_source("train")}
    assert found == {"a": "river", "b": "forest", "c": "river", "d": "city"}


def test_a_mask_is_no_input(tmp_path, tiles):
    builder = built(tmp_path, source=tiles, target="LULC")
    assert builder.info.metadata["classes"] == list(LAND_COVER)
    for example in builder.as_data_source("train"):
        original = tiles[tiles.index.keys.tolist().index(example["key"].decode())]
        assert np.array_equal(example["mask"], original.rasters["LULC"].grids[10][0])
        assert "LULC_10" not in example["rasters"] and "S2L2A_10" in example["rasters"]
    again = open_source("tfds", path=str(builder.data_dir))
    assert set(again[0].rasters) == {"S2L2A", "S1RTC", "DEM"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "label"}, "sample a has no attribute 'label' to be its target; it has "),
        ({"target": "DEM"}, "target DEM holds metre, not classes"),
        ({"target": "kind", "classes": ("x",)}, "sample b: kind is 'y', not one of x"),
        ({"target": "mixed", "classes": ("x", "y")}, "sample b: mixed is one class here and a list elsewhere"),
    ],
)
def test_mistakes_are_named(tmp_path, tiles, options, message):
    source = Labelled(tiles, kind=["x", "y", "x", "x"], mixed=["x", '["x"]', "x", "x"])
    with pytest.raises(DataError, match=message):
        built(tmp_path, source=source, **options)


def test_tensorflow_stays_out_while_it_is_built_and_read(tmp_path):
    script = f"""
import sys
from data_pipelines.sources import open_source
from data_pipelines.tfds import LabelledEarth
source = open_source("procedural", samples=3, tile=24, modalities=("S2L2A", "LULC"))
builder = LabelledEarth(source=source, target="LULC", data_dir={str(tmp_path)!r})
builder.download_and_prepare()
split = next(iter(builder.info.splits))
assert builder.as_data_source(split)[0]["mask"].shape == (24, 24)
sys.exit(3 if "tensorflow" in sys.modules else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
