import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.modalities import modality
from data_pipelines.recipes.skysense import BANDS, SkySenseRecipe, SkySenseTileRecipe
from data_pipelines.regions import RegionTable
from data_pipelines.sources import open_source
from terra_jax.skysense.views import cut_views, whole_tiles

SHIPPED = {"S2L2A": 4, "S1GRD": 3}


@pytest.fixture(scope="module")
def samples():
    earth = open_source("procedural_series", samples=3, tile=16, frames=SHIPPED)
    return [earth[i] for i in range(3)]


@pytest.fixture(scope="module")
def regions(samples):
    return RegionTable.of(np.array([s.lon for s in samples]), np.array([s.lat for s in samples]), 8)


def batch_of(recipe, samples):
    return jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *(recipe(s, i) for i, s in enumerate(samples)))


def raw(name, image):
    mean, std = modality(name).statistics_for("skysense", BANDS[name])
    return np.asarray(image) * std + mean


def test_a_view_is_the_box_of_its_frames(samples, regions):
    """Without resizing: views as large as their boxes hold the very pixels, mirrored as told."""
    recipe = SkySenseRecipe(16, {"S2L2A": 2, "S1GRD": 2}, SHIPPED, regions, global_scale=(1.0, 1.0))
    batch = batch_of(recipe, samples)
    images, days, present = jax.jit(cut_views, static_argnums=(1, 2))(batch, (0, 1), 16)
    assert images["HR"].shape == (6, 512, 512, 3) and images["S2L2A"].shape == (6, 2, 16, 16, 10)
    for i, sample in enumerate(samples):
        for view in range(2):
            flip = [slice(None, None, -1 if on else 1) for on in np.asarray(batch["flips"][i, view])]
            row = 2 * i + view
            picture = sample.rasters["HR"].grids[10].transpose(1, 2, 0)[flip[0], flip[1]]
            np.testing.assert_allclose(raw("HR", images["HR"][row]), picture, atol=0.01)
            for t, frame in enumerate(np.asarray(batch["S2L2A/frames"][i, view])):
                grids = sample.rasters["S2L2A"].grids
                fine, coarse = grids[10][frame], grids[20][frame].repeat(2, 1).repeat(2, 2)
                bands = {**dict(zip(("B02", "B03", "B04", "B08"), fine, strict=True)),
                         **dict(zip(("B05", "B06", "B07", "B8A", "B11", "B12"), coarse, strict=True))}  # fmt: skip
                expected = np.stack([bands[name] for name in BANDS["S2L2A"]], axis=-1)[flip[0], flip[1]]
                np.testing.assert_allclose(raw("S2L2A", images["S2L2A"][row, t]), expected, rtol=1e-4, atol=0.5)
            for t, frame in enumerate(np.asarray(batch["S1GRD/frames"][i, view])):
                expected = sample.rasters["S1GRD"].grids[10][frame].transpose(1, 2, 0)[flip[0], flip[1]]
                np.testing.assert_allclose(raw("S1GRD", images["S1GRD"][row, t]), expected, atol=0.02)
            assert np.array_equal(days["S2L2A"][row], batch["S2L2A/days"][i, view])
            assert np.array_equal(present["S1GRD"][row], batch["S1GRD/present"][i, view])
    assert present["HR"].shape == (6, 1) and present["HR"].all()


def test_all_modalities_of_a_view_lie_on_each_other(samples, regions):
    """A ramp over the ground reads the same through every modality, whatever the box, the flip and the size."""
    recipe = SkySenseRecipe(16, {"S2L2A": 1, "S1GRD": 1}, SHIPPED, regions, local_views=2, local_scale=(0.2, 0.4))
    batch = batch_of(recipe, samples)
    fine, coarse = (np.arange(512) + 0.5) / 32, np.arange(16) + 0.5
    batch["HR"] = jnp.broadcast_to(fine[:, None] * 10, (3, 3, 512, 512))
    batch["S1GRD/10"] = jnp.broadcast_to(coarse[:, None], (3, 3, 2, 16, 16))
    batch["S2L2A/10"] = jnp.broadcast_to(coarse[:, None] * 100, (3, 4, 4, 16, 16))
    images, _, _ = cut_views(batch, (2, 3), 4)
    seen = {
        "HR": raw("HR", images["HR"]).reshape(6, 4, 32, 4, 32, 3).mean((2, 4))[..., 0] / 10,
        "S2L2A": raw("S2L2A", images["S2L2A"])[:, 0, ..., 0] / 100,
        "S1GRD": raw("S1GRD", images["S1GRD"])[:, 0, ..., 0],
    }
    boxes, flips = (np.asarray(batch[name][:, 2:]).reshape(6, -1) for name in ("boxes", "flips"))
    rows = boxes[:, :1] + boxes[:, 2:3] * (np.arange(4) + 0.5) / 4
    rows = np.where(flips[:, :1], rows[:, ::-1], rows)
    for name, image in seen.items():
        inner = image[:, 1:3]  # the antialiasing kernel is one-sided at the edges
        np.testing.assert_allclose(inner, np.broadcast_to(rows[:, 1:3, None], inner.shape), atol=0.2, err_msg=name)


def test_whole_tiles_are_not_resampled(samples, regions):
    batch = batch_of(SkySenseTileRecipe(16, SHIPPED, regions), samples)
    images, days, present = jax.jit(whole_tiles)(batch)
    assert images["HR"].shape == (3, 512, 512, 3)
    assert images["S2L2A"].shape == (3, 4, 16, 16, 10) and images["S1GRD"].shape == (3, 3, 16, 16, 2)
    expected = samples[0].rasters["S1GRD"].grids[10].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(raw("S1GRD", images["S1GRD"][0])[: len(expected)], expected, atol=0.02)
    assert days["S2L2A"].shape == present["S2L2A"].shape == (3, 4)


def test_modalities_may_be_absent(samples, regions):
    recipe = SkySenseRecipe(16, {"S1GRD": 2}, SHIPPED, regions, high_resolution=False)
    images, days, present = cut_views(batch_of(recipe, samples), (0,), 6)
    assert set(images) == set(days) == set(present) == {"S1GRD"} and images["S1GRD"].shape == (3, 2, 6, 6, 2)
