"""A pretraining run of TerraMind, put together from a config: pixels and tokens, objective, evaluation, report."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.recipes.terramind import TranslationRecipe
from data_pipelines.sources import Source
from data_pipelines.sources.tokens import TokenCorpus
from data_pipelines.transforms.spans import hide
from terra_jax.errors import ConfigError
from terra_jax.nn.initialisation import abstract
from terra_jax.terramind.evaluation import Probe, ValidationLoss, ZeroShot, loss_figures, probe_figures
from terra_jax.terramind.fingerprint import fingerprint
from terra_jax.terramind.objective import PretrainingObjective, pixel_streams
from terra_jax.terramind.pretraining import Run, make_objective, make_recipe, open_corpus
from terra_jax.terramind.pretraining_report import pretraining_report
from terra_jax.terramind.streams import STREAMS
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.training.data import numbered_batches, split_indices, training_indices, training_stream
from terra_jax.training.experiment import Experiment
from terra_jax.training.metrics import read_csv
from terra_jax.training.objective import Bind, Params

PROBES = (Probe("S2L2A", "LULC"), Probe("S2L2A", "NDVI"), Probe("S1GRD", "S2L2A"), Probe("S1RTC", "S2L2A"))
"""What is drawn from what while a model trains, as far as the run has the streams and the tokenizers."""

PICTURES = 4


def experiment(config: ConfigDict) -> Experiment:
    """Everything that the trainer needs for one run.

    Args:
        config: as `configs/terramind/_model.py` documents it.
    """
    run = Run(config, open_corpus(config))
    recipe, objective = run.recipe(config.seed), run.objective()
    source = run.open()
    training = training_indices(source, config)
    scorer = Scorer(run, source, "val", training)
    latest: dict[int, dict[str, Any]] = {}

    def evaluate(bind: Bind, state: Mapping[str, Any], step: int) -> dict[str, float]:
        latest.clear()
        latest[step] = scorer(bind, state["params"])
        return figures(latest[step])

    return Experiment(
        objective=objective,
        loader=training_stream(config, source, recipe, training),
        evaluators={"val": evaluate} if scorer.applies else {},
        report=partial(_report, config, scorer, latest),
        options=run.options,
    )


def evaluate(config: ConfigDict, model: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Losses and zero-shot figures of given parameters on the config's data.

    Args:
        config: of the data, the tokens and the tokenizers.
        model: nested dict of the model's parameters.
        split: "val" or "test": regions that training leaves out; "all": every tile, of data that training has not seen.

    Raises:
        DataError: if the data has no tiles of that split.
    """
    run = Run(config, open_corpus(config))
    source = run.open()
    scorer = Scorer(run, source, split, training_indices(source, config))
    if not scorer.applies:
        raise DataError(f"{scorer.reason}; --split all scores every tile, if training has seen none of them")
    graphdef, _ = abstract(run.objective().build)

    def bind(params: Params) -> nnx.Module:
        return nnx.merge(graphdef, nnx.State(params))

    return scorer(bind, {"model": model})


def objective(config: ConfigDict) -> PretrainingObjective:
    """The objective alone: no data are opened, images have the model's usual size."""
    return make_objective(config, make_recipe(config, config.seed))


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """A scorer's result as flat figures: the mean losses first."""
    probes = {title: probe for title, probe in result["zero_shot"].items() if not isinstance(probe, str)}
    return {**loss_figures(result["validation"]), **probe_figures(probes)}


# ---- evaluation ---------------------------------------------------------------------------------------------------


class Scorer:
    """All that is measured of a run's model on regions that it has not seen.

    Args:
        run: whose.
        source: its data.
        split: of the tiles that are scored, or "all".
        training: positions of the training samples, whose tokens the unigram is fitted on.

    Attributes:
        applies: whether there is anything to score.
        reason: why not.
        probes: zero-shot evaluations by title; a text says why one is not made.
    """

    def __init__(self, run: Run, source: Source, split: str, training: np.ndarray):
        section = run.config.evaluation
        indices = split_indices(source, split, section.samples)
        self.applies = bool(len(indices))
        self.reason = "" if self.applies else f"no figures: the data has no tiles of the split {split!r}"
        self.probes: dict[str, ZeroShot | str] = {}
        if not self.applies:
            return
        self._validation = ValidationLoss(
            partial(numbered_batches, source, run.recipe(seed=0), indices, section.batch_size),
            partial(token_counts, run, source.index.keys[np.unique(training)]),
            outputs=run.outputs,
            size=run.size,
            batch_size=section.batch_size,
        )
        tokenizers = load_tokenizers(section.tokenizers, run.corpus)
        for probe in PROBES:
            self.probes[probe.title] = _zero_shot(run, source, probe, tokenizers.get(probe.asked), split)

    def __call__(self, bind: Bind, params: Params) -> dict[str, Any]:
        """Score the model with these parameters: JSON values "validation" and "zero_shot"."""
        probes = {t: probe if isinstance(probe, str) else probe(bind, params) for t, probe in self.probes.items()}
        return {"validation": self._validation(bind, params), "zero_shot": probes}


