"""Does Thinking in Modalities help where labels are few? Land cover of the procedural Earth, by a linear head.

A pretrained encoder-decoder becomes a plain backbone, and one that thinks of land cover first; each is fine-tuned with
a linear head (a token to the classes of its pixels) on few labelled tiles, and scored on regions that neither
pretraining nor fine-tuning has seen. Both get the same tiles in the same order, and as many steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx

from data_pipelines.modalities import LAND_COVER
from data_pipelines.radiometry import to_10m
from data_pipelines.sources import open_source
from terra_jax.errors import ConfigError
from terra_jax.evaluation.reconstruction import class_figures, confusion
from terra_jax.terramind.backbone import Backbone
from terra_jax.terramind.model import EncoderDecoder
from terra_jax.terramind.tim import TRAINABLE, TiM

RUNGS = {"plain": (), "thinking of LULC": ("LULC",)}
"""Rung -> what the model thinks of before it answers."""

INPUTS = ("S2L2A", "S1GRD")
LABELS = (8, 64)
STEPS, BATCH, TESTED = 150, 8, 128
LEARNING_RATE = 5e-4
SAMPLES = 4096
"""Tiles of the procedural Earth among which those of each split are found."""

Arrays = Mapping[str, np.ndarray]


def compare(
    model: EncoderDecoder,
    *,
    seeds: int = 3,
    labels: Sequence[int] = LABELS,
    inputs: Sequence[str] = INPUTS,
    steps: int = STEPS,
    tested: int = TESTED,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Fine-tune every rung on every input, number of labels and seed.

    Args:
        model: pretrained on tokens of LULC.
        seeds: runs each; a seed chooses the labelled tiles, their order and the head.
        labels: numbers of labelled tiles.
        inputs: modalities, one at a time.
        steps: of fine-tuning.
        tested: tiles that are scored.
        say: takes a line after every run.

    Returns:
        JSON values: "runs", a list of their settings and figures, and the "baseline" of the commonest class.

    Raises:
        ConfigError: a model that does not take an input.
    """
    if missing := [name for name in inputs if name not in model.inputs]:
        raise ConfigError(f"the model takes no {missing[0]}; it takes {', '.join(model.inputs)}")
    side = model.variant.image
    unseen = tiles(inputs, side, "test", tested, seed=0)
    runs = []
    for seed in range(seeds):
        for count in labels:
            labelled = tiles(inputs, side, "train", count, seed)
            for name in inputs:
                for rung, thoughts in RUNGS.items():
                    built = backbone(model, name, thoughts)
                    found = fine_tuned(built, name, labelled, unseen, steps=steps, seed=seed)
                    runs.append({"rung": rung, "input": name, "labels": count, "seed": seed, **found})
                    say(f"{rung}, {name}, {count} labels, seed {seed}: mean IoU {100 * found['miou']:.1f} %")
    return {"runs": runs, "baseline": commonest(unseen["LULC"])}


def backbone(model: EncoderDecoder, name: str, thoughts: Sequence[str]) -> Backbone:
    """A backbone of one input that begins as the pretrained model."""
    options: dict[str, Any] = {"modalities": (name,), "merge": "mean"}
    return TiM.of(model, thoughts=thoughts, **options) if thoughts else Backbone.of(model, **options)


def fine_tuned(
    model: Backbone, name: str, labelled: Arrays, unseen: Arrays, *, steps: int, seed: int
) -> dict[str, Any]:
    """Figures on unseen tiles of a model that is fine-tuned with a linear head.

    Args:
        model: whose last features, merged, the head reads; thoughts take no chances.
        name: of its input.
        labelled, unseen: rasters (n, y, x, band) of the input and class ids (n, y, x) of "LULC".
        steps: of fine-tuning.
        seed: of the order of the tiles.

    Returns:
        "accuracy", "miou" and "iou" by class.
    """
    graphdef, trained, frozen = nnx.split(model, TRAINABLE, ...)  # type: ignore[misc]
    numbers = model.variant.patch**2 * len(LAND_COVER)
    head = {"kernel": jnp.zeros((model.variant.width, numbers)), "bias": jnp.zeros(numbers)}
    params = {"model": trained, "head": head}
    state = _optimiser(steps).init(params)
    for chosen in batches(len(labelled["LULC"]), steps, seed):
        images, truth = labelled[name][chosen], labelled["LULC"][chosen]
        params, state = _step(params, state, frozen, images, truth, graphdef=graphdef, name=name, steps=steps)
    counts = [
        _confusion(params, frozen, unseen[name][part], unseen["LULC"][part], graphdef=graphdef, name=name).sum(0)
        for part in (slice(i, i + BATCH) for i in range(0, len(unseen["LULC"]), BATCH))
    ]
    return figures(np.sum(jax.device_get(counts), axis=0))


