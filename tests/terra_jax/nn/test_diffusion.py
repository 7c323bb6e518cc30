import jax
import jax.numpy as jnp
import numpy as np
import pytest

from terra_jax.errors import ConfigError
from terra_jax.nn import diffusion

NOISE = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)


def denoise(x, t):
    """A stand-in for the network that depends on image and timestep and leaves [-1, 1]."""
    return jnp.tanh(x) * 1.7 + 0.2 * jnp.sin(t / 150.0).reshape(-1, 1, 1, 1)


def test_the_noise_schedule_is_the_public_one():
    assert diffusion.ALPHA_BAR.shape == (1000,) and diffusion.ALPHA_BAR.dtype == np.float32
    figures = {0: 0.99989998, 1: 0.99977934, 499: 0.0760287, 998: 4.2133e-9}
    for t, figure in figures.items():
        np.testing.assert_allclose(diffusion.ALPHA_BAR[t], figure, rtol=1e-5)
    assert diffusion.ALPHA_BAR[999] == 0
    assert (np.diff(diffusion.ALPHA_BAR) < 0).all()


def test_timesteps_trail_and_a_remainder_adds_steps():
    assert diffusion.trailing_timesteps(10) == tuple(range(999, 0, -100))
    assert diffusion.trailing_timesteps(50)[:2] == (999, 979) and diffusion.trailing_timesteps(50)[-1] == 19
    assert len(diffusion.trailing_timesteps(30)) == 31 and diffusion.trailing_timesteps(30)[-1] == 9
    assert diffusion.trailing_timesteps(1) == (999,) and len(diffusion.trailing_timesteps(1000)) == 1000


def test_noise_is_added_as_the_schedule_says():
    clean, t = jnp.ones((2, 4, 4, 3)), jnp.asarray([499, 999])
    noisy = diffusion.add_noise(clean, NOISE, t)
    np.testing.assert_allclose(noisy[0], np.sqrt(0.0760287) + np.sqrt(1 - 0.0760287) * NOISE[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(noisy[1], NOISE[1])


def test_training_pairs_have_timesteps_of_their_own():
    clean = jnp.zeros((4000, 2))
    noisy, t = diffusion.noised(clean, jax.random.key(0))
    assert (int(t.min()), int(t.max())) == (0, 999) and abs(float(t.mean()) - 499.5) < 20
    scale = np.sqrt(1 - diffusion.ALPHA_BAR[np.asarray(t)])
    assert abs(np.std(np.asarray(noisy)[:, 0] / scale) - 1) < 0.05


def restated(noise, steps, clip, sampler, draws):
    """The same sampling in NumPy, step by step, from the papers' own quantities."""
    alpha_bar = diffusion.ALPHA_BAR.astype(np.float64)
    x, t = noise.astype(np.float64), 999
    stride = 1000 // steps
    while t >= 0:
        now, before = alpha_bar[t], alpha_bar[t - stride] if t - stride >= 0 else 1.0
        predicted = np.asarray(denoise(jnp.asarray(x, jnp.float32), jnp.full(len(x), t)), np.float64)
        clean = predicted.clip(-1, 1) if clip == "unit" else predicted
        if sampler == "ddim":
            epsilon = (x - now**0.5 * predicted) / (1 - now) ** 0.5
            x = before**0.5 * clean + (1 - before) ** 0.5 * epsilon
        else:
            beta = 1 - now / before
            mean = before**0.5 * beta / (1 - now) * clean + (1 - beta) ** 0.5 * (1 - before) / (1 - now) * x
            x = mean + (beta * (1 - before) / (1 - now)) ** 0.5 * next(draws)
        t -= stride
    return x


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
@pytest.mark.parametrize("clip", diffusion.CLIPS)
@pytest.mark.parametrize("steps", [1, 10, 30])
def test_sampling_equals_its_restatement(steps, clip, sampler):
    key = jax.random.key(3)
    count = len(diffusion.trailing_timesteps(steps))
    draws = iter([np.asarray(jax.random.normal(k, NOISE.shape)) for k in jax.random.split(key, count)])
    options = {"steps": steps, "sampler": sampler, "clip": clip, "key": key}
    image = jax.jit(lambda noise: diffusion.sample(denoise, noise, **options))(NOISE)
    np.testing.assert_allclose(image, restated(NOISE, steps, clip, sampler, draws), atol=2e-4)
    assert clip == "none" or np.abs(image).max() <= 1


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
def test_a_perfect_network_gives_the_clean_image(sampler):
    clean = jnp.linspace(-3, 3, NOISE.size).reshape(NOISE.shape)
    options = {"steps": 7, "sampler": sampler, "key": jax.random.key(0)}
    np.testing.assert_allclose(diffusion.sample(lambda x, t: clean, NOISE, **options), clean, atol=1e-5)


def test_the_network_is_traced_once_whatever_the_number_of_steps():
    traces = []
    jax.make_jaxpr(lambda x: diffusion.sample(lambda x, t: traces.append(t) or x, x, steps=50))(NOISE)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0 of diffusion are impossible; choose 1 to 1000"),
        ({"steps": 1001}, "choose 1 to 1000"),
        ({"steps": 5, "sampler": "plms"}, "unknown sampler 'plms'; choose ddim or ddpm"),
        ({"steps": 5, "clip": "0.5"}, "unknown clip '0.5'; choose none or unit"),
        ({"steps": 5, "sampler": "ddpm"}, "give key="),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        diffusion.sample(denoise, NOISE, **options)
