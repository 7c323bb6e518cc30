import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data_pipelines"))
from dual_corpus import GRID, SENTINELS, SETTINGS, TILE, pixels_of, record_of

from data_pipelines.recipes.terramind import DualScaleLayout, DualScaleRecipe, StreamLayout
from data_pipelines.sources.dual_scale import DualScaleSample
from data_pipelines.transforms.budgets import Component
from data_pipelines.transforms.crops import Crop
from terra_jax.errors import ConfigError
from terra_jax.parallel.mesh import make_mesh
from terra_jax.terramind.objective import PretrainingObjective, decode_batch, stream_weights
from terra_jax.terramind.streams import STREAMS
from terra_jax.terramind.variants import MODELS
from terra_jax.training.build import build
from terra_jax.training.optimiser import AdamW

INPUTS = ("S2L2A", "S1GRD", "DEM", "tok_LULC", "coords")
OUTPUTS = ("tok_LULC", "tok_S1GRD", "coords")
TINY = replace(MODELS["nano"], width=16, depth=1, decoder_depth=1, heads=2, hidden=24, image=32)
STEPS = 20


def layout_of(names):
    known = [STREAMS[name] for name in names]
    return tuple(StreamLayout(s.name, s.modality, s.kind, GRID**2 if s.is_image else s.length) for s in known)


LAYOUT = DualScaleLayout(layout_of(INPUTS), layout_of(OUTPUTS), SENTINELS)
EVERYTHING = Component(dict.fromkeys(INPUTS, 1.0), dict.fromkeys(OUTPUTS, 1.0))


def objective_of(*mixture, **options) -> tuple[DualScaleRecipe, PretrainingObjective]:
    recipe = DualScaleRecipe(LAYOUT, TILE, mixture or (EVERYTHING,), (12, 12), (10, 10))
    return recipe, PretrainingObjective(TINY, recipe.batch_spec, INPUTS, OUTPUTS, 32, **options)


def sample_of(i: int) -> DualScaleSample:
    """A sample with random pixels."""
    rng, plain = np.random.default_rng(i), pixels_of(i, ("S2L2A", "S1GRD", "DEM"))
    rasters = {}
    for name, raster in plain.rasters.items():
        grids = {gsd: rng.normal(0, 300, grid.shape).astype(grid.dtype) for gsd, grid in raster.grids.items()}
        rasters[name] = replace(raster, grids=grids)
    records = tuple(record_of(i, setting, ("LULC", "S1GRD")) for setting in range(SETTINGS))
    return DualScaleSample(**{**vars(plain), "rasters": rasters}, records=records)


