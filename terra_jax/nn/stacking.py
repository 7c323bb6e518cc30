"""Depth by `lax.scan`: one traced block, parameters stacked on a leading "layers" axis, optional rematerialisation.

Compile time does not grow with depth, and a rematerialisation policy is one word of a config.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from terra_jax.errors import ConfigError
from terra_jax.parallel.activations import split_examples

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""Name -> what the backward pass keeps; `none` keeps everything and recomputes nothing."""


def remat_policy(name: str) -> Callable | None:
    """The policy of that name; None for keeping everything.

    Raises:
        ConfigError: if it is unknown.
    """
    if name not in REMAT_POLICIES:
        raise ConfigError(f"unknown remat policy {name!r}; choose one of {', '.join(REMAT_POLICIES)}")
    return REMAT_POLICIES[name]


class Stack(nnx.Module):
    """`depth` blocks of the same shape, run one after another.

    Args:
        make_block: rngs -> block, a module called as `block(x, drop, key, *shared)`.
        depth: number of blocks.
        rngs: source of the initial values, a fresh key per block.
        drop_path: drop rate of the last block; rates grow linearly from 0 at the first.
        remat: a key of REMAT_POLICIES.

    Raises:
        ConfigError: if the rematerialisation policy is unknown.
    """

    def __init__(
        self,
        make_block: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        *,
        rngs: nnx.Rngs,
        drop_path: float = 0.0,
        remat: str = "none",
    ):
        self.blocks = stacked(make_block, depth, rngs)
        self.depth = depth
        self.drop_path = drop_path
        self.policy = remat_policy(remat)

    def __call__(
        self, x: Float[Array, "b n d"], key: Key[Array, ""] | None = None, *, every: bool = False, shared: tuple = ()
    ) -> tuple[Float[Array, "b n d"], Any]:
        """Run all blocks.

        Args:
            x: tokens.
            key: randomness of drop path; None runs deterministically.
            every: also return the output of every block, (depth, b, n, d).
            shared: what every block is given besides, such as a mask.
        """
        rates = jnp.linspace(0.0, self.drop_path, self.depth)
        keys = None if key is None or not self.drop_path else jax.random.split(key, self.depth)
        graphdef, state = nnx.split(self.blocks)
        return scan_blocks(graphdef, state, x, rates, keys, self.policy, every=every, shared=shared)


def scan_blocks(
    graphdef: nnx.GraphDef,
    state: Any,
    x: Any,
    rates: Any,
    keys: Any,
    policy: Callable | None,
    *,
    every=False,
    shared=(),
) -> tuple[Any, Any]:
    """Run blocks one after another, each on the result of the one before.

    Args:
        graphdef, state: of a block whose parameters are stacked (`stacked`, split by NNX).
        x: what the first block takes.
        rates, keys: drop rate and random key (None: deterministic) of every block, stacked.
        policy: what the backward pass keeps (`remat_policy`).
        every: also return the output of every block.
        shared: further arguments of every block.
    """

    def body(x, layer):
        state, rate, key = layer
        x = split_examples(nnx.merge(graphdef, state)(x, rate, key, *shared))
        return x, (x if every else None)

    if policy is not None:
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(body, split_examples(x), (state, rates, keys))


def stacked(make_block: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """A block whose parameters are those of `depth` blocks, stacked, their axis names led by "layers"."""
    made: list[tuple[nnx.GraphDef, nnx.State]] = []

    def draw(key: jax.Array) -> dict[str, Any]:
        made.append(nnx.split(make_block(nnx.Rngs(params=key))))  # traced once; kept for the names of the axes
        return nnx.to_pure_dict(made[0][1])

    values = jax.vmap(draw)(jax.random.split(rngs.params(), depth))
    graphdef, single = made[0]
    flat = dict(nnx.to_flat_state(nnx.State(values)))
    state = [
        (path, nnx.Param(flat[path], axes=("layers", *variable.get_metadata()["axes"])))
        for path, variable in nnx.to_flat_state(single)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(state))
