import json

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.land_cover import describe, read_frequent
from data_pipelines.modalities import SCENE_CLASSES


def test_classes_are_counted_and_the_commonest_named():
    scene = np.array([2, 2, 2, 4, 4, 1, 10, -1, -1])
    content = describe(scene, np.full(9, 3.0), np.full(9, 45.0), 0.7)
    assert content["samples"] == {"water": 1, "trees": 3, "crops": 2, "ocean": 1} and content["unknown"] == 2
    assert content["frequencies"]["trees"] == pytest.approx(3 / 7)
    assert content["frequent"] == ["trees", "crops"]


def test_frequencies_are_those_of_training_regions():
    lon, lat = np.linspace(-170, 170, 60), np.linspace(-60, 60, 60)
    from data_pipelines.grid import assign_splits

    training = assign_splits(lon, lat) == "train"
    assert not training.all()
    content = describe(np.where(training, 2, 4), lon, lat, 0.5)
    assert content["samples"].keys() == {"trees", "crops"} and content["frequencies"] == {"trees": 1.0}


def test_a_config_names_a_file_or_classes(tmp_path):
    path = tmp_path / "land_cover.json"
    path.write_text(json.dumps(describe(np.array([2, 2, 4]), np.zeros(3), np.zeros(3), 0.5)))
    assert read_frequent(str(path)) == (SCENE_CLASSES.index("trees"),)
    assert read_frequent("trees, ocean") == (SCENE_CLASSES.index("trees"), SCENE_CLASSES.index("ocean"))
    with pytest.raises(DataError, match=r"unknown land cover 'wood'; choose among nodata, water"):
        read_frequent("wood")
    for text in ("{}", "no", json.dumps({"format": "x", "version": 1, "frequent": []})):
        path.write_text(text)
        with pytest.raises(DataError, match=r"land_cover.json lists no frequent classes"):
            read_frequent(str(path))
