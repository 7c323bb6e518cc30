"""How well hidden tokens are named, and modalities drawn from others, on regions that training has not seen.

Each figure stands beside a trivial one: the loss beside the cross-entropy of the tokens' frequencies, images beside
the commonest class or the mean.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from data_pipelines.modalities import LAND_COVER, Unit, modality
from terra_jax.evaluation import reconstruction as measures
from terra_jax.evaluation.features import extract_features
from terra_jax.nn.fsq import FSQ
from terra_jax.terramind.model import EncoderDecoder
from terra_jax.terramind.objective import decode_batch
from terra_jax.terramind.streams import PIXELS
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.terramind.tokenizer_evaluation import figure_rows, window_noise
from terra_jax.terramind.tokenizer_objective import cut_images
from terra_jax.training.objective import Bind, Params

GENERATED, CEILING = "generated", "from the true tokens"
"""Names of estimates; the second is as good as the tokenizer lets it be."""

_SMOOTHING = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)

Batch = Mapping[str, np.ndarray]
Batches = Callable[[], Iterator[Batch]]


# ---- loss ---------------------------------------------------------------------------------------------------------


class ValidationLoss:
    """Cross-entropy of hidden tokens by stream, beside that of a unigram fitted on the tokens of training.

    Args:
        batches: function that iterates once over batches of `data_pipelines.recipes.terramind.DualScaleRecipe`.
        counts: function that counts every token of the training samples: stream -> (vocabulary,); called once.
        outputs: the model's output streams.
        size: pixels per side of the images.
        batch_size: examples per call of the network.
    """

    def __init__(
        self,
        batches: Batches,
        counts: Callable[[], Mapping[str, Int[np.ndarray, " v"]]],
        *,
        outputs: tuple[str, ...],
        size: int,
        batch_size: int,
    ):
        self._batches, self._count = batches, counts
        self._outputs, self._size, self._batch_size = outputs, size, batch_size
        self._counts: Mapping[str, np.ndarray] | None = None
        self._compiled: dict[Bind, Callable] = {}

    def __call__(self, bind: Bind, params: Params) -> dict[str, Any]:
        """Evaluate the model with these parameters.

        Args:
            bind: parameters -> module with the attribute `model`.
            params: its parameters.

        Returns:
            JSON values: stream -> "loss", "unigram" (nats a token) and number of "targets", of the streams that the
            examples ask for.
        """
        if self._counts is None:
            self._counts = self._count()
        if bind not in self._compiled:
            self._compiled[bind] = jax.jit(partial(_losses, bind, size=self._size))
        rows = extract_features(partial(self._compiled[bind], params), self._batches(), self._batch_size)
        result = {}
        for i, name in enumerate(self._outputs):
            chosen = rows["stream"] == i
            if chosen.any():
                result[name] = {
                    "loss": float(rows["loss"][chosen].mean(dtype=np.float64)),
                    "unigram": unigram(self._counts[name], rows["label"][chosen]),
                    "targets": int(chosen.sum()),
                }
        return result


def _losses(bind: Bind, params: Params, batch: Mapping[str, Array], *, size: int) -> dict[str, Array]:
    model: EncoderDecoder = bind(params).model
    decoded, targets = decode_batch(model, batch, size)
    _, losses = model.token_loss(decoded, targets, jnp.zeros(targets.stream.shape))
    return {"loss": losses, "stream": targets.stream, "label": targets.label}


def unigram(counts: Int[np.ndarray, " v"], labels: Int[np.ndarray, " n"]) -> float:
    """Cross-entropy, nats, of labels under the frequencies of tokens.

    Something is added to every count, so that no token is impossible: of several amounts the one that suits these very
    labels best. The comparison is the stricter for it.

    Args:
        counts: of every token in training.
        labels: tokens to be named.
    """
    counts = np.asarray(counts, np.float64)
    smoothed = [counts + amount for amount in _SMOOTHING]
    return float(min(np.log(total.sum()) - np.log(total[labels]).mean() for total in smoothed))


# ---- modalities from others ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A modality that is drawn from another without any training for it.

    Attributes:
        given: whose pixels are seen.
        asked: what is drawn, through its tokenizer.
    """

    given: str
    asked: str

    @property
    def title(self) -> str:
        """What it is called in figures."""
        return f"{self.asked} from {self.given}"


