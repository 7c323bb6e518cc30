"""What the config of a pretraining means: tokens, streams, budgets, objective."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.recipes.terramind import DualScaleLayout, DualScaleRecipe, StreamLayout
from data_pipelines.sources import Source
from data_pipelines.sources.dual_scale import DualScaleSource
from data_pipelines.sources.tokens import TokenCorpus
from data_pipelines.transforms.budgets import Component
from terra_jax.errors import ConfigError
from terra_jax.nn.precision import compute_dtype
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.terramind.objective import PretrainingObjective, pixel_streams
from terra_jax.terramind.streams import INPUTS, OUTPUTS, STREAMS, streams_of
from terra_jax.terramind.variants import MODELS, Variant
from terra_jax.training.data import open_data


class Run:
    """What training and evaluation share: the corpus, the model's streams and the data.

    Args:
        config: as `configs/terramind/_model.py` documents it.
        corpus: its tokens.

    Raises:
        ConfigError, DataError: streams, tokens or budgets that do not fit the model or each other.
    """

    def __init__(self, config: ConfigDict, corpus: TokenCorpus):
        self.config, self.corpus = config, corpus
        self.inputs, self.outputs = tuple(config.streams.inputs), tuple(config.streams.outputs)
        self.size, self.sentinels = corpus.size, _sentinels(config, corpus)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Modality -> fingerprint of the tokenizer that made the tokens which the model sees or gives."""
        used = {STREAMS[name].modality for name in (*self.inputs, *self.outputs) if STREAMS[name].vocabulary}
        return {name: str(self.corpus.tokenizers[name]["fingerprint"]) for name in sorted(used)}

    @property
    def options(self) -> dict[str, Any]:
        """Options of the model that go with its parameters; JSON values."""
        return {"inputs": list(self.inputs), "outputs": list(self.outputs), "fingerprints": self.fingerprints}

    def open(self, truths: Sequence[str] = ()) -> Source:
        """Pixels joined to tokens, with true rasters of further modalities."""
        names = dict.fromkeys([*pixel_streams(self.inputs), *truths])
        if not names:
            raise ConfigError("streams.inputs has no pixels; pretraining is on pixels and tokens: name one, as S2L2A")
        return DualScaleSource(open_data(self.config, tuple(names), self.config.data.partial), self.corpus)  # type: ignore[return-value]

    def recipe(self, seed: int) -> DualScaleRecipe:
        """How examples are masked."""
        return make_recipe(self.config, seed, self.size, self.sentinels)

    def objective(self) -> PretrainingObjective:
        """What is trained, on batches of the recipe."""
        return make_objective(self.config, self.recipe(self.config.seed), self.size, self.fingerprints)


def make_recipe(
    config: ConfigDict, seed: int, size: int | None = None, hidden: tuple[int, ...] = ()
) -> DualScaleRecipe:
    """How examples are masked.

    Args:
        config: of the run.
        seed: of all draws.
        size: pixels per side of the tokenised images; None: the model's usual ones.
        hidden: ids that stand for hidden spans of coordinates.

    Raises:
        ConfigError, DataError: unknown streams, a size that is not made of patches, or impossible budgets.
    """
    inputs, outputs = tuple(config.streams.inputs), tuple(config.streams.outputs)
    masking, variant = config.masking, variant_of(config)
    return DualScaleRecipe(
        _layout(inputs, outputs, variant.patch, size or variant.image, hidden),
        tile=config.data.tile,
        mixture=_mixture(masking, inputs, outputs),
        input_tokens=tuple(masking.input_tokens),
        target_tokens=tuple(masking.target_tokens),
        least=masking.least.to_dict(),
        seed=seed,
    )


