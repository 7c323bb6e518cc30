import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.transforms.paired_crops import check_scale, overlapping_boxes


def shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pixels that two boxes share along either axis."""
    low = np.maximum(one[:2], other[:2])
    high = np.minimum(one[:2] + one[2:], other[:2] + other[2:])
    return high - low


@given(st.integers(0, 2**32 - 1), st.integers(8, 64), st.floats(0, 1), st.integers(0, 4))
def test_global_views_overlap_and_local_ones_overlap_what_they_share(seed, extent, overlap, locals_):
    boxes = overlapping_boxes(np.random.default_rng(seed), extent, 2, locals_, (0.2, 0.9), (0.06, 0.3), overlap)
    assert boxes.shape == (2 + locals_, 4) and boxes.dtype == np.float32
    assert (boxes == np.rint(boxes)).all() and (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= extent).all()
    both = shared(boxes[0], boxes[1])
    assert (both >= np.maximum(1, overlap * np.minimum(boxes[0, 2:], boxes[1, 2:]) - 1e-6)).all()
    corner = np.maximum(boxes[0, :2], boxes[1, :2])
    for box in boxes[2:]:
        assert (shared(box, np.concatenate([corner, both])) >= 1).all()


def test_the_whole_tile_is_a_view_like_any_other():
    boxes = overlapping_boxes(np.random.default_rng(0), 16, 2, 0, (1.0, 1.0), (0.1, 0.2), 1.0)
    assert boxes[:, 2:].max() == 16


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ((0.0, 0.5), r"views.global_scale=\(0, 0.5\) is impossible"),
        ((0.6, 0.5), "0 < least <= greatest <= 1"),
        ((0.5, 1.5), "impossible"),
        ((0.01, 0.5), "below 2 x 2 pixels of a tile of 16, which share no ground"),
    ],
)
def test_impossible_scales_are_named(scale, message):
    with pytest.raises(DataError, match=message):
        check_scale("views.global_scale", scale, 16)