def _optimiser(steps: int) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(LEARNING_RATE, steps), weight_decay=0.05)


@partial(jax.jit, static_argnames=("graphdef", "name", "steps"))
def _step(params, state, frozen, images, truth, *, graphdef: nnx.GraphDef, name: str, steps: int):
    """One step of fine-tuning; pixels without a class do not count."""

    def loss(params):
        logits = _logits(params, frozen, images, graphdef, name)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, truth)
        return (losses * (truth > 0)).sum() / jnp.maximum((truth > 0).sum(), 1)

    updates, state = _optimiser(steps).update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


@partial(jax.jit, static_argnames=("graphdef", "name"))
def _confusion(params, frozen, images, truth, *, graphdef: nnx.GraphDef, name: str):
    """Pixels of each image by true and estimated class."""
    logits = _logits(params, frozen, images, graphdef, name).at[..., 0].set(-jnp.inf)
    return confusion(truth, logits.argmax(-1), len(LAND_COVER))


def _logits(params, frozen, images, graphdef: nnx.GraphDef, name: str):
    """The linear head's scores of every pixel's classes."""
    model = nnx.merge(graphdef, params["model"], frozen)
    scores = model({name: images})[-1] @ params["head"]["kernel"] + params["head"]["bias"]
    patch = model.variant.patch
    rows = images.shape[1] // patch
    return rearrange(scores, "b (h w) (p q c) -> b (h p) (w q) c", h=rows, p=patch, q=patch)


def batches(count: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of the tiles of each step; every tile as often as any other."""
    order = np.concatenate(
        [np.random.default_rng([seed, epoch]).permutation(count) for epoch in range(-(-steps * BATCH // count))]
    )
    for i in range(steps):
        yield order[i * BATCH : (i + 1) * BATCH]


def tiles(inputs: Sequence[str], side: int, split: str, count: int, seed: int) -> dict[str, np.ndarray]:
    """Tiles of some regions: rasters (n, y, x, band) by input, and class ids (n, y, x) of "LULC"."""
    source = open_source("procedural", modalities=[*inputs, "LULC"], tile=side, samples=SAMPLES)
    members = np.flatnonzero((source.index.split == split) & (source.index.scene >= 0))
    chosen = np.random.default_rng([seed, count]).permutation(members)[:count]
    samples = [source[int(i)] for i in chosen]
    rasters = {
        name: np.stack([to_10m(name, sample.rasters[name]).grids[10] for sample in samples])
        .astype(np.float32)
        .transpose(0, 2, 3, 1)
        for name in inputs
    }
    return {**rasters, "LULC": np.stack([sample.rasters["LULC"].grids[10][0] for sample in samples]).astype(np.int32)}


def figures(counts: np.ndarray) -> dict[str, Any]:
    """Figures of pixels by true and estimated class, those without a class left out."""
    known = counts.copy()
    known[0] = 0
    return class_figures(known, LAND_COVER)


def commonest(truth: np.ndarray) -> dict[str, Any]:
    """Figures of calling everything the commonest class."""
    counts = np.zeros((len(LAND_COVER),) * 2)
    occurring = np.bincount(truth.ravel(), minlength=len(LAND_COVER))
    occurring[0] = 0
    counts[:, occurring.argmax()] = occurring
    return figures(counts)


def table(result: Mapping[str, Any]) -> str:
    """Rungs against inputs and labels: mean and standard deviation over seeds of the mean IoU."""
    columns = list(dict.fromkeys((run["input"], run["labels"]) for run in result["runs"]))
    lines = [f"{'mean IoU, %':<20}" + "".join(f"{f'{name}, {count} labels':>22}" for name, count in columns)]
    for rung in RUNGS:
        cells = [
            [
                100 * run["miou"]
                for run in result["runs"]
                if (run["rung"], run["input"], run["labels"]) == (rung, *column)
            ]
            for column in columns
        ]
        lines.append(f"{rung:<20}" + "".join(f"{_mean_and_spread(cell):>22}" for cell in cells))
    return "\n".join([*lines, f"{'commonest class':<20}{100 * result['baseline']['miou']:>22.1f}"])


def _mean_and_spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} +- {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"
