"""TerraFM's parameters under the public PyTorch names (public terrafm.py; one flat, unprefixed state dict)."""

from terra_jax.terrafm.stems import STEM_CHANNELS
from terra_jax.terrafm.variants import Variant
from terra_jax.weights.rules import Ignored, Rule, WeightMap, linear, norm


def weight_map(variant: Variant) -> WeightMap:
    """The whole correspondence for one size, in the public order of keys.

    No public weights hold the fusion's keys, queries and pooling vector, nor has the public class a place for them.
    """
    pixels, heads = {"p": variant.patch, "q": variant.patch}, {"h": variant.heads}
    projection, torch, jax = "patch_embed.projection", "blocks.{i}", "blocks.blocks"
    rows = [
        Rule("cls_token", "cls", "1 1 d -> d"),
        Rule("pos_embed", "positions", "1 n d -> n d"),
        *(Rule(f"patch_embed.{stem}_embed", f"patch_embed.{stem}.modality", "1 d -> d") for stem in STEM_CHANNELS),
    ]
    for stem in STEM_CHANNELS:
        conv, embedding = f"patch_embed.conv2d_{stem}", f"patch_embed.{stem}.embedding"
        rows += [
            Rule(f"{conv}.weight", f"{embedding}.kernel", "d c p q -> (p q c) d", pixels),
            Rule(f"{conv}.bias", f"{embedding}.bias"),
        ]
    return WeightMap(
        *rows,
        *linear(f"{projection}.proj1", f"{projection}.value", bias=False),
        *norm(f"{projection}.norm_input", f"{projection}.norm"),
        *linear(f"{projection}.proj2", f"{projection}.hidden"),
        *linear(f"{projection}.proj3", f"{projection}.out"),
        *norm(f"{torch}.norm1", f"{jax}.norm1"),
        Rule(f"{torch}.attn.qkv.weight", f"{jax}.attention.qkv.kernel", "(c h k) i -> i c h k", {"c": 3, **heads}),
        Rule(f"{torch}.attn.qkv.bias", f"{jax}.attention.qkv.bias", "(c h k) -> c h k", {"c": 3, **heads}),
        Rule(f"{torch}.attn.proj.weight", f"{jax}.attention.out.kernel", "o (h k) -> h k o", heads),
        Rule(f"{torch}.attn.proj.bias", f"{jax}.attention.out.bias"),
        *norm(f"{torch}.norm2", f"{jax}.norm2"),
        *linear(f"{torch}.mlp.fc1", f"{jax}.mlp.up"),
        *linear(f"{torch}.mlp.fc2", f"{jax}.mlp.down"),
        *norm("norm", "norm"),
        Ignored("head.*"),  # of a classifier or of pretraining; the public forward uses none
        training_only=("patch_embed.fusion",),
    )
