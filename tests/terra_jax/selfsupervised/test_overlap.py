import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from terra_jax.nn.resizing import crop_resize
from terra_jax.selfsupervised.overlap import EDGE
from terra_jax.selfsupervised.overlap import overlap as overlap_eagerly

overlap = jax.jit(overlap_eagerly, static_argnums=(2, 5))


def ground(boxes, flips, size):
    """What an encoder that returns the place of every pixel would give: (b, 1, h, w, 2)."""
    axes = []
    for i in (0, 1):
        fraction = (np.arange(size) + 0.5) / size
        fraction = np.where(flips[:, i, None], 1 - fraction, fraction)
        axes.append(boxes[:, i, None] + boxes[:, i + 2, None] * fraction)
    rows = np.broadcast_to(axes[0][:, :, None], (len(boxes), size, size))
    columns = np.broadcast_to(axes[1][:, None, :], rows.shape)
    return np.stack([rows, columns], -1)[:, None]


def views(rng, count, extent=16):
    size = rng.uniform(6, extent, (count, 2))
    corner = rng.random((count, 2)) * (extent - size)
    return np.concatenate([corner, size], 1), rng.random((count, 2)) < 0.5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), sizes=st.sampled_from([(8, 8), (8, 4), (4, 8)]))
def test_pixels_meet_at_the_same_place(seed, sizes):
    rng = np.random.default_rng(seed)
    (boxes, flips), (others, mirrored) = views(rng, 4), views(rng, 4)
    match = overlap(boxes, flips, (sizes[0],) * 2, others, mirrored, (sizes[1],) * 2)
    sampled = match.sample(jnp.asarray(ground(boxes, flips, sizes[0])))
    here = ground(others, mirrored, sizes[1])
    error = np.abs(sampled - here).max((1, -1))
    inside = np.asarray(match.inside)
    pixel = boxes[:, 2:].max(1)[:, None, None] / sizes[0]  # of the looked-up view, whose rim counts as inside
    assert (error < EDGE * pixel + 1e-4)[inside].all()
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    within = (here > low[:, None, None, None]) & (here < high[:, None, None, None])
    assert (within.all(-1)[:, 0] | ~inside).all()
    margin = boxes[:, 2:] / sizes[0]  # a pixel of the looked-up view: all that is deeper inside must be found
    deep = (here > (low + margin)[:, None, None, None]) & (here < (high - margin)[:, None, None, None])
    assert inside[deep.all(-1)[:, 0]].all()


def test_wrong_bookkeeping_is_seen():
    rng = np.random.default_rng(0)
    (boxes, flips), (others, mirrored) = views(rng, 8), views(rng, 8)
    here = ground(others, mirrored, 8)
    unflipped = overlap(boxes, ~flips, (8, 8), others, mirrored, (8, 8))
    misplaced = overlap(boxes, flips, (8, 8), boxes, mirrored, (8, 8))
    for wrong in (unflipped, misplaced):
        error = np.abs(wrong.sample(jnp.asarray(ground(boxes, flips, 8))) - here).max((1, -1))
        assert error[np.asarray(wrong.inside)].max() > 1


def test_the_same_view_is_looked_up_as_it_is():
    boxes, flips = np.array([[1.0, 2, 7, 9]]), np.array([[True, False]])
    maps = np.random.default_rng(0).normal(size=(1, 2, 4, 6, 3)).astype(np.float32)
    match = overlap(boxes, flips, (4, 6), boxes, flips, (4, 6))
    np.testing.assert_allclose(match.sample(jnp.asarray(maps)), maps, atol=1e-4)
    assert np.asarray(match.inside).all()


def test_views_apart_share_nothing():
    boxes, others = np.array([[0.0, 0, 4, 4]]), np.array([[8.0, 8, 4, 4]])
    none = np.zeros((1, 2), bool)
    assert not np.asarray(overlap(boxes, none, (4, 4), others, none, (4, 4)).inside).any()


def test_agrees_with_how_views_are_cut():
    """A smooth picture, cut by the device's own crops: both views must show the same thing at the same place."""
    rng = np.random.default_rng(4)
    (boxes, flips), (others, mirrored) = (
        tuple(jnp.asarray(a, dtype) for a, dtype in zip(views(rng, 1, 64), (jnp.float32, bool), strict=True))
        for _ in range(2)
    )
    y, x = np.mgrid[:64, :64] + 0.5
    tile = jnp.asarray(np.stack([y, x, y * x / 64])[None], jnp.float32)
    first, second = (
        crop_resize({10: tile}, box[None], 16, (0, 1, 2), flip[None])[0][:, None]
        for box, flip in ((boxes, flips), (others, mirrored))
    )
    match = overlap(boxes, flips, (16, 16), others, mirrored, (16, 16))
    error = np.abs(np.asarray(match.sample(first) - second)).max((1, -1))[0]
    interior = np.asarray(match.inside)[0].copy()
    assert interior.any()
    assert np.median(error[interior]) < 0.2
