"""A SkySense of a few thousand parameters, its objective, and batches of noise that cost nothing to make."""

import dataclasses

import jax
import numpy as np

from data_pipelines.recipes.skysense import SkySenseRecipe
from data_pipelines.regions import RegionTable
from terra_jax.nn.swin import SwinSize
from terra_jax.parallel.mesh import make_mesh
from terra_jax.skysense.granularity import Clustering
from terra_jax.skysense.objective import SkySenseObjective
from terra_jax.skysense.variants import FusionSize, SeriesSize, SkySenseSize
from terra_jax.training.build import build
from terra_jax.training.optimiser import AdamW

STEPS = 20
REGIONS = 8
TILE, WIDE, NEAR = 8, 8, 4
ALIGNED, FUSED = 16, 16
SIZE = SkySenseSize(
    SwinSize((8, 16), (1, 1), (1, 2), (4, 4), (0, 0), patch=16),
    SeriesSize("S2L2A", 8, 1, 2, aligned=ALIGNED, image=8),
    SeriesSize("S1GRD", 8, 1, 2, aligned=ALIGNED, image=8),
    FusionSize(ALIGNED, FUSED, 2, 2),
)
MODALITIES = ("HR", "S2L2A", "S1GRD")


def recipe(modalities=MODALITIES, **changes):
    """The recipe whose batches `noise` imitates."""
    everywhere = RegionTable.of(np.arange(-170.0, 170, 45), np.zeros(8), REGIONS)
    series = [name for name in modalities if name != "HR"]
    options = {
        "tile": TILE,
        "frames": {name: {"S2L2A": 3, "S1GRD": 2}[name] for name in series},
        "shipped": {name: {"S2L2A": 4, "S1GRD": 2}[name] for name in series},
        "regions": everywhere,
        "high_resolution": "HR" in modalities,
        "local_views": 0,
    }
    return SkySenseRecipe(**{**options, **changes})


def objective(modalities=MODALITIES, made_by=None, **changes):
    """The objective of those batches."""
    base = SkySenseObjective(
        variant=SIZE,
        batch_spec=(made_by or recipe(modalities)).batch_spec,
        modalities=modalities,
        global_size=WIDE,
        local_size=NEAR,
        steps=STEPS,
        outputs={"pixel": 24, "object": 16, "image": 32},
        clustering=Clustering(clusters=3, epsilon=0.05, iterations=3, rounds=2),
        head_hidden=16,
        head_bottleneck=8,
        alignment_weight=1.0,
        alignment_width=8,
        teacher_momentum=0.9,
        regions=REGIONS,
        region_prototypes=4,
        prototype_width=FUSED,
        prototype_momentum=0.9,
        encoder_options={"pad_small_map": True},
    )
    return dataclasses.replace(base, **changes)


def noise(spec, count, seed=0):
    """A batch of a spec: noise of the right range, boxes that overlap, dates in order."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, array in spec.items():
        shape = (count, *array.shape)
        kind = name.split("/")[-1]
        if kind == "present":
            batch[name] = np.ones(shape, bool)
        elif kind == "frames":
            batch[name] = np.sort(rng.integers(0, 2, shape), axis=-1).astype("int32")
        elif kind == "days":
            batch[name] = np.sort(rng.integers(0, 366, shape), axis=-1).astype("int32")
        elif name == "boxes":
            size = rng.integers(5, TILE + 1, (*shape[:2], 2))
            batch[name] = np.concatenate([np.floor(rng.random(size.shape) * (TILE - size + 1)), size], -1).astype("f4")
        elif name == "flips":
            batch[name] = rng.random(shape) < 0.5
        elif name == "region":
            batch[name] = np.arange(count, dtype="int32") * REGIONS // count  # those of one region beside each other
        elif name == "HR":
            batch[name] = rng.integers(0, 256, shape).astype("uint8")
        elif name.startswith("S2"):
            batch[name] = rng.integers(0, 5000, shape).astype("int16")
        else:
            batch[name] = rng.uniform(-25, 0, shape).astype(array.dtype)
    return batch


def program(made, mesh=None, **optimiser):
    """The compiled step, on one device unless a mesh is given."""
    # Adam divides by the gradient's size: a larger eps keeps it from blowing up the rounding of vanishing gradients.
    options = {"steps": STEPS, "learning_rate": 1e-3, "eps": 1e-4, "clip_norm": 3.0, **optimiser}
    return build(made, AdamW(**options), mesh or make_mesh(data=1, devices=jax.devices()[:1]))