def load_tokenizers(paths: Mapping[str, str], corpus: TokenCorpus) -> dict[str, Tokenizer]:
    """The tokenizers that decode what a model gives, of which it is made sure that they made its tokens.

    Args:
        paths: modality -> weights; "" for none.
        corpus: tokens of the run.

    Raises:
        ConfigError: a modality that the corpus lacks, or another tokenizer than its tokens were made with.
    """
    from terra_jax import registry

    loaded = {}
    for name, path in paths.items():
        if not path:
            continue
        if name not in corpus.tokenizers:
            raise ConfigError(
                f"evaluation.tokenizers.{name}={path}: data.tokens has no tokens of {name}; "
                f"it has {', '.join(corpus.tokenizers)}"
            )
        card = corpus.tokenizers[name]
        loaded[name] = registry.load(str(card["model"]), path)
        if (found := fingerprint(loaded[name])) != card["fingerprint"]:
            raise ConfigError(
                f"evaluation.tokenizers.{name}={path} is tokenizer {found}, but data.tokens was made by "
                f"{card['fingerprint']}; give the weights that made the tokens, or tokenise with these"
            )
    return loaded


def token_counts(run: Run, keys: np.ndarray) -> dict[str, np.ndarray]:
    """How often each token occurs in samples of these keys, up to `evaluation.unigram_samples` of them, by stream."""
    counts = {name: np.zeros(STREAMS[name].vocabulary, np.int64) for name in run.outputs}
    members = np.flatnonzero(np.isin(run.corpus.index.keys, keys))
    chosen = np.random.default_rng(0).permutation(members)[: run.config.evaluation.unigram_samples]
    for record in (record for i in chosen for record in run.corpus.read_all(int(i))):
        for name in run.outputs:
            ids = record.ids.get(STREAMS[name].modality)
            if ids is None:
                continue
            if not STREAMS[name].is_image:  # as the decoder gives it where nothing is seen
                ids = hide(ids, np.ones(len(ids), bool), run.sentinels)[1][1:]
            counts[name] += np.bincount(ids.ravel(), minlength=len(counts[name]))
    return counts


def _zero_shot(run: Run, source: Source, probe: Probe, tokenizer: Tokenizer | None, split: str) -> ZeroShot | str:
    """One zero-shot evaluation, or why there is none."""
    section = run.config.evaluation
    if probe.given not in run.inputs or f"tok_{probe.asked}" not in run.outputs:
        return f"not made: streams lack {probe.given} or tok_{probe.asked}"
    if tokenizer is None:
        return f"not made: no evaluation.tokenizers.{probe.asked} is given"
    try:
        if probe.asked not in pixel_streams(run.inputs):
            source = run.open([probe.asked])
    except DataError as error:
        return f"not made: {error}"
    recipe = TranslationRecipe(
        run.recipe(seed=0).layout, run.config.data.tile, (probe.given,), (f"tok_{probe.asked}",), (probe.asked,)
    )
    indices = split_indices(source, split, section.probe_samples)
    made = partial(numbered_batches, source, recipe, indices, section.batch_size)
    if next(made(), None) is None:
        return f"not made: no tile of the split {split!r} has pixels of {probe.given} and {probe.asked}, and its tokens"
    return ZeroShot(probe, made, tokenizer, size=run.size, batch_size=section.batch_size, steps=section.diffusion_steps)


# ---- report -------------------------------------------------------------------------------------------------------


def _report(
    config: ConfigDict,
    scorer: Scorer,
    latest: Mapping[int, dict[str, Any]],
    workdir: Path,
    report: Mapping[str, Any],
    bind: Bind,
    state: Mapping[str, Any],
) -> dict[str, Any]:
    """Draw report.png and return what report.json says of losses and probes."""
    result: dict[str, Any] = {"validation": scorer.reason, "zero_shot": scorer.reason}
    if scorer.applies:
        result = latest.get(config.steps) or scorer(bind, state["params"])
    probes = {title: probe for title, probe in scorer.probes.items() if not isinstance(probe, str)}
    pictures = {
        title: (probe.probe, probe.pictures(bind, state["params"], PICTURES)) for title, probe in probes.items()
    }
    if jax.process_index() == 0:
        pretraining_report(
            workdir / "report.png",
            history=read_csv(workdir / "metrics.csv"),
            evaluations=report["evaluations"],
            result=result if scorer.applies else None,
            pictures=pictures,
            title=f"{config.model}, {config.steps} steps",
            note=scorer.reason,
        )
    return result
