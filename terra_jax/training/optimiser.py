"""AdamW with warm-up and cosine schedules, clipping by tensor (as DINO) or over all, parts that thaw later."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from terra_jax.errors import ConfigError
from terra_jax.training.schedules import cosine_ramp, linear_ramp

PyTree = Any


@dataclass(frozen=True)
class AdamW:
    """Hyper-parameters of a run (Loshchilov and Hutter, 2019; schedules as Caron et al., 2021).

    Attributes:
        steps: number of updates of the whole run; the schedules end there.
        learning_rate: peak, reached after the warm-up.
        warmup_steps: length of the linear warm-up.
        first_learning_rate: where the warm-up starts.
        final_learning_rate: at the end of the cosine.
        weight_decay: at the start.
        final_weight_decay: at the end of its cosine; None keeps it constant.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        clip_norm: largest norm of the gradient, None for no clipping.
        clip: what that norm is of: every "tensor" by itself, or "all" of them together.
        undecayed: what does not decay: biases and all other "vectors" (DINO), or biases and scales of "norms" (4M).
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 0
    first_learning_rate: float = 0.0
    final_learning_rate: float = 0.0
    weight_decay: float = 0.04
    final_weight_decay: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None
    clip: str = "tensor"
    undecayed: str = "vectors"

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps} must be 1 or more")
        if self.warmup_steps < 0:
            raise ConfigError(f"optimizer.warmup_steps={self.warmup_steps} must be 0 or more")
        if self.clip not in ("tensor", "all"):
            raise ConfigError(f"optimizer.clip={self.clip!r} must be tensor or all")
        if self.undecayed not in ("vectors", "norms"):
            raise ConfigError(f"optimizer.undecayed={self.undecayed!r} must be vectors or norms")

    @classmethod
    def from_config(cls, section: Mapping[str, Any], steps: int) -> "AdamW":
        """Take a config's `optimizer` section (a clip_norm of 0 or None switches clipping off)."""
        values = dict(section)
        values["betas"] = tuple(values.get("betas", cls.betas))
        values["clip_norm"] = values.get("clip_norm") or None
        try:
            return cls(steps=steps, **values)
        except TypeError as error:
            raise ConfigError(
                f"section optimizer: {error}; known keys: {', '.join(cls.__dataclass_fields__)}"
            ) from None

    def learning_rate_at(self, step: jax.Array | int) -> jax.Array:
        """Learning rate of the update number `step`, counted from 0."""
        warmup = linear_ramp(step, self.first_learning_rate, self.learning_rate, self.warmup_steps)
        rest = self.steps - self.warmup_steps
        after = cosine_ramp(step - self.warmup_steps, self.learning_rate, self.final_learning_rate, rest)
        return jnp.where(step < self.warmup_steps, warmup, after)

    def weight_decay_at(self, step: jax.Array | int) -> jax.Array:
        """Weight decay of the update number `step`, counted from 0."""
        final = self.weight_decay if self.final_weight_decay is None else self.final_weight_decay
        return cosine_ramp(step, self.weight_decay, final, self.steps)

    def transform(self, axes: PyTree, frozen: Mapping[str, int]) -> optax.GradientTransformation:
        """Make the optax transformation for parameters with the given logical axes.

        Args:
            axes: names of the parameters' dimensions (`parallel.shardings.logical_axes`).
            frozen: path prefix -> number of first steps without any update.

        Raises:
            ConfigError: a frozen prefix that no parameter has.
        """
        labels = _frozen_labels(axes, frozen)
        thaws = {"": 0, **frozen}
        parts = {label: self._updated_from(thaws[label], axes) for label in set(jax.tree.leaves(labels))}
        return parts[""] if set(parts) == {""} else optax.partition(parts, labels)

    def _updated_from(self, start: int, axes: PyTree) -> optax.GradientTransformation:
        """Make the AdamW of those parameters whose first update is at step `start`."""
        chain = []
        if self.clip_norm is not None:
            by_tensor = self.clip == "tensor"
            chain = [clip_by_tensor(self.clip_norm, axes) if by_tensor else optax.clip_by_global_norm(self.clip_norm)]
        chain += [
            optax.scale_by_adam(*self.betas, eps=self.eps, mu_dtype=jnp.float32),
            optax.add_decayed_weights(
                lambda count: self.weight_decay_at(count + start), lambda params: _decayed(params, axes, self.undecayed)
            ),
            optax.scale_by_learning_rate(lambda count: self.learning_rate_at(count + start)),
        ]
        inner = optax.chain(*chain)
        return inner if start == 0 else optax.conditionally_mask(inner, lambda step: step >= start)


def clip_by_tensor(max_norm: float, axes: PyTree) -> optax.GradientTransformation:
    """Scale every tensor's gradient down to its own `max_norm`; a stack of layers is one tensor a layer.

    Args:
        max_norm: largest norm left as it is.
        axes: logical names, which tell the stacked axes.
    """

    def clip(gradient: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        within = tuple(i for i, name in enumerate(names) if name != "layers")
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient), axis=within, keepdims=True))
        return gradient * jnp.minimum(1.0, max_norm / (norm + 1e-6))

    return optax.stateless(lambda updates, _: _map_with_axes(clip, updates, axes))


def _map_with_axes(function: Any, tree: PyTree, axes: PyTree) -> PyTree:
    """`function(leaf, names)` over a tree in which masked-out parameters are left alone."""
    masked = optax.MaskedNode
    return jax.tree.map(
        lambda leaf, names: leaf if isinstance(leaf, masked) else function(leaf, names),
        tree,
        axes,
        is_leaf=lambda leaf: isinstance(leaf, masked),
    )


def _decayed(params: PyTree, axes: PyTree, undecayed: str) -> PyTree:
    """Which parameters decay; a stack of vectors is a vector a layer."""

    def decays(path: Any, leaf: Any, names: tuple[str | None, ...]) -> bool:
        if isinstance(leaf, optax.MaskedNode):
            return False
        if undecayed == "norms":
            return path[-1].key not in ("bias", "scale")
        return path[-1].key != "bias" and sum(name != "layers" for name in names) > 1

    is_masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    return jax.tree_util.tree_map_with_path(decays, params, axes, is_leaf=is_masked)


def _frozen_labels(axes: PyTree, frozen: Mapping[str, int]) -> PyTree:
    """Label every parameter with the prefix that freezes it, or ""."""
    is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731

    def label(path: Any, _: Any) -> str:
        name = "/".join(entry.key for entry in path) + "/"
        return next((prefix for prefix in frozen if name.startswith(prefix.rstrip("/") + "/")), "")

    labels = jax.tree_util.tree_map_with_path(label, axes, is_leaf=is_names)
    for prefix in set(frozen) - set(jax.tree.leaves(labels)):
        raise ConfigError(f"frozen prefix {prefix!r} names no parameter; it must be a path such as 'head/last_layer'")
    return labels
