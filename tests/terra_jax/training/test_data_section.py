import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.grid import climate_of
from data_pipelines.modalities import SCENE_CLASSES
from data_pipelines.recipes.terrafm import TileRecipe
from data_pipelines.records import RecordWriter
from data_pipelines.sources import open_source
from terra_jax.errors import ConfigError
from terra_jax.training.config import load_config
from terra_jax.training.data import frequencies, open_data, training_indices, training_stream, unlabelled


def config(*changes: str):
    return load_config("terrafm/nano", ["data.samples=2000", "data.cache=false", "data.ocean=1.0", *changes])


def chosen(*changes: str):
    changed = config(*changes)
    source = open_data(changed)
    return source.index, training_indices(source, changed)


def test_a_filter_leaves_what_it_says_of_the_seen_regions():
    index, everything = chosen("data.balance=0")
    _, crops = chosen("data.balance=0", "data.filter=scene == crops and lat > 0")
    wanted = (index.scene == SCENE_CLASSES.index("crops")) & (index.lat > 0) & (index.split == "train")
    assert 0 < len(crops) < len(everything) and np.array_equal(crops, np.flatnonzero(wanted))


def test_strata_of_several_columns_are_balanced():
    index, even = chosen("data.balance=1", "data.stratify=climate, split")
    counts = np.unique(climate_of(index.lat[even]), return_counts=True)[1]
    assert counts.max() - counts.min() <= 1 and len(counts) == 5
    index, plain = chosen("data.balance=1", "data.stratify=")
    assert np.array_equal(plain, np.flatnonzero(index.split == "train"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.filter=clouds < 20", "unknown column 'clouds'; there are key, lon, lat, region, climate, split, scene"),
        ("data.filter=lat > 89", "filter 'lat > 89' leaves no sample of the split 'train'; loosen it"),
        ("data.filter=split == val", "leaves no sample of the split 'train'"),
        ("data.stratify=lat", "strata by 'lat': it holds quantities, not classes"),
        ("data.stratify=biom", "unknown column 'biom' of the index; it has key, lon"),
        ("data.mixture=1 procedural where lat > 89", "'lat > 89' leaves no sample"),
    ],
)
def test_mistakes_are_one_line(change, message):
    with pytest.raises(DataError, match=message) as error:
        chosen(change)
    assert "\n" not in str(error.value)


def test_what_no_sample_says_is_told():
    with pytest.raises(DataError, match=r"'cloud < 20' leaves no sample .*: cloud is unknown of all"):
        from data_pipelines import sampling
        from data_pipelines.sources import Index

        index = Index.at(["a"], np.zeros(1), np.zeros(1), further={"cloud": np.array([np.nan])})
        sampling.select(index, matching="cloud < 20")


def test_a_path_beside_a_mixture_is_refused():
    with pytest.raises(ConfigError, match=r"data.path=tiles and data.mixture='1 procedural' are both given"):
        open_data(config("data.path=tiles", "data.mixture=1 procedural"))


def test_an_index_without_land_cover_is_told():
    from data_pipelines.sources import Index
    from data_pipelines.sources.cached import CachedSource

    class Silent:
        name, index = "terramesh", Index.at(["a"], np.zeros(1), np.zeros(1))

        def __len__(self):
            return 1

    assert unlabelled(CachedSource(Silent())).startswith("; the index of terramesh knows no land cover")
    assert unlabelled(open_data(config())) == ""


@pytest.fixture(scope="module")
def record_folder(tmp_path_factory):
    """Twenty places as records, with cloud fractions from 0 to 0.95."""
    root = tmp_path_factory.mktemp("mixture") / "records"
    earth = open_source("procedural", samples=20, tile=24, seed=5, modalities=("S2L2A", "S1RTC"))
    with RecordWriter(root) as writer:
        for i in range(20):
            sample = earth[i]
            writer.write(
                type(sample)(**{**vars(sample), "attributes": {**sample.attributes, "cloud_fraction": i / 20}}),
                split="train",
            )
    return root


def test_three_corpora_in_one_resumable_stream(record_folder):
    mixture = f"1 procedural; 0.5 records {record_folder} where cloud < 20; 0.5 records {record_folder}"
    changes = ("data.tile=24", "data.modalities=(S2L2A,S1RTC)", "data.samples=60", "batch_size=4", "data.balance=0")
    changed = config(*changes, f"data.mixture={mixture}")
    source = open_data(changed)
    indices = training_indices(source, changed)
    keys = source.index.keys
    assert {key.split("/")[0] for key in keys} == {"procedural", "records", "records2"}
    assert "cloud" not in source.index.further  # not every corpus knows it; where one does, its own filter may ask
    assert sum(key.startswith("records/") for key in keys[indices]) == 4
    assert sum(key.startswith("records2/") for key in keys[indices]) == 20
    shares = frequencies(source, indices)
    assert shares.sum() == pytest.approx(1) and shares[np.char.startswith(keys[indices], "records/")].sum() == 0.25
    recipe = TileRecipe(("S2L2A", "S1RTC"), 24)

    def read(position: int, count: int, processes: int = 1):
        opened = training_stream(changed, source, recipe, indices)
        batches = []
        for process in range(processes):
            stream = opened(position, process, processes)
            batches.append([next(stream)["S2L2A/10"] for _ in range(count)])
            stream.close()
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    whole, again = read(0, 5), read(8, 3)
    assert all(np.array_equal(a, b) for a, b in zip(whole[2:], again, strict=True))
    shared = read(8, 3, processes=2)
    for one, two in zip(again, shared, strict=True):
        assert sorted(x.tobytes() for x in one) == sorted(x.tobytes() for x in two)
