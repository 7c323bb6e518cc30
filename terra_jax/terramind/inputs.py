"""What TerraMind sees of an image: the stream's bands in order, standardised."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from data_pipelines.modalities import modality
from terra_jax.errors import ConfigError
from terra_jax.nn.normalisation import arrange_bands
from terra_jax.terramind.streams import Stream


def standard_pixels(
    image: Num[Array, "b h w c"],
    stream: Stream,
    *,
    statistics: str,
    normalised: bool = False,
    bands: Sequence[str] | None = None,
    fill: str | None = None,
) -> Float[Array, "b h w c"]:
    """One image as a pixel stream takes it.

    Args:
        image: channels last, in the units of the modality table; of a modality that the table does not know, as the
            network shall see it.
        stream: which.
        statistics: statistics set that standardises it.
        normalised: it is standardised already.
        bands: names of its channels, where they are not the stream's own.
        fill: what stands for bands that are not given: "zero", "mean" or "copy:BAND".

    Raises:
        ConfigError: channels that do not match the bands.
    """
    if image.ndim != 4:
        raise ConfigError(
            f"{stream.name} of shape {tuple(image.shape)} is no batch of images; give (b, h, w, channels)"
        )
    mean, std = np.zeros(len(stream.bands), np.float32), np.ones(len(stream.bands), np.float32)
    if stream.known:
        mean, std = modality(stream.modality).statistics_for(statistics, stream.bands)
    raw = not normalised
    image = jnp.asarray(image, jnp.float32)
    image = arrange_bands(image, stream.modality, stream.bands, bands or stream.bands, fill, mean * raw)
    return (image - mean) / std if raw else image
