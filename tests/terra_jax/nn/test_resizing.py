import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.modalities import modality
from terra_jax.nn.resizing import band_order, crop_resize, crop_resize_fine, on_coarse_grid, resampling_matrix


def _native(rng, tile, bands=(4, 6, 2)):
    sides = {10: tile, 20: -(-tile // 2), 60: -(-tile // 6)}
    return {g: rng.normal(size=(2, n, s, s)).astype(np.float32) for n, (g, s) in zip(bands, sides.items(), strict=True)}


def _upsampled(grids, tile, phase=0):
    parts = []
    for gsd in sorted(grids):
        full = grids[gsd].repeat(gsd // 10, axis=-2).repeat(gsd // 10, axis=-1)
        offset = phase % (gsd // 10)
        parts.append(full[..., offset : offset + tile, offset : offset + tile])
    return {10: np.concatenate(parts, axis=1)}


def test_a_whole_tile_at_its_own_size_is_copied():
    tile = np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32)
    views = crop_resize({10: tile}, jnp.array([[[0, 0, 12, 12]]], jnp.float32), 12, (2, 0, 1))
    np.testing.assert_allclose(views[0, 0], tile[0, [2, 0, 1]].transpose(1, 2, 0), atol=1e-6)


def test_class_ids_are_taken_from_the_nearest_pixel():
    classes = np.random.default_rng(3).integers(0, 10, (1, 1, 24, 24)).astype(np.uint8)
    boxes = jnp.array([[[3, 2, 17, 20]]], jnp.float32)
    views = crop_resize({10: classes}, boxes, 16, (0,), jnp.array([[[False, True]]]), nearest=True)
    picture = Image.fromarray(classes[0, 0]).resize((16, 16), Image.Resampling.NEAREST, box=(2, 3, 22, 20))
    np.testing.assert_array_equal(views[0, 0, :, :, 0], np.asarray(picture)[:, ::-1])


@settings(max_examples=15, deadline=None)
@given(
    top=st.integers(0, 10), left=st.integers(0, 10), height=st.integers(4, 20), width=st.integers(4, 20),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_native_grids_give_the_same_as_upsampled_tiles(top, left, height, width, seed):
    grids = _native(np.random.default_rng(seed), 30)
    boxes = jnp.tile(jnp.array([top, left, height, width], jnp.float32), (2, 1, 1))
    order = tuple(range(12))
    native = crop_resize(grids, boxes, 8, order)
    np.testing.assert_allclose(native, crop_resize(_upsampled(grids, 30), boxes, 8, order), atol=2e-5)


@pytest.mark.parametrize("phase", [1, 5])
def test_tiles_off_the_lattice_carry_their_phase(phase):
    grids = _native(np.random.default_rng(1), 30)
    grids[10] = grids[10][..., :24, :24]  # a window of 24 px that starts `phase` px into its first coarse pixel
    boxes = jnp.tile(jnp.array([2, 3, 17, 15], jnp.float32), (2, 1, 1))
    expected = _upsampled({g: v for g, v in grids.items() if g > 10}, 24, phase)[10]
    expected = crop_resize({10: np.concatenate([grids[10], expected], 1)}, boxes, 8, tuple(range(12)))
    result = crop_resize(grids, boxes, 8, tuple(range(12)), phase=jnp.full((2, 2), phase))
    np.testing.assert_allclose(result, expected, atol=2e-5)


def test_flips_mirror_the_view():
    tile = np.random.default_rng(2).normal(size=(1, 2, 16, 16)).astype(np.float32)
    boxes = jnp.tile(jnp.array([1, 2, 12, 9], jnp.float32), (1, 3, 1))
    flips = jnp.array([[[False, False], [True, False], [False, True]]])
    plain, vertical, horizontal = crop_resize({10: tile}, boxes, 6, (0, 1), flips)[0]
    np.testing.assert_allclose(vertical, plain[::-1], atol=1e-6)
    np.testing.assert_allclose(horizontal, plain[:, ::-1], atol=1e-6)


def test_bicubic_with_antialiasing_equals_pillow():
    values = np.random.default_rng(3).normal(size=(40, 40)).astype(np.float32)
    for top, left, height, width, size in ((0, 0, 40, 40, 16), (5, 3, 20, 31, 24), (7, 7, 9, 9, 16)):
        crop = Image.fromarray(values[top : top + height, left : left + width])
        expected = np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))
        boxes = jnp.array([[[top, left, height, width]]], jnp.float32)
        result = crop_resize({10: values[None, None]}, boxes, size, (0,))[0, 0, ..., 0]
        np.testing.assert_allclose(result, expected, atol=2e-5)


def test_pixels_outside_the_box_have_no_weight():
    matrix = np.asarray(resampling_matrix(jnp.array(4.0), jnp.array(6.0), 20, 8))
    assert (matrix[:, :4] == 0).all() and (matrix[:, 10:] == 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


def test_a_partial_last_coarse_pixel_is_covered():
    matrix = resampling_matrix(jnp.zeros((1, 1)), jnp.full((1, 1), 8.0), 8, 8)
    folded = on_coarse_grid(matrix, 6, 2)
    np.testing.assert_allclose(folded.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(folded[0, 0, 7], [0, 1], atol=1e-6)


def test_band_order_restores_the_table():
    table = modality("S2L2A")
    order = band_order("S2L2A", (10, 20, 60), table.band_names)
    laid = [table.bands[i].name for index in table.grids.values() for i in index]
    assert tuple(laid[i] for i in order) == table.band_names
    without = tuple(name for name in modality("S2L1C").band_names if name != "B10")
    assert sorted(band_order("S2L1C", (10, 20, 60), without)) == list(range(12))


@pytest.mark.parametrize(("size", "mirrored"), [(64, True), (20, False)])
def test_fine_images_are_cut_as_others_are(size, mirrored):
    """Boxes at the edges, the whole image, enlarged and reduced, mirrored or not, of an oblong image."""
    rng = np.random.default_rng(size)
    image = jnp.asarray(rng.integers(0, 255, (2, 3, 200, 160), dtype=np.uint8))
    places = [
        [0, 0, 200, 160],
        [160, 128, 40, 32],
        [7, 3, 64, 90],
        [100, 0, 100, 160],
        [0, 96, 32, 64],
        [33, 21, 20, 20],
    ]
    boxes = jnp.asarray(places, jnp.float32).reshape(2, 3, 4)
    flips = jnp.asarray(rng.random((2, 3, 2)) < 0.5) if mirrored else None
    expected = jax.jit(lambda image, boxes: crop_resize({10: image}, boxes, size, (0, 1, 2), flips))(image, boxes)
    found = jax.jit(lambda image, boxes: crop_resize_fine(image, boxes, size, flips))(image, boxes)
    np.testing.assert_allclose(found, expected, atol=2e-3)
