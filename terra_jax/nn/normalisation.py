"""Physical units to what a network sees: bands chosen by name, missing ones filled explicitly, standardised."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from data_pipelines.modalities import ALIASES, MODALITIES, modality
from terra_jax.errors import ConfigError


def standardise(
    x: Num[Array, "... c"], name: str, statistics: str, bands: Sequence[str] | None = None
) -> Float[Array, "... c"]:
    """(x - mean) / std per band, float32.

    Args:
        x: raw physical values, channels last.
        name: modality.
        statistics: name of a statistics set of the modality table.
        bands: names of x's channels; default all bands of the table, in order.
    """
    mean, std = modality(name).statistics_for(statistics, bands)
    return (x.astype(jnp.float32) - mean) / std


def arrange_bands(
    x: Num[Array, "... c"], name: str, wanted: Sequence[str], given: Sequence[str] | None, fill: str | None, mean
) -> Num[Array, "... w"]:
    """Put channels into a network's band order.

    Args:
        x: values, channels last.
        name: modality, for messages and band names; one that the table does not know has the names that are given.
        wanted: bands of the network's input, in order.
        given: bands of `x`, in order; None means all bands of the modality table.
        fill: what stands for a wanted band that is not given: "zero", "mean" or "copy:BAND".
        mean: value per wanted band that "mean" puts in, in the units of `x`.

    Raises:
        ConfigError: if the channels do not match the names, or a band is missing and no fill is named.
    """
    names = [_band(name, band) for band in given] if given else list(modality(name).band_names)
    if x.shape[-1] != len(names):
        raise ConfigError(
            f"{name} has {x.shape[-1]} channels but {len(names)} band names ({', '.join(names)}); "
            f'name the channels with bands={{"{name}": [...]}}'
        )
    if list(wanted) == names:
        return x
    missing = [band for band in wanted if band not in names]
    if missing and fill is None:
        raise ConfigError(
            f'{name} lacks {", ".join(missing)}; say what stands for them with fill="zero", "mean" or "copy:B08"'
        )
    channels = [
        x[..., names.index(band)] if band in names else _filled(x, names, name, fill, float(np.asarray(mean)[i]))
        for i, band in enumerate(wanted)
    ]
    return jnp.stack(channels, axis=-1)


def _filled(x, names: list[str], name: str, fill: str | None, mean: float):
    if fill in ("zero", "mean"):
        return jnp.full(x.shape[:-1], mean if fill == "mean" else 0, x.dtype)
    if fill and fill.startswith("copy:"):
        source = _band(name, fill.removeprefix("copy:"))
        if source in names:
            return x[..., names.index(source)]
        raise ConfigError(f"fill={fill!r} copies {source}, which {name} was not given; copy one of {', '.join(names)}")
    raise ConfigError(f'unknown fill {fill!r}; use "zero", "mean" or "copy:BAND"')


def _band(name: str, band: str) -> str:
    """A band's name in the modality table; of a modality that the table does not know, the name itself."""
    if ALIASES.get(name, name) not in MODALITIES:
        return band
    table = modality(name)
    return table.bands[table.band_index(band)].name
