"""Models that begin as a pretrained encoder-decoder: its encoder, and the whole of it where thoughts are generated."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Num

from terra_jax.errors import ConfigError
from terra_jax.nn.initialisation import abstract, draw_params, run_once_options
from terra_jax.terramind.model import EncoderDecoder
from terra_jax.terramind.streams import Stream, nearest
from terra_jax.weights.rules import flatten_params, like_template

SAMPLER = "sampler"
"""Attribute that holds a whole encoder-decoder in a model that thinks."""


def begun_as(model: EncoderDecoder, make: Callable[[nnx.Rngs], Any], seed: int = 0) -> Any:
    """A backbone, or one that thinks, with the parameters of a pretrained encoder-decoder.

    Args:
        model: pretrained.
        make: constructor of the backbone.
        seed: of what the model does not have: embeddings of new modalities, registers.

    Raises:
        ConfigError: a modality or band that the model does not take, or a thought that it was not trained to give.
    """
    graphdef, template = abstract(make)
    built: Any = nnx.merge(graphdef, nnx.State(template))
    held = flatten_params(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    paths = flatten_params(template)
    leaves = {path: held[source] for path in paths if (source := path.removeprefix(f"{SAMPLER}.")) in held}
    given = {stream.name: stream for stream in model.encoder.streams}
    for name in getattr(built, "thoughts", ()):
        if name not in model.outputs:
            raise ConfigError(f"the model was not trained to give {name}; it gives {', '.join(model.outputs)}")
    for stream in (stream for stream in built.encoder.streams if stream.known):
        if stream.name not in given:
            raise ConfigError(f"the model takes no {stream.name}; did you mean {nearest(stream.name, list(given))}?")
        for prefix in ("", f"{SAMPLER}."):
            path = f"{prefix}encoder.embeddings.{stream.name}.kernel"
            if path in leaves and stream.bands != given[stream.name].bands:
                leaves[path] = _kept_bands(leaves[path], given[stream.name], stream)
    if new := [path for path in paths if path not in leaves]:
        draw = jax.jit(
            lambda: {path: leaf for path, leaf in flatten_params(draw_params(make, seed)).items() if path in new},
            compiler_options=run_once_options(),
        )
        leaves |= draw()
    return nnx.merge(graphdef, nnx.State(like_template(template, leaves)))


def _kept_bands(kernel: Num[Array, "n d"], given: Stream, kept: Stream) -> Num[Array, "m d"]:
    """The rows of a patch projection that belong to some of its bands."""
    if missing := [band for band in kept.bands if band not in given.bands]:
        raise ConfigError(f"the model's {given.name} has no {missing[0]}; it has {', '.join(given.bands)}")
    chosen = np.array([given.bands.index(band) for band in kept.bands])
    return kernel.reshape(-1, len(given.bands), kernel.shape[-1])[:, chosen].reshape(-1, kernel.shape[-1])