def make_objective(
    config: ConfigDict,
    recipe: DualScaleRecipe,
    size: int | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> PretrainingObjective:
    """The objective of a config, for batches that the recipe makes; no data is opened for it.

    Args:
        config: of the run.
        recipe: as of `make_recipe`.
        size: pixels per side of the tokenised images; None: the model's usual ones.
        fingerprints: modality -> tokenizer whose tokens the model sees.
    """
    variant = variant_of(config)
    return PretrainingObjective(
        variant=variant,
        batch_spec=recipe.batch_spec,
        inputs=tuple(config.streams.inputs),
        outputs=tuple(config.streams.outputs),
        size=size or variant.image,
        loss_kind=config.objective.loss,
        model_options={
            "remat": config.remat,
            "dtype": compute_dtype(config.dtype),
            "fingerprints": fingerprints or {},
        },
    )


def variant_of(config: ConfigDict) -> Variant:
    """Sizes of the model that a config names."""
    return MODELS[config.model.removeprefix("terramind_v1_").removesuffix("_encdec")]


def open_corpus(config: ConfigDict) -> TokenCorpus:
    """The tokens that a config names.

    Raises:
        ConfigError: if it names none, an unknown stream, or one of which there are no tokens or more different ones
            than the model can name.
        DataError: a folder that is no whole corpus.
    """
    folders = [folder for folder in config.data.tokens if folder]
    if not folders:
        raise ConfigError("data.tokens names no folder; give those that `terra-jax tokenize` made, DIR or (DIR,DIR)")
    streams = (*streams_of(config.streams.inputs, INPUTS), *streams_of(config.streams.outputs, OUTPUTS))
    corpus = TokenCorpus(*folders)
    for stream in streams:
        if stream.vocabulary and stream.modality not in corpus.tokenizers:
            raise ConfigError(
                f"{folders[0]} has no tokens of {stream.modality}, it has {', '.join(corpus.tokenizers)}; leave "
                f"{stream.name} out of streams.inputs and streams.outputs, or tokenise it"
            )
        if stream.vocabulary and corpus.tokenizers[stream.modality]["codebook"] > stream.vocabulary:
            held = corpus.tokenizers[stream.modality]["codebook"]
            raise ConfigError(f"{folders[0]} has {held} different tokens of {stream.modality}, TerraMind's model "
                              f"{stream.vocabulary}; tokenise with its own tokenizer")  # fmt: skip
    return corpus


def _layout(
    inputs: Sequence[str], outputs: Sequence[str], patch: int, size: int, sentinels: tuple[int, ...]
) -> DualScaleLayout:
    if size % patch:
        raise ConfigError(
            f"data.tokens are of images of {size} pixels, which are not made of patches of {patch}; "
            "tokenise at the model's size"
        )
    patches = (size // patch) ** 2
    streams = {
        name: StreamLayout(name, known.modality, known.kind, patches if known.is_image else known.length)
        for name, known in STREAMS.items()
    }
    given, asked = streams_of(inputs, INPUTS), streams_of(outputs, OUTPUTS)
    return DualScaleLayout(tuple(streams[s.name] for s in given), tuple(streams[s.name] for s in asked), sentinels)


def _sentinels(config: ConfigDict, corpus: TokenCorpus) -> tuple[int, ...]:
    """Ids that stand for hidden spans, of the vocabulary that made the corpus' coordinates."""
    if "coords" not in corpus.tokenizers:
        return ()
    path = config.data.coordinates
    vocabulary = CoordinateTokenizer.from_json(path) if path else CoordinateTokenizer.build()
    if vocabulary.fingerprint != corpus.tokenizers["coords"]["fingerprint"]:
        raise ConfigError(
            f"data.coordinates={path!r} is not the vocabulary that made the coordinates of data.tokens; give its JSON"
        )
    return vocabulary.sentinels


def _mixture(masking: ConfigDict, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[Component, ...]:
    """One component for each of `alphas`, which gives and asks for everything, and one for each modality's pixels."""
    pixels = pixel_streams(inputs)
    targets = dict.fromkeys(outputs, masking.pixel_targets)
    return (
        *(Component(dict.fromkeys(inputs, alpha), dict.fromkeys(outputs, alpha)) for alpha in masking.alphas),
        *(Component({name: 1.0}, targets, masking.pixels / len(pixels)) for name in pixels if masking.pixels),
    )
