"""What the trainer knows of a model family: one contract, all of its methods pure."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import jax
from flax import nnx

from data_pipelines.recipes.spec import ArraySpec

PyTree: TypeAlias = Any
Params: TypeAlias = dict[str, Any]
"""Nested dict of parameter arrays, keyed as the module's attributes: `params["encoder"]["blocks"][...]`."""
Bind: TypeAlias = Callable[[Params], Any]
"""Puts parameters (or an EMA copy of them) into the module that `Objective.build` made."""


class Objective(Protocol):
    """A pretraining task: the module, what rides along with it, and the loss.

    The trainer shards, accumulates, differentiates, clips, saves and restores without knowing more than this.
    Nothing here may keep state: whatever the next step depends on lives in `params` or `extra`.

    An objective may also have `extra_axes`, entry of `extra` -> logical names of that array's dimensions, by which it
    lies on the mesh as parameters do; without a name, what mirrors no parameter is on every device.
    """

    @property
    def batch_spec(self) -> Mapping[str, ArraySpec]:
        """Name -> per-example shape and dtype of the batch; every array of a batch has the examples in front."""
        ...

    @property
    def frozen(self) -> Mapping[str, int]:
        """Parameter path prefix ("head/last_layer") -> number of first steps in which it is not updated at all.

        While frozen a parameter sees neither gradient, decay nor moments; its Adam step count starts when it thaws.
        """
        ...

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Make the module with all trained parameters (only `nnx.Param` variables).

        Attributes named as the parts of the model's spec ("encoder", "tokenizer") are the public model; every other
        attribute is a training-only part.
        """
        ...

    def extra(self, params: Params) -> PyTree:
        """First value of what rides along: EMA teacher (`{"teacher": params-like}`), centres, frozen parts."""
        ...

    def loss(
        self,
        bind: Bind,
        params: Params,
        extra: PyTree,
        batch: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, tuple[PyTree, Mapping[str, jax.Array]]]:
        """Mean loss of a batch, with what it leaves behind.

        Args:
            bind: makes the module from `params`, or from the teacher in `extra`.
            params: what is differentiated.
            extra: as `extra` or the last `after_update` returned it; constant here.
            batch: arrays as in `batch_spec` with the (micro-)batch in front.
            key: random key of this step (and micro-batch).
            step: int32 scalar, number of updates done so far.

        Returns:
            `(loss, (tally, metrics))`. The tally is a pytree of sums over examples: micro-batches add theirs, so that
            `after_update` sees the same as with one big batch. Metrics are scalars that are averaged.
        """
        ...

    def after_update(self, extra: PyTree, params: Params, tally: PyTree, step: jax.Array) -> PyTree:
        """Return the next `extra` (EMA step, centres) from the updated parameters and the whole batch's tally."""
        ...
