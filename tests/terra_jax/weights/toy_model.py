"""A small model with everything a weight map can say."""

import jax
import numpy as np

from terra_jax.weights.rules import Fixed, Ignored, Rule, Tied, WeightMap, linear, norm

LAYERS, WIDTH, HEADS = 3, 8, 2
INDEX = np.arange(16).reshape(4, 4)


def weight_map(**changes) -> WeightMap:
    return WeightMap(
        Rule("cls_token", "cls", "1 1 d -> d"),
        Rule("embed.mod@224.weight", "embed.mod.kernel", "o i h w -> h w i o"),
        *norm("blocks.{i}.norm1", "blocks.norm1"),
        Rule("blocks.{i}.attn.qkv.weight", "blocks.qkv.kernel", "(c h k) i -> i c h k"),
        Fixed("blocks.{i}.attn.index", (4, 4), lambda: INDEX, "int64"),
        *linear("blocks.{i}.mlp", "blocks.mlp"),
        Rule("scale.0.weight", "scale", optional=True),
        *norm("norm", "norm"),
        Tied("head.weight", to="embed.mod@224.weight"),
        Ignored("fc.*"),
        training_only=("fusion",),
        **changes,
    )


SHAPES = {
    "cls": (WIDTH,),
    "embed": {"mod": {"kernel": (2, 2, 3, WIDTH)}},
    "blocks": {
        "norm1": {"scale": (LAYERS, WIDTH), "bias": (LAYERS, WIDTH)},
        "qkv": {"kernel": (LAYERS, WIDTH, 3, HEADS, WIDTH // HEADS)},
        "mlp": {"kernel": (LAYERS, WIDTH, 5), "bias": (LAYERS, 5)},
    },
    "scale": (WIDTH,),
    "norm": {"scale": (WIDTH,), "bias": (WIDTH,)},
    "fusion": {"query": (5, WIDTH)},
}


def _each(make, node=None):
    node = SHAPES if node is None else node
    return {name: _each(make, child) if isinstance(child, dict) else make(child) for name, child in node.items()}


def template():
    """The parameters' shapes."""
    return _each(lambda shape: jax.ShapeDtypeStruct(shape, np.float32))


def params(seed: int = 0):
    """Random parameters."""
    rng = np.random.default_rng(seed)
    return _each(lambda shape: rng.standard_normal(shape, dtype=np.float32))
