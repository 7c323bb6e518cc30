"""Exported tokenizers load in PyTorch classes with the public keys, strictly, and compute the same."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import quick_compilation
from random_tokenizer import random_tokenizer

import terra_jax
from terra_jax.terramind.tokenizer import Tokenizer

KINDS = ["s2l2a", "lulc"]
encode = jax.jit(lambda model, image: model.latents(image, normalised=True))
denoise, logits = jax.jit(Tokenizer.denoise), jax.jit(Tokenizer.logits)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def reference(torch):
    return importlib.import_module("tools.pytorch_terramind_tokenizer")


@pytest.fixture(scope="module", params=KINDS)
def pair(request, reference, torch, tmp_path_factory):
    """A random nano tokenizer and the PyTorch class that holds its exported weights."""
    path = tmp_path_factory.mktemp("export") / "nano.pt"
    model = random_tokenizer(f"terramind_v1_tokenizer_{request.param}_nano")
    terra_jax.export_torch(model, path)
    public = reference.Tokenizer(f"{request.param}_nano").eval()
    public.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return model, public


def images(model, size):
    """What the network sees: channels last, and channels first for PyTorch."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, *size, model.variant.channels)).astype(np.float32)
    if model.variant.kind == "vit":
        image = np.eye(10, dtype=np.float32)[image.argmax(-1)]
    return image, np.moveaxis(image, -1, 1)


def assert_equal(ours, theirs):
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    np.testing.assert_allclose(ours, theirs, atol=3e-5 * np.sqrt(np.mean(theirs**2)))


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_both_compute_the_same(pair, torch, size):
    model, public = pair
    image, planar = images(model, size)
    with torch.no_grad():
        assert_equal(encode(model, image), public.latents(torch.from_numpy(planar)))
        expected = public.tokenize(torch.from_numpy(planar))
        ids = model.tokenize(image, normalised=True)
        assert np.mean(np.asarray(ids) != expected.numpy()) < 0.01  # latents on a boundary may fall to either side
        codes = public.codes(expected)
        ours = model.codes(jnp.asarray(expected.numpy()))
        assert_equal(ours, codes)
        if model.variant.kind == "vit":
            assert_equal(logits(model, ours), public.logits(codes))
        else:
            t = np.array([500, 3])
            clean = denoise(model, image, jnp.asarray(t), ours)
            assert_equal(clean, public.decoder(torch.from_numpy(planar), codes, torch.from_numpy(t)))


@pytest.mark.parametrize("pair", ["s2l2a"], indirect=True)
@pytest.mark.parametrize("clip", ["none", "unit"])
def test_both_sample_the_same(pair, torch, clip):
    model, public = pair
    noise, planar = images(model, (16, 24))
    ids = np.random.default_rng(1).integers(0, model.variant.codebook, (2, 2, 3))
    with torch.no_grad():
        expected = public.decode_tokens(torch.from_numpy(ids), torch.from_numpy(planar), steps=3, clip=clip == "unit")
    ours = model.decode_tokens(jnp.asarray(ids), 3, noise=noise, clip=clip)
    np.testing.assert_allclose(model.standardise(ours), np.moveaxis(expected.numpy(), 1, -1), atol=1e-4)


def test_weights_of_the_pytorch_class_come_back_bit_identical(pair, torch, tmp_path):
    model, public = pair
    name = f"terramind_v1_tokenizer_{model.variant.modality.lower()}_nano"
    first, second = tmp_path / "first.pth", tmp_path / "second.pth"
    torch.save(public.state_dict(), first)
    terra_jax.export_torch(terra_jax.load(name, first), second)
    again = torch.load(second, weights_only=True)
    assert list(again) == list(public.state_dict())
    tables = [key for key in again if key.endswith("pos_emb")]
    assert all(torch.equal(again[key], value) for key, value in public.state_dict().items() if key not in tables)
    for key in tables:  # rebuilt, not carried
        torch.testing.assert_close(again[key], public.state_dict()[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["s2l2a", "dem", "lulc"])
def test_the_full_pytorch_class_has_the_public_keys(reference, torch, fixtures_dir, name):
    manifests = fixtures_dir / "manifests" / "terramind"
    manifest = json.loads((manifests / f"terramind_v1_tokenizer_{name}.json").read_text())
    with torch.device("meta"):
        state = reference.Tokenizer(name).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == {k: e["shape"] for k, e in manifest.items()}
    assert list(state) == list(manifest)
