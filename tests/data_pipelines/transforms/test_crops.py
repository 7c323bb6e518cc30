import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.transforms.crops import Crop, crop_setting


def draw(key="a", setting=1, shape=(264, 264), size=224, scale=0.8, seed=0) -> Crop:
    return crop_setting(key, setting, shape, size, scale=scale, seed=seed)


def test_setting_0_is_the_centre_as_it_is():
    assert draw(setting=0) == Crop(20, 20, 224, 224, flip=False)
    assert draw(setting=0, shape=(224, 300)) == Crop(0, 38, 224, 224, flip=False)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=6), st.integers(1, 9), st.integers(64, 300), st.integers(64, 300), st.integers(0, 99))
def test_random_settings_are_large_and_lie_inside(key, setting, height, width, seed):
    crop = draw(key, setting, (height, width), 64, seed=seed)
    top, left, rows, columns = crop.box
    assert min(top, left) >= 0 and top + rows <= height and left + columns <= width
    assert rows * columns >= 0.78 * min(height, width) ** 2  # whole pixels: a little less than 0.8 may come out
    assert crop == draw(key, setting, (height, width), 64, seed=seed)


def test_keys_settings_and_seeds_draw_anew():
    crops = {draw(), draw(key="b"), draw(setting=2), draw(seed=1)}
    assert len(crops) == 4
    flips = [draw(key=str(i)).flip for i in range(200)]
    assert 70 < np.sum(flips) < 130


def test_a_sample_that_is_too_small_is_refused():
    with pytest.raises(DataError, match="sample a is 300 x 200 pixels, smaller than 224"):
        draw(setting=0, shape=(200, 300))
