import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.recipes.spec import check_batch
from data_pipelines.recipes.tokenizer import TokenizerRecipe, WindowRecipe
from data_pipelines.sources import open_source


@pytest.fixture(scope="module")
def sample():
    return open_source("procedural", samples=4, tile=48, modalities=("S2L2A", "LULC"))[1]


@pytest.mark.parametrize("name", ["S2L2A", "LULC"])
def test_examples_are_what_the_spec_says(sample, name):
    for recipe in (TokenizerRecipe(name, 36), WindowRecipe(name, 36, 16)):
        check_batch(recipe(sample, 0), recipe.batch_spec)


def test_an_example_follows_from_its_position_alone(sample):
    recipe = TokenizerRecipe("LULC", 24)
    first, again, other = recipe(sample, 7), recipe(sample, 7), recipe(sample, 8)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["boxes"], other["boxes"])


def test_crops_are_large_and_half_of_them_flipped(sample):
    examples = [TokenizerRecipe("LULC", 48)(sample, i) for i in range(300)]
    boxes = np.concatenate([example["boxes"] for example in examples])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 48).all()
    area = boxes[:, 2] * boxes[:, 3] / 48**2
    assert 0.77 < area.min() < 0.85 and area.max() > 0.95
    flips = np.concatenate([example["flips"] for example in examples])
    assert not flips[:, 0].any() and 0.4 < flips[:, 1].mean() < 0.6


def test_windows_lie_side_by_side_around_the_centre(sample):
    recipe = WindowRecipe("LULC", 42, 16)
    example = recipe(sample, 0)
    assert recipe.windows == 4
    assert example["boxes"].tolist() == [[top, left, 16, 16] for top in (5, 21) for left in (5, 21)]
    assert not example["flips"].any()


def test_what_does_not_fit_is_named(sample):
    with pytest.raises(DataError, match=r"data.tile=24 is smaller than the network's input of 32"):
        WindowRecipe("LULC", 24, 32)
    with pytest.raises(DataError, match=r"has no S1GRD; it has S2L2A, LULC"):
        TokenizerRecipe("S1GRD", 24)(sample, 0)
