"""A SkySense run, put together from a config: data, objective, evaluation, report."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.loader import one_pass
from data_pipelines.recipes.skysense import SERIES, SkySenseRecipe, SkySenseTileRecipe
from data_pipelines.recipes.spec import ArraySpec
from data_pipelines.regions import RegionTable
from data_pipelines.sample import Sample
from data_pipelines.sources import Source
from terra_jax.errors import ConfigError
from terra_jax.evaluation.frozen import knn_summary
from terra_jax.evaluation.report import report_png
from terra_jax.evaluation.table import Scores, figures
from terra_jax.nn.initialisation import abstract, initial_params
from terra_jax.nn.precision import compute_dtype
from terra_jax.parallel.distributed import fetch
from terra_jax.skysense.augmentation import Augmentation
from terra_jax.skysense.evaluation import PixelKNN, labelled_pixels
from terra_jax.skysense.granularity import Clustering
from terra_jax.skysense.inputs import MODALITIES
from terra_jax.skysense.objective import SkySenseObjective
from terra_jax.skysense.variants import HR_PIXELS, WHOLE
from terra_jax.skysense.views import whole_tiles
from terra_jax.training.data import open_data, split_indices, training_indices, training_stream, unlabelled
from terra_jax.training.experiment import Experiment
from terra_jax.training.metrics import read_csv
from terra_jax.training.objective import Bind, Params

PICTURES = 4
FEWEST_TILES = 8
"""With fewer tiles on either side a kNN score of their pixels says nothing."""


def experiment(config: ConfigDict) -> Experiment:
    """Everything that the trainer needs for one run.

    Args:
        config: as `configs/skysense/huge.py` documents it.
    """
    source = open_data(config)
    training = training_indices(source, config)
    regions = region_table(config, source, training)
    recipe = make_recipe(config, regions)
    objective = make_objective(config, recipe.batch_spec)
    knn, reason = make_evaluator(config, source, objective, regions)
    latest: dict[int, Scores] = {}

    def evaluate(knn: PixelKNN, bind: Bind, state: Mapping[str, Any], step: int) -> dict[str, float]:
        latest.clear()
        latest[step] = knn(bind, state["extra"]["teacher"])
        return figures(latest[step])

    return Experiment(
        objective=objective,
        loader=training_stream(config, source, recipe, training),
        evaluators={"knn": partial(evaluate, knn)} if knn else {},
        report=partial(_report, config, source, regions, objective, knn, reason, latest),
    )


def evaluate(config: ConfigDict, encoder: Mapping[str, Any], split: str) -> dict[str, Any]:
    """kNN scores of given parameters on the config's data, beside both baselines.

    Args:
        config: of the data and the views.
        encoder: nested dict of the public model's parameters.
        split: unseen regions that the queries come from, "val" or "test".

    Raises:
        DataError: if the data has too few regions to leave some unseen.
    """
    source = open_data(config)
    regions = region_table(config, source, training_indices(source, config))
    objective = make_objective(config, make_recipe(config, regions).batch_spec)
    knn, reason = make_evaluator(config, source, objective, regions, split)
    if knn is None:
        raise DataError(f"kNN {reason}")
    graphdef, _ = abstract(objective.build)

    def bind(params: Params) -> nnx.Module:
        return nnx.merge(graphdef, nnx.State(params))

    params = {**initial_params(objective.build, config.seed), "encoder": encoder}
    return {"headline": knn.headline, "scores": knn(bind, params), "baselines": knn.baselines(bind)}


def run_modalities(config: ConfigDict) -> tuple[str, ...]:
    """Modalities of a run, in the order of the fusion's tokens.

    Raises:
        ConfigError: one that SkySense does not take, or none.
    """
    wanted = tuple(config.data.modalities)
    if unknown := [name for name in wanted if name not in MODALITIES]:
        raise ConfigError(f"data.modalities: SkySense takes {', '.join(MODALITIES)}, not {', '.join(unknown)}")
    if not wanted:
        raise ConfigError(f"data.modalities is empty; name some of {', '.join(MODALITIES)}")
    return tuple(name for name in MODALITIES if name in wanted)


def region_table(config: ConfigDict, source: Source, training: np.ndarray) -> RegionTable:
    """Rows of the prototype table for the places that a run trains on."""
    options = config.data.regions
    index = source.index
    return RegionTable.of(
        index.lon[training], index.lat[training], options.rows, zoom=options.zoom or None, overflow=options.overflow
    )


def objective(config: ConfigDict) -> SkySenseObjective:
    """The objective alone: no data are opened."""
    nowhere = RegionTable.of(np.zeros(1), np.zeros(1), config.data.regions.rows)  # it has no part in a batch's shape
    return make_objective(config, make_recipe(config, nowhere).batch_spec)


def make_recipe(config: ConfigDict, regions: RegionTable) -> SkySenseRecipe:
    """The recipe of a config's batches."""
    views, modalities = config.views, run_modalities(config)
    series = [name for name in SERIES if name in modalities]
    return SkySenseRecipe(
        tile=config.data.tile,
        frames={name: views.frames[name] for name in series},
        shipped={name: views.shipped[name] for name in series},
        regions=regions,
        high_resolution="HR" in modalities,
        local_views=views.local_views,
        global_scale=tuple(views.global_scale),
        local_scale=tuple(views.local_scale),
        date_jitter=views.date_jitter,
        flip=views.flip,
        seed=config.seed,
    )


