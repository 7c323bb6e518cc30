"""What SkySense's networks see of each modality: bands in a fixed order, standardised."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from data_pipelines.modalities import ALIASES, modality
from terra_jax.errors import ConfigError
from terra_jax.nn.normalisation import arrange_bands

MODALITIES = ("HR", "S2L2A", "S1GRD")
"""What a sample is made of, in the order of the fusion's tokens."""

STATISTICS = "skysense"


def input_bands(name: str) -> tuple[str, ...]:
    """Bands that SkySense takes of a modality, in order: the table's, of Sentinel-2 those of 10 and 20 m."""
    return tuple(band.name for band in modality(name).bands if band.gsd <= 20)


def single(inputs: Mapping[str, Num[Array, "..."]], name: str) -> Num[Array, "..."]:
    """The one input of an encoder.

    Raises:
        ConfigError: anything else is given.
    """
    given = {ALIASES.get(key, key): value for key, value in inputs.items()}
    if set(given) != {name}:
        raise ConfigError(f'this encoder takes {{"{name}": image}}, but {", ".join(given) or "nothing"} is given')
    return given[name]


def standard_input(
    image: Num[Array, "... c"],
    name: str,
    *,
    statistics: str = STATISTICS,
    normalised: bool = False,
    bands: Sequence[str] | None = None,
    fill: str | None = None,
) -> Float[Array, "... w"]:
    """An image, or a series of them, as the network sees it.

    Args:
        image: channels last, in the units of the modality table.
        name: modality.
        statistics: statistics set that standardises it.
        normalised: it is standardised already.
        bands: names of its channels, where they are not `input_bands`.
        fill: what stands for bands that are not given: "zero", "mean" or "copy:BAND".

    Raises:
        ConfigError: channels that do not match the bands.
    """
    wanted = input_bands(name)
    mean, std = modality(name).statistics_for(statistics, wanted)
    image = jnp.asarray(image, jnp.float32)
    image = arrange_bands(image, name, wanted, bands or wanted, fill, mean * (not normalised))
    return image if normalised else (image - mean) / std
