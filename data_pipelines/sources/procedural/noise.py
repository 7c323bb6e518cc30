"""Random fields: spectral synthesis on a coarse grid, smooth interpolation to pixels, small filters."""

from collections.abc import Sequence

import numpy as np
import scipy.fft


def fractal_fields(
    rng: np.random.Generator, count: int, size: int, beta: float, outer: float, stretch: float = 1.0
) -> np.ndarray:
    """Gaussian random fields with a power-law spectrum, of unit variance.

    The spectrum is (k^2 + 1 / outer^2)^(-beta / 2): white beyond `outer`, fractal below. The fields are made on a
    larger torus and cut, so that their opposite edges do not match.

    Args:
        rng: source of chance.
        count: number of fields, even (real and imaginary parts of one transform are independent fields).
        size: side, nodes.
        beta: slope of the power spectrum; 3 to 4 looks like terrain.
        outer: outer scale, nodes.
        stretch: elongation along the first axis.

    Returns:
        (count, size, size) float32.
    """
    side = scipy.fft.next_fast_len(size + max(4, size // 4))
    return periodic_fields(rng, count, side, beta, outer, stretch)[:, :size, :size]


def periodic_fields(
    rng: np.random.Generator, count: int, side: int, beta: float, outer: float, stretch: float = 1.0
) -> np.ndarray:
    """Fields as `fractal_fields` makes them, whole: opposite edges match.

    Args:
        rng: source of chance.
        count: number of fields, even.
        side: nodes.
        beta, outer, stretch: see `fractal_fields`.

    Returns:
        (count, side, side) float32.
    """
    k = np.fft.fftfreq(side).astype(np.float32) * np.float32(2 * np.pi)
    power = ((k * np.float32(stretch))[:, None] ** 2 + k[None] ** 2 + np.float32(1 / outer**2)) ** np.float32(-beta / 2)
    power[0, 0] = 0
    amplitude = np.sqrt(power * (side**2 / power.sum()), dtype=np.float32) * np.float32(side)
    white = rng.standard_normal((count // 2, side, side, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field = scipy.fft.ifft2(white * amplitude, overwrite_x=True)
    return np.concatenate([field.real, field.imag])


def nodes_for(pixels: int, step: int) -> int:
    """Nodes that `to_pixels` needs for a side of `pixels`."""
    return -(-pixels // step) + 4


def to_pixels(fields: np.ndarray, pixels: int, step: int) -> np.ndarray:
    """Interpolate fields with `step` pixels between nodes to every pixel by a cubic B-spline (smooth, no overshoot).

    Args:
        fields: (..., nodes, nodes) float32, nodes = `nodes_for(pixels, step)`.
        pixels: side of the result.
        step: pixels per node.
    """
    position = (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) / np.float32(step) + 1
    first = position.astype(int)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / np.float32(6)
    matrix = np.zeros((pixels, fields.shape[-1]), np.float32)
    for tap in range(4):
        matrix[np.arange(pixels), first - 1 + tap] += weights[tap]
    return matrix @ fields @ matrix.T


def smooth(images: np.ndarray, kernel: Sequence[float]) -> np.ndarray:
    """Convolve each image of a stack with a short separable kernel, edges repeated.

    One image at a time, because small temporary arrays stay in the cache and cost no page faults.

    Args:
        images: (count, y, x) float32.
        kernel: odd lengths are centred; even ones reach one pixel farther down and right.
    """
    smoothed = np.empty_like(images)
    for image, out in zip(images, smoothed, strict=True):
        _smooth_rows(_smooth_rows(image, kernel).T, kernel, out.T)
    return smoothed


def _smooth_rows(image: np.ndarray, kernel: Sequence[float], out: np.ndarray | None = None) -> np.ndarray:
    """Convolve the first axis of one image."""
    centre = (len(kernel) - 1) // 2
    out = np.multiply(image, np.float32(kernel[centre]), out=out)
    steps = [(i - centre, weight) for i, weight in enumerate(kernel) if i != centre]
    for weight in dict.fromkeys(weight for _, weight in steps):
        part = image * np.float32(weight)
        for step in (step for step, other in steps if other == weight):
            if step > 0:
                out[:-step] += part[step:]
                out[-step:] += part[-1]
            else:
                out[-step:] += part[:step]
                out[:-step] += part[0]
    return out


def central_differences(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Change per pixel downwards and to the right; one-sided at the edges."""
    down, right = np.empty_like(image), np.empty_like(image)
    np.subtract(image[2:], image[:-2], out=down[1:-1])
    np.subtract(image[:, 2:], image[:, :-2], out=right[:, 1:-1])
    down[1:-1] *= np.float32(0.5)
    right[:, 1:-1] *= np.float32(0.5)
    down[0], down[-1] = image[1] - image[0], image[-1] - image[-2]
    right[:, 0], right[:, -1] = image[:, 1] - image[:, 0], image[:, -1] - image[:, -2]
    return down, right


def block_mean(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean of blocks of factor x factor pixels; the sides must be multiples of `factor`."""
    rows = image[..., ::factor, :] + image[..., 1::factor, :]
    for i in range(2, factor):
        rows += image[..., i::factor, :]
    blocks = rows[..., ::factor] + rows[..., 1::factor]
    for j in range(2, factor):
        blocks += rows[..., j::factor]
    blocks *= np.float32(1 / factor**2)
    return blocks