def make_objective(config: ConfigDict, batch_spec: Mapping[str, ArraySpec]) -> SkySenseObjective:
    """The objective of a config, for batches of a spec.

    Raises:
        ConfigError: a model that is not a whole one.
    """
    if config.model not in WHOLE:
        raise ConfigError(f"model={config.model!r} cannot be trained by itself; choose one of {', '.join(WHOLE)}")
    options, views = config.objective.to_dict(), config.views
    clustering = Clustering(
        clusters=options.pop("clusters"),
        epsilon=options.pop("cluster_epsilon"),
        iterations=options.pop("cluster_iterations"),
        rounds=options.pop("cluster_rounds"),
    )
    return SkySenseObjective(
        variant=WHOLE[config.model],
        batch_spec=batch_spec,
        modalities=run_modalities(config),
        global_size=views.global_size,
        local_size=views.local_size,
        steps=config.steps,
        clustering=clustering,
        regions=config.data.regions.rows,
        augmentation=Augmentation(views.brightness, views.contrast, views.blur, views.solarise),
        statistics=config.encoder.statistics,
        seed=config.seed,
        encoder_options={
            **{key: value for key, value in config.encoder.to_dict().items() if key != "statistics"},
            "remat": config.remat,
            "dtype": compute_dtype(config.dtype),
        },
        **{
            **options,
            "levels": tuple(options["levels"]),
            "teacher_temperature": tuple(options["teacher_temperature"]),
        },
    )


def make_evaluator(
    config: ConfigDict,
    source: Source,
    objective: SkySenseObjective,
    regions: RegionTable,
    split: str = "val",
) -> tuple[PixelKNN | None, str]:
    """The kNN evaluation of a config, or None and the reason why there is none.

    Args:
        config: of the run.
        source: its data.
        objective: whose initial parameters are the random baseline.
        regions: of the run.
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
    recipe = tile_recipe(config, regions)
    size, pixels = config.evaluation.batch_size, config.evaluation.pixels
    evaluator = PixelKNN(
        partial(tile_batches, source, recipe, bank, size, pixels),
        partial(tile_batches, source, recipe, queries, size, pixels),
        partial(initial_params, objective.build, config.seed),
        modalities=objective.modalities,
        batch_size=size,
        statistics=objective.statistics,
    )
    return evaluator, ""


def tile_recipe(config: ConfigDict, regions: RegionTable) -> SkySenseTileRecipe:
    """Whole tiles of a config, with as many frames as batches ship."""
    modalities = run_modalities(config)
    shipped = {name: config.views.shipped[name] for name in SERIES if name in modalities}
    return SkySenseTileRecipe(config.data.tile, shipped, regions, "HR" in modalities)


def tile_batches(
    source: Source, recipe: SkySenseTileRecipe, indices: np.ndarray, batch_size: int, pixels: int
) -> Iterator[dict]:
    """Whole tiles in batches of at most `batch_size`, with "pixels" to score; unreadable tiles are left out."""

    def example(sample: Sample, i: int) -> dict[str, np.ndarray]:
        tile = recipe(sample, i)
        return {**tile, "pixels": labelled_pixels(tile["labels"], pixels, seed=i)}

    return one_pass(source, example, indices, batch_size)


def _report(
    config: ConfigDict,
    source: Source,
    regions: RegionTable,
    objective: SkySenseObjective,
    knn: PixelKNN | None,
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
        drawn_baselines |= {
            f"{name} alone": summary["scores"][name] for name in objective.modalities if name != knn.headline
        }
    images, features = _pictures(source, tile_recipe(config, regions), objective, bind, teacher)
    if jax.process_index() == 0:
        report_png(
            workdir / "report.png",
            history=read_csv(workdir / "metrics.csv"),
            evaluations=evaluations,
            baselines=drawn_baselines,
            images=images,
            features=features,
            title=f"{config.model}, {config.steps} steps" + (f": pixel kNN on {knn.headline}" if knn else ""),
            note=reason,
        )
    return result


def _pictures(
    source: Source, recipe: SkySenseTileRecipe, objective: SkySenseObjective, bind: Bind, params: Params
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A picture of a few tiles, of the finest optical modality, and their fused features."""
    indices = split_indices(source, "val", PICTURES, labelled=True)
    if not len(indices):
        indices = np.arange(len(source))
    batch = next(one_pass(source, recipe, indices, PICTURES))

    @jax.jit
    def fused(params: Params, batch: Mapping[str, Any]):
        images, days, present = whole_tiles(batch, objective.statistics)
        return bind(params).encoder(images, days, present, normalised=True)

    features = fetch(fused(params, batch))
    if "HR" in batch:
        pictures = batch["HR"][:, :, :: HR_PIXELS // 8, :: HR_PIXELS // 8].astype(np.float32) / 255
    elif "S2L2A/10" in batch:
        pictures = batch["S2L2A/10"][:, 0, [2, 1, 0]].astype(np.float32) / 3000
    else:
        pictures = (batch["S1GRD/10"][:, 0, [0, 1, 0]].astype(np.float32) + 25) / 25
    return list(np.clip(pictures, 0, 1).transpose(0, 2, 3, 1)), list(features)
