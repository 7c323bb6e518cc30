import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from terra_jax.evaluation import reconstruction as measures


def images(seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(offset, 20, (2, 24, 20, 3)).astype(np.float32)
    return truth, truth + rng.normal(1, 5, truth.shape).astype(np.float32)


def ssim_by_hand(x, y, peak):
    """Of single bands; scipy's Gaussian, cut off after five pixels, where it does not reach over the border."""
    blur = lambda image: gaussian_filter(image.astype(np.float64), 1.5, truncate=3.4)[5:-5, 5:-5]  # noqa: E731
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))


@pytest.mark.parametrize("offset", [0.0, 2000.0])
def test_errors_agree_with_their_definitions(offset):
    truth, estimate = images(offset=offset)
    errors = measures.image_errors(truth, estimate, 100.0)
    difference = estimate - truth
    np.testing.assert_allclose(errors["mae"], np.abs(difference).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(errors["mse"], np.square(difference).mean((1, 2)), rtol=1e-5)
    by_hand = [[ssim_by_hand(truth[i, ..., c].astype(float), estimate[i, ..., c].astype(float), 100.0)
                for c in range(3)] for i in range(2)]  # fmt: skip
    np.testing.assert_allclose(errors["ssim"], by_hand, atol=2e-4)


def test_perfect_and_trivial_reconstructions():
    truth, _ = images()
    perfect = measures.image_errors(truth, truth, 100.0)
    np.testing.assert_allclose(perfect["ssim"], 1, atol=1e-5)
    assert not perfect["mae"].any()
    trivial = measures.image_errors(truth, measures.image_means(truth), 100.0)
    np.testing.assert_allclose(trivial["mse"], truth.var((1, 2)), rtol=1e-4)
    assert (trivial["ssim"] < 0.2).all()


def test_band_figures():
    errors = {
        "mae": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "mse": np.array([[1.0, 0.0], [3.0, 0.0]]),
        "ssim": np.ones((2, 2)),
    }
    figures = measures.band_figures(errors, 100.0)
    assert figures["mae"] == [2.0, 3.0] and figures["rmse"] == pytest.approx([2**0.5, 0])
    assert figures["psnr"] == pytest.approx([40 - 10 * np.log10(2), 120])  # a perfect band stays finite


def test_figures_of_classes_by_hand():
    truth = np.array([[[0, 0, 1, 1]], [[2, 2, 2, 1]]])
    estimate = np.array([[[0, 1, 1, 1]], [[2, 2, 3, 1]]])
    counts = np.asarray(measures.confusion(truth, estimate, 4))
    assert counts.shape == (2, 4, 4) and counts.sum() == 8
    figures = measures.class_figures(counts.sum(0), "abcd")
    assert figures["accuracy"] == 6 / 8
    assert figures["iou"] == {"a": 1 / 2, "b": 3 / 4, "c": 2 / 3}  # d is estimated but does not occur
    assert figures["miou"] == pytest.approx((1 / 2 + 3 / 4 + 2 / 3) / 3)
    assert measures.class_figures(measures.majority_class(counts), "abcd")["accuracy"] == 3 / 8
    assert measures.class_figures(measures.majority_of_images(counts), "abcd")["accuracy"] == 5 / 8


@settings(max_examples=25, deadline=None)
@given(ids=st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_codebook_figures(ids):
    figures = measures.codebook_figures(np.array(ids), 10)
    assert figures["tokens"] == len(ids) and figures["used"] == len(set(ids)) == 10 - figures["dead"]
    assert 1 - 1e-9 <= figures["perplexity"] <= figures["used"] + 1e-9
    assert measures.codebook_figures(np.arange(10), 10)["perplexity"] == pytest.approx(10)


def test_images_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="at least 11"):
        measures.structural_similarity(np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)), 1.0)
