"""How well images come back from tokens, and how much of a codebook is in use.

Errors are taken image by image and band by band, in the images' own unit; figures are means over images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data_pipelines.modalities import Unit

PEAKS = {Unit.DN10000: 10_000.0, Unit.DB: 30.0, Unit.METRE: 1000.0, Unit.INDEX: 2.0}
"""Unit -> the span of values that PSNR and SSIM measure against."""

_WINDOW, _SIGMA = 11, 1.5  # of SSIM


def image_errors(
    truth: Float[Array, "b h w c"], estimate: Float[Array, "b h w c"], peak: float
) -> dict[str, Float[Array, "b c"]]:
    """Mean absolute error, mean squared error and structural similarity of each band of each image."""
    difference = estimate - truth
    return {
        "mae": jnp.abs(difference).mean((1, 2)),
        "mse": jnp.square(difference).mean((1, 2)),
        "ssim": structural_similarity(truth, estimate, peak),
    }


def structural_similarity(
    truth: Float[Array, "b h w c"], estimate: Float[Array, "b h w c"], peak: float
) -> Float[Array, "b c"]:
    """SSIM with a Gaussian window of 11 pixels, over all places where the window fits (Wang et al. 2004).

    Args:
        truth, estimate: images of at least 11 pixels per side.
        peak: span of values L of the stabilising constants (0.01 L)^2 and (0.03 L)^2.
    """
    # Moments of large values (elevation) would lose their digits: both images are shifted alike.
    shift = truth.mean((1, 2), keepdims=True)
    x, y = truth - shift, estimate - shift
    mean_x, mean_y, xx, yy, xy = (_blurred(image) for image in (x, y, x * x, y * y, x * y))
    var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    mean_x, mean_y = mean_x + shift, mean_y + shift
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (var_x + var_y + c2)).mean((1, 2))


def _blurred(images: Float[Array, "b h w c"]) -> Float[Array, "b p q c"]:
    """Gaussian means over all whole windows."""
    rows, columns = (_window_matrix(images.shape[axis]) for axis in (1, 2))
    return jnp.einsum("ph,qw,bhwc->bpqc", rows, columns, images, precision="highest")


def _window_matrix(extent: int) -> Float[np.ndarray, "p h"]:
    if extent < _WINDOW:
        raise ValueError(f"SSIM needs images of at least {_WINDOW} pixels per side, not {extent}")
    offset = np.arange(extent)[None] - np.arange(extent - _WINDOW + 1)[:, None]
    weight = np.exp(-(((offset - _WINDOW // 2) / _SIGMA) ** 2) / 2) * ((offset >= 0) & (offset < _WINDOW))
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def band_figures(errors: Mapping[str, Float[np.ndarray, "n c"]], peak: float) -> dict[str, list[float]]:
    """Figures of each band from the `image_errors` of all images.

    Returns:
        "mae" and "rmse" in the images' unit, "psnr" in dB (of the mean squared error over all images), "ssim".
    """
    mse = np.asarray(errors["mse"], np.float64).mean(0)
    return {
        "mae": np.asarray(errors["mae"], np.float64).mean(0).tolist(),
        "rmse": np.sqrt(mse).tolist(),
        "psnr": (20 * np.log10(peak) - 10 * np.log10(np.maximum(mse, 1e-12 * peak**2))).tolist(),
        "ssim": np.asarray(errors["ssim"], np.float64).mean(0).tolist(),
    }


def image_means(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The trivial reconstruction: each band of an image by its mean."""
    return jnp.broadcast_to(images.mean((1, 2), keepdims=True), images.shape)


def confusion(truth: Int[Array, "b h w"], estimate: Int[Array, "b h w"], classes: int) -> Int[Array, "b t e"]:
    """Pixels of each image by true and estimated class."""
    # products of one-hot vectors: no scatter, which accelerators serialise
    one_hot = [jnp.asarray(ids[..., None] == jnp.arange(classes), jnp.float32) for ids in (truth, estimate)]
    return jnp.einsum("bhwt,bhwe->bte", *one_hot).astype(jnp.int32)


def class_figures(counts: Int[np.ndarray, "t e"], names: Sequence[str]) -> dict[str, Any]:
    """Figures of class maps.

    Args:
        counts: pixels by true and estimated class.
        names: of the classes.

    Returns:
        "accuracy": share of pixels; "iou": class -> intersection over union, of the classes that truly occur;
        "miou": its mean.
    """
    counts = np.asarray(counts, np.float64)
    hits, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    iou = {name: float(hits[i] / union[i]) for i, name in enumerate(names) if counts[i].sum()}
    return {"accuracy": float(hits.sum() / counts.sum()), "miou": float(np.mean(list(iou.values()))), "iou": iou}


def majority_class(counts: Int[np.ndarray, "n t e"]) -> Int[np.ndarray, "t e"]:
    """Confusion of the constant map of the commonest true class, from the `confusion` of all images."""
    return _constant(np.asarray(counts).sum((0, 2)))


def majority_of_images(counts: Int[np.ndarray, "n t e"]) -> Int[np.ndarray, "t e"]:
    """Confusion of maps that give every image its own commonest true class."""
    return sum(_constant(truth) for truth in np.asarray(counts).sum(2))  # type: ignore[return-value]


def _constant(truth: Int[np.ndarray, " t"]) -> Int[np.ndarray, "t e"]:
    counts = np.zeros((len(truth), len(truth)), np.int64)
    counts[:, truth.argmax()] = truth
    return counts


def codebook_figures(ids: Int[np.ndarray, "*n"], size: int) -> dict[str, float]:
    """Use of a codebook.

    Args:
        ids: tokens of many images.
        size: number of codes.

    Returns:
        "tokens": how many there are; "used", "dead": number of codes that occur and that do not; "share" of codes that
        occur; "perplexity": exp of the entropy, the number of codes if all were used alike.
    """
    counts = np.bincount(np.ravel(ids), minlength=size)
    p = counts[counts > 0] / counts.sum()
    used = int((counts > 0).sum())
    return {
        "tokens": int(counts.sum()),
        "used": used,
        "dead": size - used,
        "share": used / size,
        "perplexity": float(np.exp(-(p * np.log(p)).sum())),
    }
