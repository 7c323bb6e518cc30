import jax
import jax.numpy as jnp
import numpy as np
import pytest

from terra_jax.evaluation.features import extract_features


def batches(samples, size):
    labels = np.arange(len(samples))
    return ({"x": samples[i : i + size], "label": labels[i : i + size]} for i in range(0, len(samples), size))


@pytest.mark.parametrize("count", [1, 4, 10, 12])
def test_every_sample_once_in_order_and_one_compile(count):
    samples = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    traces = []

    @jax.jit
    def function(batch):
        traces.append(batch["x"].shape)
        return {"double": batch["x"] * 2, "label": batch["label"]}

    features = extract_features(function, batches(samples, 4), 4)
    np.testing.assert_array_equal(features["double"], samples * 2)
    np.testing.assert_array_equal(features["label"], np.arange(count))
    assert isinstance(features["double"], np.ndarray)
    assert traces == [(4, 3)]


def test_padding_does_not_reach_the_callers_batch():
    batch = {"x": np.arange(3.0)}
    extract_features(lambda b: jnp.sin(b["x"]), [batch], 4)
    assert batch["x"].shape == (3,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no batch"),
        ([{"x": np.zeros((5, 2))}], "has 5 samples"),
        ([{"x": np.zeros((0, 2))}], "has 0 samples"),
        ([{"x": np.zeros((3, 2)), "y": np.zeros(2)}], "equal first axes"),
    ],
)
def test_refuses_batches_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        extract_features(lambda batch: batch["x"], given, 4)
