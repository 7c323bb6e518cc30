"""Packed sequences: which tokens of which streams the encoder sees and the decoder must give, as static-shape indices.

The data pipeline decides; the model embeds no other token than these.
"""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Int

PADDING = -1
"""Stream of a slot that holds no token."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedInputs:
    """What the encoder sees.

    Attributes:
        stream: index into the model's `inputs`; -1 where a slot is empty.
        position: patch of the image, row by row; of a sequence, the rank among its visible tokens.
        token: discrete token; 0 for pixels.
    """

    stream: Int[Array, "b n"]
    position: Int[Array, "b n"]
    token: Int[Array, "b n"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedTargets:
    """What the decoder must give.

    Attributes:
        stream: index into the model's `outputs`; -1 where a slot is empty.
        position: patch of the image, row by row; of a sequence, the rank among its targets.
        token: what the decoder is told, for sequences only: the token before the label.
        label: the token to give.
    """

    stream: Int[Array, "b m"]
    position: Int[Array, "b m"]
    token: Int[Array, "b m"]
    label: Int[Array, "b m"]
