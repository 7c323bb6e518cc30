"""Views of a batch on the device: one geometry cuts all three modalities, each view sees its own frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from data_pipelines.modalities import modality
from data_pipelines.recipes.skysense import BANDS, HR, SERIES
from terra_jax.nn.resizing import crop_resize, crop_resize_fine

DETAIL = modality(HR).detail
"""High-resolution pixels along the side of a Sentinel-2 pixel."""

Views = tuple[dict[str, Float[Array, "..."]], dict[str, Int[Array, "b t"]], dict[str, Bool[Array, "b t"]]]
"""Images (standardised, channels last), days of the year and frames that count, as `SkySense` takes them."""


def cut_views(batch: Mapping[str, Any], which: Sequence[int], size: int, statistics: str = "skysense") -> Views:
    """Some views of every example, those of one example next to each other.

    Args:
        batch: of `SkySenseRecipe`.
        which: numbers of the views; all become `size` pixels a side.
        size: side of the views, Sentinel-2 pixels; HR has 32 times as many.
        statistics: set that standardises the pixels.

    Returns:
        images: "HR" (b v, 32 size, 32 size, 3); "S2L2A" (b v, t, size, size, 10); "S1GRD" (b v, t, size, size, 2).
        days: series -> (b v, t) days of the year from 0.
        present: modality -> (b v, t) frames that count, t = 1 for HR.
    """
    chosen = jnp.asarray(tuple(which))
    boxes, flips = batch["boxes"][:, chosen], batch["flips"][:, chosen]
    images, days, present = {}, {}, {}
    if HR in batch:
        cut = crop_resize_fine(batch[HR], boxes * DETAIL, size * DETAIL, flips)
        images[HR] = _standardised(HR, cut, statistics).reshape(-1, *cut.shape[2:])
        present[HR] = batch["HR/present"][:, chosen].reshape(-1, 1)
    for name in _series(batch):
        frames = batch[f"{name}/frames"][:, chosen]
        grids = {
            gsd: jnp.take_along_axis(batch[f"{name}/{gsd}"][:, None], frames[..., None, None, None], axis=2)
            for gsd in _shipped(batch, name)
        }
        flat = {gsd: values.reshape(-1, *values.shape[2:]) for gsd, values in grids.items()}
        images[name] = _cut_series(name, flat, boxes.reshape(-1, 4), size, flips.reshape(-1, 2), statistics)
        days[name] = batch[f"{name}/days"][:, chosen].reshape(-1, frames.shape[-1])
        present[name] = batch[f"{name}/present"][:, chosen].reshape(-1, frames.shape[-1])
    return images, days, present


def whole_tiles(batch: Mapping[str, Any], statistics: str = "skysense") -> Views:
    """Whole tiles of an evaluation batch, at their own resolution; see `cut_views`.

    Args:
        batch: of `SkySenseTileRecipe`.
        statistics: set that standardises the pixels.
    """
    images, days, present = {}, {}, {}
    if HR in batch:
        images[HR] = _standardised(HR, jnp.moveaxis(batch[HR], 1, -1), statistics)
        present[HR] = batch["HR/present"]
    for name in _series(batch):
        grids = {gsd: batch[f"{name}/{gsd}"] for gsd in _shipped(batch, name)}
        count, side = len(grids[10]), grids[10].shape[-1]
        boxes = jnp.tile(jnp.array([0.0, 0.0, side, side], jnp.float32), (count, 1))
        images[name] = _cut_series(name, grids, boxes, side, None, statistics)
        days[name], present[name] = batch[f"{name}/days"], batch[f"{name}/present"]
    return images, days, present


def _series(batch: Mapping[str, Any]) -> list[str]:
    return [name for name in SERIES if f"{name}/10" in batch]


def _shipped(batch: Mapping[str, Any], name: str) -> list[int]:
    """Grids of a modality that the batch holds, finest first."""
    return [gsd for gsd in modality(name).grids if f"{name}/{gsd}" in batch]


def _cut_series(
    name: str,
    grids: Mapping[int, Array],
    boxes: Float[Array, "b 4"],
    size: int,
    flips: Bool[Array, "b 2"] | None,
    statistics: str,
) -> Float[Array, "b t size size c"]:
    """One view of each series: every frame through the same pair of matrices."""
    count, frames = grids[10].shape[:2]
    table = modality(name)
    held = {gsd: [table.bands[i].name for i in table.grids[gsd] if table.bands[i].name in BANDS[name]] for gsd in grids}
    # Frames and bands of a grid lie end to end, one grid behind the other.
    offset = {gsd: frames * sum(len(held[other]) for other in grids if other < gsd) for gsd in grids}
    place = {band: (gsd, bands.index(band)) for gsd, bands in held.items() for band in bands}
    order = [
        offset[gsd] + frame * len(held[gsd]) + i
        for frame in range(frames)
        for gsd, i in (place[band] for band in BANDS[name])
    ]
    stacked = {gsd: values.reshape(count, -1, *values.shape[-2:]) for gsd, values in grids.items()}
    cut = crop_resize(stacked, boxes[:, None], size, order, None if flips is None else flips[:, None])
    series = cut.reshape(count, size, size, frames, len(BANDS[name])).transpose(0, 3, 1, 2, 4)
    return _standardised(name, series, statistics)


def _standardised(name: str, image: Array, statistics: str) -> Float[Array, "..."]:
    mean, std = modality(name).statistics_for(statistics, BANDS[name])
    return (image.astype(jnp.float32) - mean) / std
