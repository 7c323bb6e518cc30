import numpy as np
import pytest
from fakes import write_folder

from data_pipelines.errors import DataError
from data_pipelines.sources import Index, Source, open_source


def test_sources_open_by_name(tmp_path):
    source = open_source("geotiff", path=str(write_folder(tmp_path)), modalities=("S2L2A",), samples=2, tile=24, seed=3)
    assert isinstance(source, Source) and source.name == "geotiff" and len(source) == len(source.index) == 2


@pytest.mark.parametrize("name, near", [("geotif", "geotiff"), ("record", "records"), ("x", "procedural or .*geotiff")])
def test_unknown_names_are_answered_with_near_ones(name, near):
    with pytest.raises(DataError, match=f"unknown data source '{name}'; did you mean .*{near}"):
        open_source(name)


def test_a_path_is_asked_for_where_one_is_needed():
    with pytest.raises(DataError, match="'records' needs a path"):
        open_source("records")


def test_an_index_is_rectangular():
    index = Index.at(["a", "b"], np.zeros(2), np.ones(2))
    assert index.scene.tolist() == [-1, -1] and index.region.dtype == np.int32
    with pytest.raises(DataError, match="differ in length"):
        Index.at(["a"], np.zeros(2), np.ones(2))
