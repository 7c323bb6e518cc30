import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.modalities import SCENE_CLASSES
from data_pipelines.recipes.spec import check_batch
from data_pipelines.recipes.terrafm import TerraFMRecipe, TileRecipe
from data_pipelines.sources import open_source

MODALITIES = ("S2L2A", "S2L1C", "S1RTC")


@pytest.fixture(scope="module")
def sample():
    return open_source("procedural", samples=4, tile=36, modalities=MODALITIES)[1]


def _recipe(**changes):
    options = {"tile": 24, "local_views": 3, "global_scale": (0.25, 1.0), "local_scale": (0.05, 0.25)}
    return TerraFMRecipe(**{"modalities": MODALITIES, **options, **changes})


def test_an_example_is_what_the_spec_says(sample):
    recipe = _recipe()
    check_batch(recipe(sample, 0), recipe.batch_spec)
    assert recipe.batch_spec["S2L1C/60"].shape == (2, 4, 4)  # without B10
    whole = TileRecipe(MODALITIES, 36)
    check_batch(whole(sample, 0), whole.batch_spec)


def test_an_example_follows_from_its_position_alone(sample):
    first, again, other = _recipe()(sample, 7), _recipe()(sample, 7), _recipe()(sample, 8)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["boxes"], other["boxes"])


def test_views_lie_in_the_tile_with_areas_in_their_bounds(sample):
    boxes = np.stack([_recipe()(sample, i)["boxes"] for i in range(200)])
    assert (boxes[..., :2] >= 0).all() and (boxes[..., :2] + boxes[..., 2:] <= 24).all()
    area = boxes[..., 2] * boxes[..., 3] / 24**2
    assert area[:, :2].min() >= 0.2 and area[:, 2:].max() <= 0.3 and area[:, 2:].min() >= 0.03


def test_every_view_has_a_modality_and_teacher_and_student_draw_apart(sample):
    examples = [_recipe()(sample, i) for i in range(300)]
    student = np.stack([e["student_modalities"] for e in examples])
    teacher = np.stack([e["teacher_modalities"] for e in examples])
    assert student.any(-1).all() and teacher.any(-1).all()
    assert (student[:, :2] != teacher).any()
    sizes = np.bincount(student.sum(-1).ravel(), minlength=4) / student[..., 0].size
    np.testing.assert_allclose(sizes, [0, 0.5, 0.375, 0.125], atol=0.06)  # one of eight draws is empty: one is forced
    one = np.stack([_recipe(modalities_per_view="one")(sample, i)["student_modalities"] for i in range(50)])
    assert (one.sum(-1) == 1).all()


def test_modalities_that_a_sample_lacks_are_never_drawn(sample):
    partial = type(sample)(**{**vars(sample), "rasters": {"S1RTC": sample.rasters["S1RTC"]}})
    example = _recipe()(partial, 0)
    assert example["student_modalities"][:, 2].all() and not example["student_modalities"][:, :2].any()
    assert not example["S2L2A/10"].any()
    with pytest.raises(DataError, match="none of DEM"):
        _recipe(modalities=("DEM",))(partial, 0)


def test_a_draw_per_batch_is_shared_by_its_examples(sample):
    recipe = _recipe(draw="per_batch", batch_size=4)
    masks = [recipe(sample, i)["student_modalities"] for i in range(40)]
    assert all(np.array_equal(masks[i], masks[i // 4 * 4]) for i in range(40))
    assert len({mask.tobytes() for mask in masks}) > 5


def test_frequent_land_cover_is_flagged(sample):
    scene = sample.attributes["scene"]
    assert _recipe(frequent=(scene,))(sample, 0)["frequent"]
    assert not _recipe(frequent=((scene + 1) % len(SCENE_CLASSES),))(sample, 0)["frequent"]


def test_a_sample_smaller_than_the_tile_is_named(sample):
    with pytest.raises(DataError, match=r"is 36 x 36 pixels, smaller than a tile of 48; choose --config.data.tile=36"):
        _recipe(tile=48)(sample, 0)


def test_an_unknown_draw_is_named():
    with pytest.raises(DataError, match="'both'"):
        _recipe(modalities_per_view="both")
