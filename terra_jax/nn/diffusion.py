"""Denoising diffusion that predicts the clean image: noise schedule, training pairs, DDIM and DDPM as one scan.

1000 steps, linear betas, rescaled so that the last step holds no signal (Lin et al. 2023, algorithm 1).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from terra_jax.errors import ConfigError

STEPS = 1000
SAMPLERS = ("ddim", "ddpm")
CLIPS = ("none", "unit")
"""Bounds of the predicted clean image while sampling: none, or [-1, 1]."""

Denoise = Callable[[Float[Array, "b ..."], Int[Array, " b"]], Float[Array, "b ..."]]
"""(noisy image, timestep) -> estimate of the clean image."""


def zero_terminal_snr(first: float = 1e-4, last: float = 0.02, steps: int = STEPS) -> Float[np.ndarray, " t"]:
    """Share of signal power left after each step, for betas that grow linearly from `first` to `last`.

    The square roots are shifted to end at 0 and scaled to begin where they began.
    """
    signal = np.sqrt(np.cumprod(1 - np.linspace(first, last, steps)))
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return np.square(signal).astype(np.float32)


ALPHA_BAR = zero_terminal_snr()
"""Share of signal power at timesteps 0..999."""


def add_noise(clean: Float[Array, "b ..."], noise: Float[Array, "b ..."], t: Int[Array, " b"]) -> Float[Array, "b ..."]:
    """The noisy image at timestep t: sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise."""
    alpha_bar = jnp.asarray(ALPHA_BAR)[t].reshape(-1, *[1] * (clean.ndim - 1))
    return jnp.sqrt(alpha_bar) * clean + jnp.sqrt(1 - alpha_bar) * noise


def noised(clean: Float[Array, "b ..."], key: Key[Array, ""]) -> tuple[Float[Array, "b ..."], Int[Array, " b"]]:
    """A training pair's input: each image at a timestep of its own, drawn uniformly from 0..999, and the timesteps."""
    noise_key, time_key = jax.random.split(key)
    t = jax.random.randint(time_key, clean.shape[:1], 0, STEPS)
    return add_noise(clean, jax.random.normal(noise_key, clean.shape, clean.dtype), t), t


def trailing_timesteps(steps: int) -> tuple[int, ...]:
    """Timesteps from 999 down in strides of floor(1000 / steps), as the public sampler takes them.

    Where the stride leaves a remainder there are more of them than asked for: 31 for 30.

    Raises:
        ConfigError: if the number is not 1..1000.
    """
    if not 1 <= steps <= STEPS:
        raise ConfigError(f"steps={steps} of diffusion are impossible; choose 1 to {STEPS}")
    return tuple(range(STEPS - 1, -1, -(STEPS // steps)))


def sample(
    denoise: Denoise,
    noise: Float[Array, "b ..."],
    *,
    steps: int,
    sampler: str = "ddim",
    clip: str = "none",
    key: Key[Array, ""] | None = None,
) -> Float[Array, "b ..."]:
    """From noise to an image.

    Args:
        denoise: predicts the clean image.
        noise: standard normal; the image's shape.
        steps: number of steps asked for (see `trailing_timesteps`).
        sampler: "ddim" (Song et al. 2021, eta 0: a function of the noise) or "ddpm" (Ho et al. 2020: draws more noise).
        clip: a word of CLIPS. The direction of a DDIM step follows from the prediction before it is clipped.
        key: randomness of "ddpm".

    Raises:
        ConfigError: unknown sampler or clip, an impossible number of steps, or no key for "ddpm".
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"unknown sampler {sampler!r}; choose {' or '.join(SAMPLERS)}")
    if clip not in CLIPS:
        raise ConfigError(f"unknown clip {clip!r}; choose {' or '.join(CLIPS)}")
    timesteps = np.asarray(trailing_timesteps(steps), np.int32)
    now = ALPHA_BAR[timesteps]
    before = np.append(now[1:], np.float32(1))
    keys = None
    if sampler == "ddpm":
        if key is None:
            raise ConfigError('the sampler "ddpm" draws noise at every step; give key=jax.random.key(SEED)')
        keys = jax.random.split(key, len(timesteps))

    def body(x, step):
        t, alpha_bar, previous, step_key = step
        predicted = denoise(x, jnp.full(x.shape[:1], t))
        clean = jnp.clip(predicted, -1, 1) if clip == "unit" else predicted
        if sampler == "ddim":
            direction = (x - jnp.sqrt(alpha_bar) * predicted) / jnp.sqrt(1 - alpha_bar)
            return jnp.sqrt(previous) * clean + jnp.sqrt(1 - previous) * direction, None
        alpha = alpha_bar / previous  # of the whole stride
        mean = (jnp.sqrt(previous) * (1 - alpha) * clean + jnp.sqrt(alpha) * (1 - previous) * x) / (1 - alpha_bar)
        deviation = jnp.sqrt((1 - previous) / (1 - alpha_bar) * (1 - alpha))
        return mean + deviation * jax.random.normal(step_key, x.shape, x.dtype), None

    return jax.lax.scan(body, noise, (timesteps, now, before, keys))[0]
