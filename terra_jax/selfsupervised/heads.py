"""Projection heads of self-distillation."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from terra_jax.nn.linear import Linear, parameter, trunc_normal
from terra_jax.parallel.activations import split_examples


class ProjectionHead(nnx.Module):
    """DINO's head: three-layer MLP, L2 normalisation, similarity to K unit prototypes (Caron et al. 2021, appendix C).

    Args:
        width: of the class token.
        prototypes: K, size of the output.
        hidden: of the MLP.
        bottleneck: width at which embedding and prototypes meet.
        rngs: source of the initial values.
        dtype: compute dtype of the MLP; normalisation and logits are float32.
    """

    def __init__(
        self,
        width: int,
        prototypes: int,
        *,
        rngs: nnx.Rngs,
        hidden: int = 2048,
        bottleneck: int = 256,
        dtype: DTypeLike = jnp.float32,
    ):
        self.fc1 = Linear({"embed": width}, {"mlp": hidden}, rngs=rngs, dtype=dtype)
        self.fc2 = Linear({"mlp": hidden}, {"mlp_out": hidden}, rngs=rngs, dtype=dtype)
        self.fc3 = Linear({"mlp": hidden}, {"bottleneck": bottleneck}, rngs=rngs, dtype=dtype)
        self.prototypes = parameter(trunc_normal, {"bottleneck": bottleneck, "prototypes": prototypes}, rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        """Logits: cosine similarities to the prototypes, float32."""
        x = jax.nn.gelu(self.fc1(split_examples(x)), approximate=False)
        x = jax.nn.gelu(self.fc2(x), approximate=False)
        x = self.fc3(x).astype(jnp.float32)
        prototypes = self.prototypes[...]
        # Norms are divided out of the product: normalising the prototypes first costs a second array of their size,
        # and on CPU, fused into the matmul, forty times the matmul.
        return split_examples((x * inverse_norm(x, axis=-1)) @ prototypes * inverse_norm(prototypes, axis=0))


def inverse_norm(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """1 / L2 norm along an axis, which is kept; finite, with a finite gradient, for the zero vector."""
    return jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis, keepdims=True), 1e-12))
