"""The encoder-decoder's exported weights load in the PyTorch class with the public keys, strictly, and train alike."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import quick_compilation
from flax import nnx

import terra_jax
from terra_jax.terramind.objective import packed, stream_weights
from terra_jax.terramind.streams import STREAMS


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def reference(torch):
    return importlib.import_module("tools.pytorch_terramind")


@pytest.fixture(scope="module")
def batches():
    return importlib.import_module("tools.benchmark_terramind_batch")


@pytest.fixture(scope="module")
def model():
    """A random nano model, its initial zeros and ones included."""
    graphdef, params = nnx.split(terra_jax.build("terramind_v1_nano_encdec"))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    moved = [leaf + 0.05 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, moved))


@pytest.fixture(scope="module")
def exported(model, torch, tmp_path_factory):
    """State dict of the model and a PyTorch model that holds it."""
    path = tmp_path_factory.mktemp("export") / "nano.pt"
    terra_jax.export_torch(model, path)
    state = torch.load(path, weights_only=True)
    public = importlib.import_module("tools.pytorch_terramind").TerraMind("nano")
    public.load_state_dict(state, strict=True)
    return public


@pytest.fixture(scope="module")
def batch(model, batches):
    """40 + 40 slots of all streams, some empty, sequences among them."""
    slots, pixels = batches.draw(np.random.default_rng(8), model.inputs, model.outputs, 4, 40, 64, 8)
    assert set(slots["inputs/stream"].flat) == {*range(-1, len(model.inputs))}
    assert set(slots["targets/stream"].flat) == {*range(-1, len(model.outputs))}
    return slots, pixels


def keys(names):
    return tuple(STREAMS[name].key for name in names)


def mean_of_streams(graphdef, params, slots, pixels):
    """The "mod" loss, the decoder's tokens, and the losses of the targets."""
    model = nnx.merge(graphdef, params)
    inputs, targets = packed(slots)
    decoded = model.decode(model.encode(inputs, pixels), targets)
    asked = jax.nn.one_hot(targets.stream, len(model.outputs))
    weights = asked @ stream_weights(asked.sum((0, 1)), model.outputs, "mod")
    total, losses = model.token_loss(decoded, targets, weights)
    return total, (decoded, losses)


def test_both_give_the_same_losses_and_gradients(model, exported, batch, reference, torch, tmp_path):
    slots, pixels = batch
    graphdef, params = nnx.split(model)
    step = jax.jit(jax.value_and_grad(mean_of_streams, argnums=1, has_aux=True), static_argnums=0)
    (total, (decoded, losses)), gradients = step(
        graphdef, params, {k: jnp.asarray(v) for k, v in slots.items()}, pixels
    )

    whole = reference.unpacked(
        slots, {STREAMS[name].key: image for name, image in pixels.items()}, keys(model.inputs), keys(model.outputs), 64
    )
    expected, each = exported(whole, 40, 40)
    np.testing.assert_allclose(total, expected.item(), rtol=1e-5)
    for number, name in enumerate(keys(model.outputs)):
        here = slots["targets/stream"] == number
        assert here.any()
        np.testing.assert_allclose(np.asarray(losses)[here].mean(), each[name].item(), rtol=1e-5)

    with torch.no_grad():
        theirs, labels, modality = exported.decode(whole, 40, exported.encode(whole, 40))
    filled = slots["targets/stream"] >= 0
    np.testing.assert_array_equal(modality.numpy(), slots["targets/stream"])
    np.testing.assert_array_equal(labels.numpy()[filled], slots["targets/label"][filled])
    theirs = theirs.numpy()[filled]
    np.testing.assert_allclose(np.asarray(decoded)[filled], theirs, atol=3e-5 * np.sqrt(np.mean(theirs**2)))

    # the gradients, carried over as if they were weights
    expected.backward()
    terra_jax.export_torch(nnx.merge(graphdef, gradients), tmp_path / "gradients.pt")
    ours = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for name, parameter in exported.named_parameters():
        scale = parameter.grad.square().mean().sqrt()
        assert scale > 0, f"{name} has no gradient"
        error = (ours[name] - parameter.grad).abs().max() / scale
        assert error < 2e-3, f"{name}: {error}"


@pytest.mark.parametrize("size", ["nano", "tiny", "base"])
def test_keys_and_shapes_are_the_public_ones(size, reference, torch):
    with torch.device("meta"):
        state = reference.TerraMind(size).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == terra_jax.state_dict_shapes(
        f"terramind_v1_{size}_encdec"
    )
