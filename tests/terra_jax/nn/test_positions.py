import numpy as np
import pytest

from terra_jax.nn.positions import dino_interpolation


@pytest.mark.parametrize("grid", [6, 7, 14, 20])
def test_rows_sum_to_one(grid):
    np.testing.assert_allclose(dino_interpolation(14, grid).sum(1), 1, atol=1e-6)


def test_the_tenth_stays_in_the_coordinates():
    # even a grid of the same size is not the identity: DINO divides by (n + 0.1) / n
    assert abs(dino_interpolation(14, 14) - np.eye(14)).max() > 1e-3


@pytest.mark.parametrize("grid", [6, 7, 20])
def test_equals_pytorch_bicubic(grid, torch):
    table = np.random.default_rng(0).normal(size=(1, 1, 14, 1)).astype(np.float32).repeat(14, axis=3)
    scale = (grid + 0.1) / 14
    expected = torch.nn.functional.interpolate(torch.from_numpy(table), scale_factor=(scale, scale), mode="bicubic")
    np.testing.assert_allclose(dino_interpolation(14, grid) @ table[0, 0, :, 0], expected[0, 0, :, 0], atol=1e-6)
