"""What tokens keep of images, on regions that training has not seen, beside trivial reconstructions."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from data_pipelines.modalities import LAND_COVER, modality
from terra_jax.evaluation import reconstruction as measures
from terra_jax.evaluation.features import extract_features
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.terramind.tokenizer_objective import cut_images
from terra_jax.terramind.variants import TokenizerVariant
from terra_jax.training.objective import Bind, Params

CLIP_NAMES = {"none": "reconstruction", "unit": "sampled within 1 std"}
"""What figures with each clip of the sampler are called."""

Batch = Mapping[str, np.ndarray]
Batches = Callable[[], Iterator[Batch]]
Measures = Mapping[str, Mapping[str, Array]]
"""Name of an estimate -> measure -> (tile, window, ...)."""


class TokenizerScorer:
    """Figures of reconstructions and of the codebook's use.

    Args:
        images: function that iterates once over batches of `data_pipelines.recipes.tokenizer.WindowRecipe`, with the
            "number" of each tile: these are decoded.
        tokens: the same over the tiles whose tokens are counted.
        variant: of the tokenizer.
        size: pixels per side of an image.
        batch_size: tiles per call of the network.
        steps: of the diffusion.
    """

    def __init__(
        self, images: Batches, tokens: Batches, *, variant: TokenizerVariant, size: int, batch_size: int, steps: int
    ):
        self._images, self._tokens = images, tokens
        self._variant, self._size, self._batch_size, self._steps = variant, size, batch_size, steps
        self._compiled: dict[Bind, tuple[Callable, Callable]] = {}

    def __call__(self, bind: Bind, params: Params, clips: tuple[str, ...] = ("none",)) -> dict[str, Any]:
        """Score the tokenizer with these parameters.

        Args:
            bind: parameters -> module with the attribute `tokenizer`.
            params: its parameters.
            clips: of the sampler, one column of figures each; only "none" for land cover.

        Returns:
            JSON values: "names" of bands or classes, "unit", number of "images", figures of "scores" and "baselines" by
            name, and of the "codebook".
        """
        if bind not in self._compiled:
            self._compiled[bind] = (
                jax.jit(partial(self._measure, bind), static_argnames="clips"),
                jax.jit(partial(self._tokenize, bind)),
            )
        measure, tokenize = self._compiled[bind]
        rows = extract_features(partial(measure, params, clips=clips), self._images(), self._batch_size)
        ids = extract_features(partial(tokenize, params), self._tokens(), self._batch_size)
        rows = {name: {figure: _per_image(row) for figure, row in figures.items()} for name, figures in rows.items()}
        summary = self._class_summary if self._variant.kind == "vit" else self._band_summary
        return {
            "modality": self._variant.modality,
            "size": self._size,
            "images": len(next(iter(next(iter(rows.values())).values()))),
            **summary(rows),
            "codebook": measures.codebook_figures(ids, self._variant.codebook),
        }

    def _measure(self, bind: Bind, params: Params, batch: Mapping[str, Array], *, clips: tuple[str, ...]) -> Measures:
        tokenizer: Tokenizer = bind(params).tokenizer
        truth = cut_images(batch, self._variant.modality, self._size)
        tiles = batch["boxes"].shape[:2]
        if self._variant.kind == "vit":
            found = self._measure_classes(tokenizer, truth)
        else:
            found = self._measure_bands(tokenizer, truth, window_noise(batch["number"], tiles[1], truth.shape), clips)
        return jax.tree.map(lambda rows: rows.reshape(*tiles, *rows.shape[1:]), found)

    def _measure_classes(self, tokenizer: Tokenizer, truth: Int[Array, "n y x"]) -> Measures:
        estimate = tokenizer.decode_tokens(tokenizer.tokenize(truth))
        return {CLIP_NAMES["none"]: {"counts": measures.confusion(truth, estimate, len(LAND_COVER))}}

    def _measure_bands(
        self,
        tokenizer: Tokenizer,
        truth: Float[Array, "n y x c"],
        noise: Float[Array, "n y x c"],
        clips: tuple[str, ...],
    ) -> Measures:
        ids = tokenizer.tokenize(truth)
        estimates = {
            CLIP_NAMES[clip]: tokenizer.decode_tokens(ids, self._steps, noise=noise, clip=clip) for clip in clips
        }
        estimates["mean of the image"] = measures.image_means(truth)
        if "unit" in clips:  # what the bound costs even a perfect decoder
            bounded = jnp.clip(tokenizer.standardise(truth), -1, 1)
            estimates["original within 1 std"] = tokenizer.destandardise(bounded)
        return {name: measures.image_errors(truth, image, self._peak) for name, image in estimates.items()}

    def _tokenize(self, bind: Bind, params: Params, batch: Mapping[str, Array]) -> Int[Array, "b v h w"]:
        ids = bind(params).tokenizer.tokenize(cut_images(batch, self._variant.modality, self._size))
        return ids.reshape(*batch["boxes"].shape[:2], *ids.shape[1:])

    @property
    def _peak(self) -> float:
        return measures.PEAKS[modality(self._variant.modality).unit]

    def _band_summary(self, rows: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
        table = modality(self._variant.modality)
        figures = {name: measures.band_figures(errors, self._peak) for name, errors in rows.items()}
        decoded = set(CLIP_NAMES.values())
        return {
            "names": list(table.band_names),
            "unit": str(table.unit),
            "peak": self._peak,
            "steps": self._steps,
            "scores": {name: f for name, f in figures.items() if name in decoded},
            "baselines": {name: f for name, f in figures.items() if name not in decoded},
        }

    def _class_summary(self, rows: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
        ((name, row),) = rows.items()
        counts = row["counts"]
        constants = {"majority class": measures.majority_class, "majority of the image": measures.majority_of_images}
        return {
            "names": list(LAND_COVER),
            "unit": str(modality(self._variant.modality).unit),
            "scores": {name: measures.class_figures(counts.sum(0), LAND_COVER)},
            "baselines": {n: measures.class_figures(f(counts), LAND_COVER) for n, f in constants.items()},
        }


def window_noise(numbers: Int[Array, " b"], windows: int, shape: tuple[int, ...]) -> Num[Array, "n y x c"]:
    """Initial noise that follows from the number of a tile, whatever batch it is in.

    Args:
        numbers: of the tiles.
        windows: images per tile.
        shape: of all images, (tiles * windows, y, x, c).
    """
    draw = lambda number: jax.random.normal(jax.random.fold_in(jax.random.key(0), number), (windows, *shape[1:]))  # noqa: E731
    return jax.vmap(draw)(numbers).reshape(shape)


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """A scorer's result as flat figures: means over bands first, then each band's."""
    scores, codebook = result["scores"][CLIP_NAMES["none"]], result["codebook"]
    use = {"codes_used": codebook["share"], "code_perplexity": codebook["perplexity"]}
    if "iou" in scores:
        single = {f"iou/{name}": value for name, value in scores["iou"].items()}
        return {"accuracy": scores["accuracy"], "miou": scores["miou"], **use, **single}
    means = {measure: float(np.mean(scores[measure])) for measure in ("mae", "psnr", "ssim")}
    single = {f"mae/{name}": value for name, value in zip(result["names"], scores["mae"], strict=True)}
    return {**means, **use, **single}


def scores_table(result: Mapping[str, Any]) -> str:
    """Lines that set the reconstruction beside the trivial ones, and say how much of the codebook is in use."""
    columns = {**result["scores"], **result["baselines"]}
    rows = figure_rows(columns, result["names"])
    heading = f"{result['modality']}, {result['images']} images of {result['size']} x {result['size']} pixels"
    if "peak" in result:
        heading += f", {result['steps']} steps; MAE in {result['unit']}, PSNR and SSIM against {result['peak']:g}"
    width = max(map(len, columns)) + 3
    lines = [heading, f"{'':<28}" + "".join(f"{name:>{width}}" for name in columns)]
    lines += [f"{label:<28}" + "".join(f"{cell:>{width}}" for cell in cells) for label, cells in rows]
    book = result["codebook"]
    return "\n".join(
        [
            *lines,
            f"codebook: {book['used']} of {book['used'] + book['dead']} codes used ({book['share']:.0%}), "
            f"perplexity {book['perplexity']:.0f}, in {book['tokens']} tokens",
        ]
    )


def figure_rows(columns: Mapping[str, Any], names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Rows of a table: label, and a cell for each column's figures.

    Args:
        columns: name of an estimate -> figures of classes or of bands (`evaluation.reconstruction`).
        names: of the bands.
    """
    return _class_rows(columns) if "iou" in next(iter(columns.values())) else _band_rows(columns, names)


def _band_rows(columns: Mapping[str, Any], names: list[str]) -> Iterator[tuple[str, list[str]]]:
    for measure, digits in (("mae", 4), ("psnr", 4), ("ssim", 3)):
        yield f"{measure.upper()}, mean", [f"{np.mean(c[measure]):.{digits}g}" for c in columns.values()]
        if len(names) > 1:
            for i, name in enumerate(names):
                yield f"{measure.upper()}, {name}", [f"{c[measure][i]:.{digits}g}" for c in columns.values()]


def _class_rows(columns: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    yield "pixel accuracy, %", [f"{100 * c['accuracy']:.1f}" for c in columns.values()]
    yield "mean IoU, %", [f"{100 * c['miou']:.1f}" for c in columns.values()]
    for name in next(iter(columns.values()))["iou"]:
        yield f"IoU, {name.replace('_', ' ')}, %", [f"{100 * c['iou'][name]:.1f}" for c in columns.values()]


def _per_image(rows: np.ndarray) -> np.ndarray:
    """(tile, window, ...) -> (image, ...)."""
    return rows.reshape(-1, *rows.shape[2:])
