"""TerraMind's tokenizers against outputs of the public PyTorch models, weights through the project's own converter."""

import json
import zlib
from functools import lru_cache, partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from terra_jax import registry
from terra_jax.nn.initialisation import abstract
from terra_jax.terramind.variants import TOKENIZERS
from terra_jax.weights.rules import Fixed, table
from terra_jax.weights.state import LazyTensor, as_bytes
from terra_jax.weights.transfer import export_state, import_params

BAR = 3e-5
MARGIN = 1e-4
SEED = 1
PUBLIC = [name for name in TOKENIZERS if not name.endswith("_nano")]
TWINS = {"terramind_v1_tokenizer_s1grd": "terramind_v1_tokenizer_s1rtc"}
TWINS |= {"terramind_v1_tokenizer_ndvi": "terramind_v1_tokenizer_dem"}
"""Golden weights follow from names and shapes: these two pairs have the same."""

# On parts rather than on whole tokenizers: parts of equal shapes share one compiled program.
run = jax.jit(lambda part, *arguments: part(*arguments))


def part_of(name):
    return registry.family(name).spec(name).parts["tokenizer"]


@lru_cache(maxsize=1)
def imported(name, named_weights):
    """The golden weights as parameters, and the checksum of every tensor of the state dict."""
    part, checksums = part_of(name), {}

    def read(key, entry):
        fixed = isinstance(entry.row, Fixed)
        array = entry.row.value() if fixed else named_weights.named_weight(key, entry.shape, SEED)
        checksums[key] = zlib.crc32(as_bytes(array))
        return array

    entries = table(part.weights, part.template()).items()
    state = {key: LazyTensor(entry.shape, entry.dtype, partial(read, key, entry)) for key, entry in entries}
    return import_params(part.weights, state, part.template())[0], checksums


class Public:
    """A tokenizer that holds the golden weights, and what its outputs must be."""

    def __init__(self, name, fixtures_dir, named_weights):
        self.variant, self.part, self.named = TOKENIZERS[name], part_of(name), named_weights
        self.golden = json.loads((fixtures_dir / "golden" / f"{name}.json").read_text())
        assert self.golden["seed"] == SEED
        self.params, self.checksums = imported(TWINS.get(name, name), named_weights)
        graphdef, _ = abstract(registry.family(name).maker(name))
        self.model = nnx.merge(graphdef, nnx.State(jax.tree.map(jnp.asarray, self.params)))

    def input(self, tag):
        """A named input, channels last."""
        shape = self.golden["inputs"][self.variant.modality.lower()]
        return jnp.asarray(self.named.named_input(tag, shape, SEED).transpose(0, 2, 3, 1))

    def expected(self, tag, output):
        """Values of an output at the golden points, ours and the public model's."""
        golden = self.golden["outputs"][tag]
        ours = np.asarray(output) if tag == "tokens" else np.moveaxis(np.asarray(output), -1, 1)
        assert list(ours.shape) == golden["shape"]
        return ours.ravel()[np.asarray(golden["points"])], np.asarray(golden["values"])

    def assert_equal(self, tag, output):
        ours, golden = self.expected(tag, output)
        assert np.abs(ours - golden).max() <= BAR * np.sqrt(np.mean(golden**2)), tag


@pytest.fixture(scope="module", params=PUBLIC)
def public(request, fixtures_dir, named_weights):
    yield Public(request.param, fixtures_dir, named_weights)
    if request.param == PUBLIC[-1]:
        run.clear_cache()
        imported.cache_clear()


@pytest.mark.parametrize("name", PUBLIC)
def test_key_sets_and_shapes_equal_the_manifest(name, fixtures_dir):
    manifest = json.loads((fixtures_dir / "manifests" / "terramind" / f"{name}.json").read_text())
    summary = json.loads((fixtures_dir / "manifests" / "terramind" / "_summary.json").read_text())
    part = part_of(name)
    entries = table(part.weights, part.template())
    assert {key: tuple(entry["shape"]) for key, entry in manifest.items()} == {k: e.shape for k, e in entries.items()}
    assert list(manifest) == list(entries)
    assert sum(prod(entry.shape) for entry in entries.values()) == summary[name]["unique_params"]


def test_outputs_equal_the_public_model(public):
    name, model = public.variant.modality.lower(), public.model
    image = public.input(name)
    if name == "lulc":
        image = jax.nn.softmax(3 * image, axis=-1)
    latents = run(model.encoder, model.standardise(image, normalised=True))
    codes, ids = model.quantise(latents)
    public.assert_equal("latent_before_quant", latents)

    numbers = np.asarray(jax.nn.sigmoid(latents)) * (np.asarray(public.variant.levels) - 1)
    doubtful = np.abs(numbers - np.floor(numbers) - 0.5) < MARGIN
    assert doubtful.mean() < 0.01
    for tag, output, unsure in (("quant", codes, doubtful), ("tokens", ids, doubtful.any(-1))):
        ours, golden = public.expected(tag, output)
        unsure, _ = public.expected(tag, unsure)
        np.testing.assert_allclose(ours[~unsure], golden[~unsure], atol=1e-6)

    if name == "lulc":
        public.assert_equal("decode", run(model.decoder, codes))
    else:
        t = jnp.full(1, 500)
        public.assert_equal("denoise", run(model.decoder, public.input(f"{name}/noisy"), codes, t))


def test_there_and_back_is_bit_identical(public):
    state, report = export_state(public.part.weights, public.params)
    assert list(state) == list(public.checksums) and not report.left_out
    changed = [key for key, tensor in state.items() if zlib.crc32(as_bytes(tensor.read())) != public.checksums[key]]
    assert not changed
