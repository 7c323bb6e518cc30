"""A tokenizer's run, put together from a config: data, objective, evaluation, report."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.recipes.tokenizer import TokenizerRecipe, WindowRecipe
from data_pipelines.sources import Source
from terra_jax.errors import ConfigError
from terra_jax.nn.initialisation import abstract
from terra_jax.nn.precision import compute_dtype
from terra_jax.parallel.distributed import fetch
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.terramind.tokenizer_evaluation import TokenizerScorer, figures, window_noise
from terra_jax.terramind.tokenizer_objective import TokenizerObjective, cut_images
from terra_jax.terramind.tokenizer_report import Pictures, tokenizer_report
from terra_jax.terramind.variants import TOKENIZERS
from terra_jax.training.data import (
    numbered_batches,
    open_data,
    split_indices,
    training_indices,
    training_stream,
)
from terra_jax.training.experiment import Experiment
from terra_jax.training.metrics import read_csv
from terra_jax.training.objective import Bind, Params

PICTURES = 6


def experiment(config: ConfigDict) -> Experiment:
    """Everything that the trainer needs for one run.

    Args:
        config: as `configs/terramind/_tokenizer.py` documents it.
    """
    source = open_data(config)
    recipe = make_recipe(config)
    objective = make_objective(config, recipe)
    scorer, reason = make_scorer(config, source)
    latest: dict[int, dict[str, Any]] = {}

    def evaluate(scorer: TokenizerScorer, bind: Bind, state: Mapping[str, Any], step: int) -> dict[str, float]:
        latest.clear()
        latest[step] = scorer(bind, state["params"])
        return figures(latest[step])

    return Experiment(
        objective=objective,
        loader=training_stream(config, source, recipe, training_indices(source, config)),
        evaluators={"reconstruction": partial(evaluate, scorer)} if scorer else {},
        report=partial(_report, config, source, scorer, reason, latest),
        options={"clip": "none"} if objective.variant.kind == "diffusion" else {},  # nothing bounded the training
    )


def evaluate(config: ConfigDict, tokenizer: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Figures of given parameters on the config's data; diffusion decoders sample with and without their bound.

    Args:
        config: of the data and the views.
        tokenizer: nested dict of the tokenizer's parameters.
        split: "val" or "test": regions that training leaves out; "all": every tile, of data that training has not seen.

    Raises:
        DataError: if the data has no tiles of that split.
    """
    scorer, reason = make_scorer(config, open_data(config), split)
    if scorer is None:
        raise DataError(f"{reason}; --split all scores every tile, if training has seen none of them")
    variant = TOKENIZERS[config.model]
    graphdef, _ = abstract(make_objective(config, _windows(config)).build)

    def bind(params: Params) -> nnx.Module:
        return nnx.merge(graphdef, nnx.State(params))

    return scorer(bind, {"tokenizer": tokenizer}, ("none", "unit") if variant.kind == "diffusion" else ("none",))


def objective(config: ConfigDict) -> TokenizerObjective:
    """The objective alone: no data are opened."""
    return make_objective(config, make_recipe(config))


def make_recipe(config: ConfigDict) -> TokenizerRecipe:
    """The recipe of a config's batches."""
    return TokenizerRecipe(
        modality=TOKENIZERS[config.model].modality,
        tile=config.data.tile,
        scale=tuple(config.views.scale),
        flip=config.views.flip,
        seed=config.seed,
    )


def make_objective(config: ConfigDict, recipe: TokenizerRecipe | WindowRecipe) -> TokenizerObjective:
    """The objective of a config, for batches that the recipe makes.

    Raises:
        ConfigError: if the data are of another modality, or an input size has no whole tokens.
    """
    variant = TOKENIZERS[config.model]
    if tuple(config.data.modalities) != (variant.modality,):
        held = ", ".join(config.data.modalities)
        raise ConfigError(f"{config.model} is trained on {variant.modality}: data.modalities must be it, not {held}")
    for size in config.views.sizes:
        if size % variant.multiple:
            raise ConfigError(f"views.sizes={size} is no multiple of {variant.multiple}, as {config.model} wants it")
    return TokenizerObjective(
        variant=variant,
        batch_spec=recipe.batch_spec,
        sizes=tuple(config.views.sizes),
        ema_momentum=config.objective.ema_momentum,
        spread=config.objective.spread,
        tokenizer_options={"remat": config.remat, "dtype": compute_dtype(config.dtype)},
    )


def make_scorer(config: ConfigDict, source: Source, split: str = "val") -> tuple[TokenizerScorer | None, str]:
    """The evaluation of a config, or None and the reason why there is none.

    Args:
        config: of the run.
        source: its data.
        split: regions that the decoded tiles come from; the codebook's use is counted over all.
    """
    indices = split_indices(source, split, config.evaluation.samples)
    if not len(indices):
        return None, f"no figures: the data has no tiles of the split {split!r} (unseen regions)"
    size = config.evaluation.batch_size
    counted = split_indices(source, "all", config.evaluation.codebook_samples)
    scorer = TokenizerScorer(
        partial(numbered_batches, source, _windows(config), indices, size),
        partial(numbered_batches, source, _windows(config), counted, size),
        variant=TOKENIZERS[config.model],
        size=max(config.views.sizes),
        batch_size=size,
        steps=config.evaluation.steps,
    )
    return scorer, ""


def _windows(config: ConfigDict) -> WindowRecipe:
    return WindowRecipe(TOKENIZERS[config.model].modality, config.data.tile, max(config.views.sizes))


def _report(
    config: ConfigDict,
    source: Source,
    scorer: TokenizerScorer | None,
    reason: str,
    latest: Mapping[int, dict[str, Any]],
    workdir: Path,
    report: Mapping[str, Any],
    bind: Bind,
    state: Mapping[str, Any],
) -> dict[str, Any]:
    """Draw report.png and return what report.json says of the reconstructions."""
    results: dict[str, Any] = {"reconstruction": reason}
    if scorer:
        results = {"reconstruction": latest.get(config.steps) or scorer(bind, state["params"])}
        if "ema" in state["extra"]:
            results["reconstruction_ema"] = scorer(bind, state["extra"]["ema"])
    pictures = _pictures(config, source, bind, state["params"])
    if jax.process_index() == 0:
        tokenizer_report(
            workdir / "report.png",
            name=TOKENIZERS[config.model].modality,
            history=read_csv(workdir / "metrics.csv"),
            evaluations=report["evaluations"],
            result=results["reconstruction"] if scorer else None,
            pictures=pictures,
            title=f"{config.model}, {config.steps} steps",
            note=reason,
        )
    return results


def _pictures(config: ConfigDict, source: Source, bind: Bind, params: Params) -> Pictures:
    """A few windows, of unseen regions where there are any, through the tokenizer and back."""
    name, recipe = TOKENIZERS[config.model].modality, _windows(config)
    indices = split_indices(source, "val", PICTURES)
    if not len(indices):
        indices = split_indices(source, "all", PICTURES)
    batch = next(numbered_batches(source, recipe, indices, PICTURES))

    @jax.jit
    def passage(params: Params, batch: Mapping[str, Any]):
        tokenizer: Tokenizer = bind(params).tokenizer
        truth = cut_images(batch, name, recipe.size)
        ids = tokenizer.tokenize(truth)
        noise = window_noise(batch["number"], recipe.windows, (*truth.shape[:3], tokenizer.variant.channels))
        estimate = tokenizer.decode_tokens(ids, config.evaluation.steps, noise=noise)
        return truth, estimate, tokenizer.codes(ids)

    return Pictures(*(part[:PICTURES] for part in fetch(passage(params, batch))))
