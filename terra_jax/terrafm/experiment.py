"""A TerraFM run, put together from a config: data, objective, evaluation, report."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines import sampling
from data_pipelines.errors import DataError
from data_pipelines.land_cover import read_frequent
from data_pipelines.loader import one_pass
from data_pipelines.recipes.terrafm import TerraFMRecipe, TileRecipe
from data_pipelines.sample import Sample
from data_pipelines.sources import Source
from terra_jax.evaluation.frozen import knn_summary
from terra_jax.evaluation.report import report_png
from terra_jax.evaluation.table import Scores, figures
from terra_jax.nn.initialisation import abstract, initial_params
from terra_jax.nn.precision import compute_dtype
from terra_jax.parallel.distributed import fetch
from terra_jax.terrafm.evaluation import LandCoverKNN
from terra_jax.terrafm.objective import TerraFMObjective, standardised_views
from terra_jax.terrafm.variants import VARIANTS
from terra_jax.training.data import frequencies, open_data, split_indices, training_indices, training_stream, unlabelled
from terra_jax.training.experiment import Experiment
from terra_jax.training.metrics import read_csv
from terra_jax.training.objective import Bind, Params

PICTURES = 4
FEWEST_TILES = 20
"""With fewer labelled tiles on either side a kNN score says nothing."""


def experiment(config: ConfigDict) -> Experiment:
    """Everything that the trainer needs for one run.

    Args:
        config: as `configs/terrafm/base.py` documents it.
    """
    source = open_data(config)
    training = training_indices(source, config)
    recipe = make_recipe(config, _frequent_classes(config, source, training))
    objective = make_objective(config, recipe)
    knn, reason = make_evaluator(config, source, objective)
    latest: dict[int, Scores] = {}

    def evaluate(knn: LandCoverKNN, bind: Bind, state: Mapping[str, Any], step: int) -> dict[str, float]:
        latest.clear()
        latest[step] = knn(bind, state["extra"]["teacher"])
        return figures(latest[step])

    return Experiment(
        objective=objective,
        loader=training_stream(config, source, recipe, training),
        evaluators={"knn": partial(evaluate, knn)} if knn else {},
        report=partial(_report, config, source, objective, knn, reason, latest),
    )


def _frequent_classes(config: ConfigDict, source: Source, training: np.ndarray) -> tuple[int, ...]:
    """Land cover that dual centring takes for frequent: what the config names, else what training tiles show."""
    if config.data.frequent_classes:
        return read_frequent(config.data.frequent_classes)
    scene = source.index.scene[training]
    return sampling.frequent_classes(scene, config.data.frequent, frequencies(source, training))


def evaluate(config: ConfigDict, encoder: Mapping[str, Any], split: str) -> dict[str, Any]:
    """kNN scores of given encoder parameters on the config's data, beside both baselines.

    Args:
        config: of the data and the views.
        encoder: nested dict of the encoder's parameters.
        split: unseen regions that the queries come from, "val" or "test".

    Raises:
        DataError: if the data has too few regions to leave some unseen.
    """
    source = open_data(config)
    recipe = TileRecipe(tuple(config.data.modalities), config.data.tile)
    objective = make_objective(config, recipe)
    knn, reason = make_evaluator(config, source, objective, split)
    if knn is None:
        raise DataError(f"kNN {reason}")
    graphdef, _ = abstract(objective.build)

    def bind(params: Params) -> nnx.Module:
        return nnx.merge(graphdef, nnx.State(params))

    params = {**initial_params(objective.build, config.seed), "encoder": encoder}
    return {"headline": knn.headline, "scores": knn(bind, params), "baselines": knn.baselines(bind)}


def objective(config: ConfigDict) -> TerraFMObjective:
    """The objective alone: no data are opened."""
    return make_objective(config, make_recipe(config))


def make_recipe(config: ConfigDict, frequent: tuple[int, ...] = ()) -> TerraFMRecipe:
    """The recipe of a config's batches, given the scene classes that are frequent in its data."""
    return TerraFMRecipe(
        modalities=tuple(config.data.modalities),
        tile=config.data.tile,
        local_views=config.views.local_views,
        global_scale=tuple(config.views.global_scale),
        local_scale=tuple(config.views.local_scale),
        modalities_per_view=config.views.modalities_per_view,
        draw=config.views.draw,
        frequent=frequent,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def make_objective(config: ConfigDict, recipe: TerraFMRecipe | TileRecipe) -> TerraFMObjective:
    """The objective of a config, for batches that the recipe makes."""
    options = config.objective.to_dict()
    return TerraFMObjective(
        variant=VARIANTS[config.model],
        batch_spec=recipe.batch_spec,
        modalities=recipe.modalities,
        global_size=config.views.global_size,
        local_size=config.views.local_size,
        steps=config.steps,
        statistics=config.encoder.statistics,
        encoder_options={
            "drop_path": config.encoder.drop_path,
            "remat": config.remat,
            "dtype": compute_dtype(config.dtype),
        },
        **{**options, "teacher_temperature": tuple(options["teacher_temperature"])},
    )


def tile_batches(source: Source, recipe: TileRecipe, indices: np.ndarray, batch_size: int) -> Iterator[dict]:
    """Whole tiles in batches of at most `batch_size`, with "scene" and "cloud"; unreadable tiles are left out."""

    def example(sample: Sample, i: int) -> dict[str, np.ndarray]:
        cloud = np.asarray(sample.attributes.get("cloud_fraction", 0), np.float32)
        return {**recipe(sample, i), "scene": np.asarray(source.index.scene[i], np.int32), "cloud": cloud}

    return one_pass(source, example, indices, batch_size)


def make_evaluator(
    config: ConfigDict, source: Source, objective: TerraFMObjective, split: str = "val"
) -> tuple[LandCoverKNN | None, str]:
    """The kNN evaluation of a config, or None and the reason why there is none.

    Args:
        config: of the run.
        source: its data.
        objective: whose initial parameters are the random baseline.
        split: regions that the queries come from.
    """
    bank, queries = (
        split_indices(source, name, count, labelled=True)
        for name, count in (("train", config.evaluation.bank), (split, config.evaluation.queries))
    )
    if min(len(bank), len(queries)) < FEWEST_TILES:
        return None, (
            f"not applicable: {len(bank)} labelled tiles of seen regions and {len(queries)} of unseen ones, "
            f"at least {FEWEST_TILES} of each are needed{unlabelled(source)}"
        )

    recipe = TileRecipe(objective.modalities, config.data.tile)
    size = config.evaluation.batch_size
    evaluator = LandCoverKNN(
        partial(tile_batches, source, recipe, bank, size),
        partial(tile_batches, source, recipe, queries, size),
        partial(initial_params, objective.build, config.seed),
        modalities=objective.modalities,
        size=objective.global_size,
        batch_size=size,
        statistics=objective.statistics,
    )
    return evaluator, ""


def _report(
    config: ConfigDict,
    source: Source,
    objective: TerraFMObjective,
    knn: LandCoverKNN | None,
    reason: str,
    latest: Mapping[int, Scores],
    workdir: Path,
    report: Mapping[str, Any],
    bind: Bind,
    state: Mapping[str, Any],
) -> dict[str, Any]:
    """Draw report.png and return what report.json says of the kNN evaluation."""
    teacher = state["extra"]["teacher"]
    evaluations: list[dict[str, Any]] = []
    drawn_baselines: dict[str, Any] = {}
    result: dict[str, Any] = {"knn": reason}
    if knn:
        summary, evaluations = knn_summary(
            knn, bind, teacher, step=config.steps, scores=latest.get(config.steps), rows=report["evaluations"]
        )
        result = {"knn": summary}
        drawn_baselines = {name: values[knn.headline] for name, values in summary["baselines"].items()}
    images, features = _pictures(source, objective, config.data.tile, bind, teacher)
    if jax.process_index() == 0:
        report_png(
            workdir / "report.png",
            history=read_csv(workdir / "metrics.csv"),
            evaluations=evaluations,
            baselines=drawn_baselines,
            images=images,
            features=features,
            title=f"{config.model}, {config.steps} steps" + (f": kNN on {knn.headline}" if knn else ""),
            note=reason,
        )
    return result


def _pictures(source: Source, objective: TerraFMObjective, tile: int, bind: Bind, params: Params):
    """Colour composites of a few tiles and their last feature maps, at the tiles' own resolution.

    Of the run's first optical modality, if any.
    """
    indices = split_indices(source, "val", PICTURES, labelled=True)
    if not len(indices):
        indices = np.arange(len(source))
    shown = min(objective.modalities, key=lambda name: not name.startswith("S2"))
    size = tile - tile % objective.variant.patch
    batch = next(tile_batches(source, TileRecipe((shown,), tile), indices, PICTURES))

    @jax.jit
    def feature_maps(params, batch):
        boxes = jnp.tile(jnp.array([0.0, 0.0, tile, tile]), (len(batch[f"{shown}/10"]), 1, 1))
        views = standardised_views(batch, boxes, size, (shown,), objective.statistics)
        return bind(params).encoder.feature_maps({shown: next(iter(views.values()))}, normalised=True)[-1]

    features = fetch(feature_maps(params, {k: v for k, v in batch.items() if "/" in k}))
    fine = batch[f"{shown}/10"].astype(np.float32)
    colours = fine[:, [2, 1, 0]] / 3000 if shown.startswith("S2") else (fine[:, [0, 1, 0]] + 25) / 25
    return list(np.clip(colours, 0, 1).transpose(0, 2, 3, 1)), list(features)
