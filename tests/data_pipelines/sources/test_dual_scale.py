import numpy as np
import pytest
from dual_corpus import SETTINGS, Pixels, joined, pixels_of, record_of, write_corpus

from data_pipelines.errors import DataError
from data_pipelines.loader import Loader
from data_pipelines.recipes.spec import ArraySpec
from data_pipelines.sources import Source
from data_pipelines.sources.dual_scale import DualScaleSource
from data_pipelines.sources.tokens import TokenCorpus


class KeyRecipe:
    """An example that says which sample it is of."""

    def __init__(self):
        self.batch_spec = {"number": ArraySpec((), "int64")}

    def __call__(self, sample, position):
        return {"number": np.array(int(sample.key[1:]))}


def corpus_of(path, numbers):
    return TokenCorpus(write_corpus(path, [[record_of(i, s) for s in range(SETTINGS)] for i in numbers]))


def test_pixels_and_tokens_meet_by_key(tmp_path):
    source = DualScaleSource(Pixels([5, 0, 3, 9]), corpus_of(tmp_path / "t", [9, 1, 3, 5]))
    assert isinstance(source, Source) and source.index.keys.tolist() == ["s9", "s3", "s5"] and len(source) == 3
    for i, number in enumerate((9, 3, 5)):
        sample = source[i]
        assert sample.key == f"s{number}" and sample.rasters["DEM"].grids[10].max() == number
        assert [record.setting for record in sample.records] == list(range(SETTINGS))
        assert sample.records[1].ids["coords"][0] == 300 + number


def test_nothing_in_common_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"no sample of fake has tokens \(keys such as s7 there, s1 in the corpus\)"):
        DualScaleSource(Pixels([7]), corpus_of(tmp_path / "t", [1]))


def test_tiles_of_another_size_than_were_tokenised_are_refused(tmp_path):
    source = DualScaleSource(Pixels([0], {0: pixels_of(0, tile=42)}), corpus_of(tmp_path / "t", [0]))
    with pytest.raises(DataError, match="s0 is 42 x 42 pixels and was 36 x 36 when it was tokenised"):
        source[0]


def test_the_loader_puts_another_sample_in_the_place_of_one_whose_tokens_are_corrupt(tmp_path):
    source = joined(tmp_path / "t")
    records = tmp_path / "t" / "shard-00000.arrayrecord"
    content = bytearray(records.read_bytes())
    content[content.index(b"made-NDVI") + 2] ^= 1  # in the first record of the first sample
    records.write_bytes(content)

    with Loader(source, KeyRecipe(), np.arange(2), batch_size=4, seed=0, threads=0) as loader:
        assert next(iter(loader))["number"].tolist() == [1, 1, 1, 1] and list(loader.failures) == ["s0"]
