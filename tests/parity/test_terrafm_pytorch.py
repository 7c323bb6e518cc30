"""Exported weights load in a PyTorch class with the public keys, strictly, and compute the same."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

import terra_jax
from terra_jax.terrafm.variants import VARIANTS

MODALITY = {"s1": "S1RTC", "s2_l1c": "S2L1C", "s2_l2a": "S2L2A"}


@pytest.fixture(scope="module")
def reference(torch):
    return importlib.import_module("tools.pytorch_terrafm")


@pytest.fixture(scope="module")
def pair(reference, torch, tmp_path_factory):
    """A random nano model and the PyTorch class that holds its exported weights."""
    path = tmp_path_factory.mktemp("export") / "nano.pt"
    model = terra_jax.build("terrafm_nano", seed=3)
    terra_jax.export_torch(model, path)
    v = VARIANTS["terrafm_nano"]
    public = reference.TerraFM(reference.Size(v.width, v.depth, v.heads, v.patch, v.image)).eval()
    public.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return model, public


@pytest.mark.parametrize("stem", MODALITY)
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (40, 72)])
def test_both_compute_the_same(pair, torch, stem, size):
    model, public = pair
    channels = 2 if stem == "s1" else 12
    image = np.random.default_rng(0).normal(size=(2, *size, channels)).astype(np.float32)
    with torch.no_grad():
        expected = public(torch.from_numpy(image.transpose(0, 3, 1, 2)), stem).numpy()
    result = model({MODALITY[stem]: jnp.asarray(image)}, normalised=True)
    np.testing.assert_allclose(result, expected, atol=3e-5 * np.sqrt(np.mean(expected**2)))


def test_weights_of_the_pytorch_class_come_back_bit_identical(pair, torch, tmp_path):
    _, public = pair
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    torch.save(public.state_dict(), first)
    terra_jax.export_torch(terra_jax.load("terrafm_nano", first), second)
    again = torch.load(second, weights_only=True)
    assert list(again) == list(public.state_dict())
    assert all(torch.equal(again[key], value) for key, value in public.state_dict().items())
