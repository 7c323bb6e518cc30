import numpy as np
import pytest

from terra_jax.nn.positions import bicubic_interpolation, dino_interpolation, sincos_positions


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


@pytest.mark.parametrize("grid", [8, 14, 15, 24])
def test_without_the_tenth_it_is_pytorch_by_size(grid, torch):
    table = np.random.default_rng(0).normal(size=(1, 1, 16, 16)).astype(np.float32)
    size = (grid, grid)
    expected = torch.nn.functional.interpolate(torch.from_numpy(table), size=size, mode="bicubic", align_corners=False)
    matrix = bicubic_interpolation(16, grid)
    np.testing.assert_allclose(matrix @ table[0, 0] @ matrix.T, expected[0, 0], atol=1e-5)


def test_a_table_of_its_own_size_is_left_as_it_is():
    np.testing.assert_array_equal(bicubic_interpolation(16, 16), np.eye(16))


def test_sines_and_cosines_tell_rows_then_columns():
    table = sincos_positions(16, 768)
    assert table.shape == (16, 16, 768) and table.dtype == np.float32
    frequency = 10_000 ** (-np.arange(192) / 192)
    expected = [f(axis * frequency) for axis in (5, 11) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(table[5, 11], np.concatenate(expected), atol=2e-6)