class ZeroShot:
    """Figures of one probe: all tokens are named at once, from nothing but the given pixels, and decoded.

    Of classes the likeliest token is decoded, of other images the mean of the codes under the model's probabilities:
    the estimate that errors are smallest for, not a draw.

    Args:
        probe: what is drawn from what.
        batches: function that iterates once over batches of `data_pipelines.recipes.terramind.TranslationRecipe`, with
            the "number" of each sample and the true rasters.
        tokenizer: of the modality that is asked for.
        size: pixels per side of the images.
        batch_size: samples per call of the network.
        steps: of the diffusion.
    """

    def __init__(self, probe: Probe, batches: Batches, tokenizer: Tokenizer, *, size: int, batch_size: int, steps: int):
        self.probe = probe
        self._batches, self._tokenizer = batches, tokenizer
        self._size, self._batch_size, self._steps = size, batch_size, steps
        self._references: dict[str, Any] | None = None

    def __call__(self, bind: Bind, params: Params) -> dict[str, Any]:
        """Score the model with these parameters.

        Args:
            bind: parameters -> module with the attribute `model`.
            params: its parameters.

        Returns:
            JSON values: "names" of bands or classes, "unit", number of "images", and figures of the "scores" and the
            "baselines" by name.
        """
        if self._references is None:
            self._references = self._measure_references()
        rows = self._rows(lambda batch: self._errors(batch, self._decoded(self._codes(bind, params, batch), batch)))
        if self._is_classes:
            majority = measures.class_figures(measures.majority_class(rows["counts"]), LAND_COVER)
            baselines = {"majority class": majority}
        else:
            baselines = {"mean": self._figures(self._references["mean"])}
        return {
            "unit": str(modality(self.probe.asked).unit),
            "images": len(next(iter(rows.values()))),
            "names": list(LAND_COVER if self._is_classes else modality(self.probe.asked).band_names),
            "scores": {GENERATED: self._figures(rows), CEILING: self._figures(self._references[CEILING])},
            "baselines": baselines,
        }

    def pictures(self, bind: Bind, params: Params, count: int) -> dict[str, np.ndarray]:
        """The first images: "given", "truth" and "estimate", (n, y, x, ...) in physical units."""

        def drawn(batch: Mapping[str, Array]) -> dict[str, Array]:
            return {
                "given": _cut(batch, self.probe.given, self._size),
                "truth": _cut(batch, self.probe.asked, self._size),
                "estimate": self._decoded(self._codes(bind, params, batch), batch),
            }

        rows = extract_features(drawn, [next(self._batches())], self._batch_size)
        return {name: images[:count] for name, images in rows.items()}

    @property
    def _is_classes(self) -> bool:
        return modality(self.probe.asked).unit is Unit.CLASS

    def _rows(self, function: Callable[[Mapping[str, Array]], Any]) -> Any:
        return extract_features(function, self._batches(), self._batch_size)

    def _measure_references(self) -> dict[str, Any]:
        """What does not depend on the model: the images of the true tokens and, of bands, the mean of all images."""
        side = self._size // self._tokenizer.variant.patch

        def of_true_tokens(batch: Mapping[str, Array]) -> dict[str, Array]:
            codes = self._tokenizer.codes(batch["targets/label"].reshape(-1, side, side))
            return self._errors(batch, self._decoded(codes, batch))

        rows = {CEILING: self._rows(of_true_tokens)}
        if not self._is_classes:
            means = self._rows(lambda batch: _cut(batch, self.probe.asked, self._size).mean((1, 2)))
            mean = means.mean(0, dtype=np.float64).astype(np.float32)
            rows["mean"] = self._rows(lambda batch: self._errors(batch, mean))
        return rows

    def _codes(self, bind: Bind, params: Params, batch: Mapping[str, Array]) -> Float[Array, "b h w k"]:
        # Without what the model does not take, all probes share what is compiled.
        spare = {"number"}
        if self.probe.asked not in PIXELS:
            spare |= {f"{self.probe.asked}/{gsd}" for gsd in modality(self.probe.asked).grids}
        seen = {name: array for name, array in batch.items() if name not in spare}
        stream, levels = f"tok_{self.probe.asked}", self._tokenizer.variant.levels
        return _named(bind, params, seen, size=self._size, stream=stream, levels=levels, likeliest=self._is_classes)

    def _decoded(self, codes: Float[Array, "b h w k"], batch: Mapping[str, Array]) -> Num[Array, "b y x ..."]:
        shape = (len(codes), self._size, self._size, self._tokenizer.variant.channels)
        return self._tokenizer.decode_codes(codes, self._steps, noise=window_noise(batch["number"], 1, shape))

    def _errors(self, batch: Mapping[str, Array], estimate: Num[Array, "..."]) -> dict[str, Array]:
        return _errors_of(_cut(batch, self.probe.asked, self._size), estimate, 0.0 if self._is_classes else self._peak)

    def _figures(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        if self._is_classes:
            return measures.class_figures(rows["counts"].sum(0), LAND_COVER)
        return measures.band_figures(rows, self._peak)

    @property
    def _peak(self) -> float:
        return measures.PEAKS[modality(self.probe.asked).unit]


@partial(jax.jit, static_argnames=("bind", "size", "stream", "levels", "likeliest"))
def _named(
    bind: Bind,
    params: Params,
    batch: Mapping[str, Array],
    *,
    size: int,
    stream: str,
    levels: tuple[int, ...],
    likeliest: bool,
) -> Float[Array, "b h w k"]:
    """Codes of one stream's patches: of the likeliest tokens, or in the mean under the model's probabilities."""
    model: EncoderDecoder = bind(params).model
    decoded, _ = decode_batch(model, batch, size)
    book = FSQ(levels)
    table = book.codes(jnp.arange(book.size))

    def of_image(rows: Float[Array, "t d"]) -> Float[Array, "t k"]:
        logits = model.logits(rows, stream)[:, : book.size]
        return table[logits.argmax(-1)] if likeliest else jax.nn.softmax(logits) @ table

    side = size // model.variant.patch
    return jax.lax.map(of_image, decoded).reshape(-1, side, side, len(levels))  # logits of one image at a time


_cut = jax.jit(cut_images, static_argnames=("name", "size"))


@partial(jax.jit, static_argnames="peak")
def _errors_of(truth: Num[Array, "b y x ..."], estimate: Num[Array, "..."], peak: float) -> dict[str, Array]:
    """What is kept of each image: pixels by true and estimated class, or errors of every band."""
    if truth.ndim == 3:
        return {"counts": measures.confusion(truth, estimate, len(LAND_COVER))}
    return measures.image_errors(truth, jnp.broadcast_to(estimate, truth.shape), peak)


# ---- what is written down -----------------------------------------------------------------------------------------


def loss_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """`ValidationLoss`'s result as flat figures: means over streams first, then each stream's."""
    means = {key: float(np.mean([row[key] for row in result.values()])) for key in ("loss", "unigram")}
    return {**means, **{f"{key}/{name}": row[key] for name, row in result.items() for key in ("loss", "unigram")}}


def probe_figures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Figures of the probes, by their titles: the leading ones and those of the trivial estimate."""
    figures = {}
    for title, result in results.items():
        ((baseline, trivial),) = result["baselines"].items()
        for measure in ("accuracy", "miou") if "accuracy" in trivial else ("mae", "rmse"):
            figures[f"{title}/{measure}"] = float(np.mean(result["scores"][GENERATED][measure]))
            figures[f"{title}/{measure} of the {baseline}"] = float(np.mean(trivial[measure]))
    return figures


def scores_table(result: Mapping[str, Any]) -> str:
    """Lines that set losses beside the unigram's, and drawn modalities beside trivial ones."""
    lines = [f"{'cross-entropy, nats a token':<28}{'model':>9}{'unigram':>9}{'targets':>9}"]
    lines += [
        f"{name:<28}{row['loss']:>9.3f}{row['unigram']:>9.3f}{row['targets']:>9}"
        for name, row in result["validation"].items()
    ]
    for title, probe in result["zero_shot"].items():
        if isinstance(probe, str):
            lines.append(f"{title}: {probe}")
            continue
        columns = {**probe["scores"], **probe["baselines"]}
        width = max(map(len, columns)) + 3
        lines += ["", f"{title}, {probe['images']} images; MAE in {probe['unit']}" if "mae" in columns[GENERATED]
                  else f"{title}, {probe['images']} images"]  # fmt: skip
        lines += [f"{'':<28}" + "".join(f"{name:>{width}}" for name in columns)]
        rows = figure_rows(columns, probe["names"])
        lines += [f"{label:<28}" + "".join(f"{cell:>{width}}" for cell in cells) for label, cells in rows]
    return "\n".join(lines)