def batch_of(recipe, count, start=0):
    examples = [recipe(sample_of(i), i) for i in range(start, start + count)]
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def program_of(objective, mesh=None, **options):
    # Adam divides by the gradient's size: a larger eps keeps it from blowing up the rounding of vanishing gradients.
    optimiser = AdamW(**{"steps": STEPS, "learning_rate": 1e-3, "eps": 1e-4, "undecayed": "norms", **options})
    return build(objective, optimiser, mesh or make_mesh(data=1, devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def start():
    """A recipe, random parameters, and compiled functions of parameters and a batch."""
    recipe, objective = objective_of()
    program = program_of(objective)

    def loss(params, batch, kind="mod"):
        return replace(objective, loss_kind=kind).loss(program.bind, params, {}, batch, None, 0)

    return SimpleNamespace(
        recipe=recipe,
        params=program.init()["params"],
        loss=jax.jit(loss, static_argnums=2),
        gradient=jax.jit(jax.grad(lambda params, batch: loss(params, batch)[0])),
        decoded=jax.jit(lambda params, batch: decode_batch(program.bind(params).model, batch, 32)[0]),
    )


@pytest.mark.parametrize("kind", ["mod", "token"])
def test_the_loss_is_what_numpy_says(start, kind):
    batch = batch_of(start.recipe, 4)
    batch["targets/stream"][batch["targets/stream"] == 1] = -1  # no target of one stream
    loss, (_, metrics) = start.loss(start.params, batch, kind)
    decoded = np.asarray(start.decoded(start.params, batch), np.float64)
    losses = {}
    for i, name in enumerate(OUTPUTS):
        chosen = batch["targets/stream"] == i
        logits = decoded[chosen] @ np.asarray(start.params["model"]["decoder"]["tables"][name], np.float64).T
        highest = logits.max(-1, keepdims=True)
        normaliser = np.log(np.exp(logits - highest).sum(-1)) + highest[:, 0]
        losses[name] = normaliser - logits[np.arange(len(logits)), batch["targets/label"][chosen]]
    assert len(losses["tok_LULC"]) and len(losses["coords"]) and not len(losses["tok_S1GRD"])
    if kind == "mod":
        expected = np.mean([values.mean() if len(values) else 0.0 for values in losses.values()])
    else:
        shares = {name: len(values) * STREAMS[name].vocabulary for name, values in losses.items()}
        expected = sum(shares[n] * v.mean() for n, v in losses.items() if len(v)) / sum(shares.values())
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["loss/coords"]) == pytest.approx(losses["coords"].mean(), rel=1e-5)
    assert np.isnan(metrics["loss/tok_S1GRD"])


def test_weights_of_streams():
    counts = jnp.array([4.0, 0.0, 2.0])
    np.testing.assert_allclose(stream_weights(counts, OUTPUTS, "mod"), [1 / 12, 1 / 3, 1 / 6])
    vocabularies = np.array([4375, 15360, 30000])
    expected = vocabularies / (4 * 4375 + 2 * 30000)
    np.testing.assert_allclose(stream_weights(counts, OUTPUTS, "token"), expected, rtol=1e-6)
    assert np.isfinite(stream_weights(jnp.zeros(3), OUTPUTS, "token")).all()
    with pytest.raises(ConfigError, match=r"objective.loss='sum' is unknown; choose mod or token"):
        objective_of(loss_kind="sum")


def test_boxes_and_flips_cut_what_the_encoder_sees(start):
    recipe, _ = objective_of(Component({"DEM": 1.0}, dict.fromkeys(OUTPUTS, 1.0)))
    sample = sample_of(0)
    moved = replace(sample, records=(replace(sample.records[0], crop=Crop(2, 3, 32, 32, flip=True)),))
    batch = {key: np.stack([value] * 4) for key, value in recipe(moved, 0).items()}
    by_hand = dict(batch)
    by_hand["DEM/10"] = np.zeros_like(batch["DEM/10"])
    by_hand["DEM/10"][..., :32, :32] = batch["DEM/10"][..., 2:34, 3:35][..., ::-1]
    by_hand["boxes"], by_hand["flips"] = np.full((4, 1, 4), (0, 0, 32, 32), np.float32), np.zeros((4, 1, 2), bool)
    first, second = (np.asarray(start.decoded(start.params, b)) for b in (batch, by_hand))
    np.testing.assert_allclose(first, second, atol=1e-5)
    by_hand["flips"] = np.full((4, 1, 2), (False, True))
    assert np.abs(first - np.asarray(start.decoded(start.params, by_hand))).max() > 1e-3


def test_streams_that_take_no_part_get_no_gradient(start):
    recipe, _ = objective_of(Component({"S2L2A": 1.0, "tok_LULC": 1.0}, {"tok_LULC": 1.0}))
    gradient = start.gradient(start.params, batch_of(recipe, 4))["model"]
    size = {
        tuple(key.key for key in path): float(np.abs(leaf).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient["encoder"]["embeddings"])
    }
    idle = {path: value for path, value in size.items() if path[0] in ("S1GRD", "DEM", "coords")}
    assert len(idle) == 6 and not any(idle.values())
    assert all(value > 0 for path, value in size.items() if path not in idle)
    tables = gradient["decoder"]["tables"]
    assert np.any(tables["tok_LULC"]) and not np.any(tables["tok_S1GRD"]) and not np.any(tables["coords"])


def test_pixels_without_a_slot_have_no_influence(start):
    batch = batch_of(start.recipe, 4)
    batch["inputs/stream"][batch["inputs/stream"] == INPUTS.index("DEM")] = -1
    other = {**batch, "DEM/10": batch["DEM/10"] + 100}
    assert start.loss(start.params, batch)[0] == start.loss(start.params, other)[0]


@pytest.fixture(scope="module")
def trained():
    """A one-device run of STEPS steps: batches, losses and the last parameters."""
    recipe, objective = objective_of()
    batches = [batch_of(recipe, 16, 16 * step) for step in range(STEPS)]
    program = program_of(objective)
    state, losses = program.init(), []
    for batch in batches:
        state, metrics = program.step(state, program.place(batch))
        losses.append(float(metrics["loss"]))
    return objective, batches, losses, jax.device_get(state["params"])


@pytest.mark.slow
def test_training_lowers_the_loss(trained):
    _, _, losses, _ = trained
    assert np.mean(losses[-3:]) < losses[0] - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1)], ids=["data", "fsdp"])
def test_every_mesh_gives_the_one_device_run(trained, shape):
    objective, batches, losses, expected = trained
    program = program_of(objective, make_mesh(*shape))
    state = program.init()
    for batch, loss in zip(batches, losses, strict=True):
        state, metrics = program.step(state, program.place(batch))
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    params = jax.device_get(state["params"])
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(params), strict=True):
        error = np.linalg.norm(other - leaf) / max(np.linalg.norm(leaf), 1e-3)
        assert error < 1e-5, (jax.tree_util.keystr(path), error)
