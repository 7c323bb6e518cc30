import numpy as np
import pytest

from data_pipelines.modalities import OCEAN, SCENE_CLASSES
from data_pipelines.sources import open_source
from terra_jax.evaluation.table import figures, scores_at
from terra_jax.terrafm.evaluation import input_sets
from terra_jax.terrafm.experiment import make_objective
from terra_jax.training.config import load_config
from terra_jax.training.data import open_data, split_indices, training_indices


@pytest.fixture(scope="module")
def config():
    return load_config("terrafm/nano", ["config.data.samples=3000", "config.data.cache=false"])


@pytest.fixture(scope="module")
def source(config):
    return open_data(config)


def test_training_never_sees_the_regions_that_are_scored(source, config):
    index = source.index
    trained = set(index.region[training_indices(source, config)])
    for split in ("val", "test"):
        scored = split_indices(source, split, 10_000, labelled=True)
        assert len(scored) > 100
        assert trained.isdisjoint(index.region[scored])
        assert (index.scene[scored] >= 0).all()


def test_the_open_sea_is_thinned_and_land_cover_balanced(source, config):
    index = source.index
    chosen = training_indices(source, config)
    train = index.split == "train"
    ocean = index.scene == SCENE_CLASSES.index(OCEAN)
    assert len(np.unique(chosen[ocean[chosen]])) < 0.1 * (ocean & train).sum()
    count = lambda scenes: np.bincount(scenes, minlength=len(SCENE_CLASSES)) / len(scenes)  # noqa: E731
    before, after = count(index.scene[train & ~ocean]), count(index.scene[chosen])
    rare, common = before[before > 0].min(), before.max()
    assert after[before == rare][0] > 1.5 * rare and after[before == common][0] < common


def test_evaluation_tiles_are_the_same_for_every_run(source):
    first, second = split_indices(source, "val", 50, labelled=True), split_indices(source, "val", 50, labelled=True)
    assert np.array_equal(first, second) and len(np.unique(first)) == 50


def test_input_sets_fuse_one_product_of_each_sensor():
    assert input_sets(("S2L2A", "S2L1C", "S1RTC")) == {
        "S2L2A+S1RTC": ("S2L2A", "S1RTC"),
        "S2L2A": ("S2L2A",),
        "S2L1C": ("S2L1C",),
        "S1RTC": ("S1RTC",),
    }
    assert list(input_sets(("S2L2A",))) == ["S2L2A"]


def test_figures_are_flat():
    scores = {"S1RTC": [{"fraction": 0.01, "accuracy": 0.5, "macro_accuracy": 0.25}]}
    assert figures(scores) == {"S1RTC/0.01/accuracy": 0.5, "S1RTC/0.01/macro_accuracy": 0.25}


def test_figures_are_read_back_from_a_row():
    scores = {
        "S1RTC": [{"fraction": fraction, "accuracy": 0.5, "macro_accuracy": fraction} for fraction in (0.01, 1.0)]
    }
    row = {"step": "20", **{f"knn/{name}": str(value) for name, value in figures(scores).items()}}
    assert scores_at(row, "S1RTC") == {"step": 20, "scores": scores["S1RTC"]}


def test_published_hyper_parameters_are_the_defaults():
    base, large = load_config("terrafm/base"), load_config("terrafm/large")
    assert (base.batch_size, large.batch_size) == (1024, 2048)
    assert base.steps == 150 * 1494 and large.steps == 200 * 747
    assert base.objective.prototypes == 65_536 and base.objective.alpha == 0.8
    assert tuple(base.objective.teacher_temperature) == (0.04, 0.06) and base.objective.teacher_momentum == 0.996
    assert base.encoder.drop_path == 0.1 and base.data.tile == 534 and base.data.ocean == 0.02
    assert tuple(base.views.global_scale) == (0.25, 1.0) and tuple(base.views.local_scale) == (0.05, 0.25)
    assert (base.views.global_size, base.views.local_size) == (224, 96)


def test_every_config_makes_an_objective_whose_batches_fit():
    from data_pipelines.recipes.terrafm import TileRecipe

    for name in ("nano", "small", "base", "large"):
        config = load_config(f"terrafm/{name}")
        recipe = TileRecipe(tuple(config.data.modalities), config.data.tile)
        objective = make_objective(config, recipe)
        assert objective.global_size % objective.variant.patch == 0
        assert objective.local_size % objective.variant.patch == 0


def test_large_tiles_are_drawn():
    sample = open_source("procedural", samples=1, tile=534, modalities=("S1RTC",))[0]
    assert sample.shape == (534, 534)
