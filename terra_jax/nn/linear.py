"""Affine maps and the norm that all families share; every parameter carries the logical names of its axes."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from terra_jax.parallel.activations import split_examples

Initialiser = Callable[..., Array]
"""(key, shape, dtype) -> values, as `jax.nn.initializers` makes them."""

trunc_normal = jax.nn.initializers.truncated_normal(stddev=0.02)
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


def parameter(init: Initialiser, axes: Mapping[str, int], rngs: nnx.Rngs) -> nnx.Param:
    """A float32 parameter of the shape and logical axis names that `axes` gives, in order."""
    value = init(rngs.params(), tuple(axes.values()), jnp.float32)
    return nnx.Param(value, axes=tuple(axes))


class Linear(nnx.Module):
    """Affine map from the last axes of an array to new ones.

    Args:
        inputs: logical name -> size of the axes that are contracted, e.g. {"heads": 12, "head_dim": 64}.
        outputs: logical name -> size of the axes that replace them.
        rngs: source of the initial values.
        bias: whether to add a bias.
        init: initialiser of the kernel, whose fan-in is the product of `inputs`.
        dtype: compute dtype; parameters stay float32.
    """

    def __init__(
        self,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        *,
        rngs: nnx.Rngs,
        bias: bool = True,
        init: Initialiser = trunc_normal,
        bias_init: Initialiser = zeros,
        dtype: DTypeLike = jnp.float32,
    ):
        self.kernel = parameter(init, {**inputs, **outputs}, rngs)
        self.bias = parameter(bias_init, outputs, rngs) if bias else None
        self.contracted = len(inputs)
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """(..., *inputs) -> (..., *outputs) in the compute dtype."""
        y = contract(split_examples(x.astype(self.dtype)), self.kernel[...].astype(self.dtype), self.contracted)
        return split_examples(y if self.bias is None else y + self.bias[...].astype(self.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def contract(x: Float[Array, "..."], kernel: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
    """`tensordot` whose gradient of the kernel is one matmul into the kernel's own layout.

    JAX's own rule makes the transposed gradient and turns it, for which XLA copies the largest of the operands.
    """
    return jnp.tensordot(x, kernel, axes=axes)


def _contract_forward(x, kernel, axes):
    # The bare product: rematerialisation policies that keep dots do not see into a custom rule.
    return jnp.tensordot(x, kernel, axes=axes), (x, kernel)


def _contract_backward(axes, residuals, dy):
    x, kernel = residuals
    leading, outputs = x.ndim - axes, tuple(range(axes, kernel.ndim))
    dx = jax.lax.dot_general(dy, kernel, ((tuple(range(leading, dy.ndim)), outputs), ((), ())))
    # One contracted axis: with several, XLA copies again.
    rows, outcomes = x.reshape(-1, *x.shape[leading:]), dy.reshape(-1, *dy.shape[leading:])
    return dx, jax.lax.dot_general(rows, outcomes, (((0,), (0,)), ((), ())))


contract.defvjp(_contract_forward, _contract_backward)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis; statistics in float32, result in the input's dtype."""

    def __init__(self, axis: Mapping[str, int], *, rngs: nnx.Rngs, eps: float = 1e-6, bias: bool = True):
        self.scale = parameter(ones, axis, rngs)
        self.bias = parameter(zeros, axis, rngs) if bias else None
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalise and rescale."""
        f = x.astype(jnp.float32)
        centred = f - f.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps) * self.scale[...]
        return (normed if self.bias is None else normed + self.bias[...]).astype(x.dtype)


def kaiming_uniform_fan_in(fan_in: int) -> Initialiser:
    """PyTorch's default for convolutions and their biases: uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -bound, bound)


def xavier_uniform(fan_in: int, fan_out: int) -> Initialiser:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = math.sqrt(6 / (fan_in + fan_out))

    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -bound, bound)
