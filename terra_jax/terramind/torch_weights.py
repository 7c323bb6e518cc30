"""The tokenizers' parameters under the public PyTorch names (one flat, unprefixed state dict a tokenizer)."""

from functools import partial

import numpy as np

from terra_jax.nn.positions import sincos_positions
from terra_jax.nn.unet import Step, plan
from terra_jax.terramind.variants import TokenizerVariant
from terra_jax.weights.rules import Fixed, Row, Rule, WeightMap, linear, norm


def weight_map(variant: TokenizerVariant) -> WeightMap:
    """The whole correspondence for one tokenizer, in the public order of keys."""
    pixels = {"p": variant.patch, "q": variant.patch}
    rows = [
        _table("encoder", variant),
        Rule("encoder.proj.weight", "encoder.embedding.kernel", "d c p q -> (p q c) d", pixels),
        Rule("encoder.proj.bias", "encoder.embedding.bias"),
        *_trunk("encoder", variant.heads),
        *_pointwise("quant_proj", "encoder.out"),
    ]
    if variant.unet:
        down, up = plan(variant.unet)
        rows += _unet(down, up)
    else:
        rows += [
            _table("decoder", variant),
            *_trunk("decoder", variant.heads),
            *linear("decoder.out_proj", "decoder.out"),
            *_pointwise("post_quant_proj", "decoder.embedding"),
        ]
    return WeightMap(*rows)


def _table(side: str, variant: TokenizerVariant) -> Fixed:
    """The position table, which PyTorch keeps with the parameters though nothing trains it."""
    shape = (1, variant.width, variant.table, variant.table)
    return Fixed(f"{side}.pos_emb", shape, partial(_channels_first, variant.table, variant.width))


def _channels_first(table: int, width: int) -> np.ndarray:
    return sincos_positions(table, width).transpose(2, 0, 1)[None]


def _trunk(side: str, heads: int) -> list[Row]:
    torch, jax = f"{side}.blocks.{{i}}", f"{side}.trunk.blocks.blocks"
    split = {"c": 3, "h": heads}
    return [
        *norm(f"{torch}.norm1", f"{jax}.norm1"),
        *norm(f"{torch}.norm2", f"{jax}.norm2"),
        Rule(f"{torch}.attn.qkv.weight", f"{jax}.attention.qkv.kernel", "(c h k) i -> i c h k", split),
        Rule(f"{torch}.attn.qkv.bias", f"{jax}.attention.qkv.bias", "(c h k) -> c h k", split),
        Rule(f"{torch}.attn.proj.weight", f"{jax}.attention.out.kernel", "o (h k) -> h k o", {"h": heads}),
        Rule(f"{torch}.attn.proj.bias", f"{jax}.attention.out.bias"),
        *linear(f"{torch}.mlp.fc1", f"{jax}.mlp.up"),
        *linear(f"{torch}.mlp.fc2", f"{jax}.mlp.down"),
        *norm(f"{side}.norm_mlp", f"{side}.trunk.norm"),
        *linear(f"{side}.post_mlp.fc1", f"{side}.trunk.mlp.up"),
        *linear(f"{side}.post_mlp.fc2", f"{side}.trunk.mlp.down"),
    ]


def _unet(down: tuple[Step, ...], up: tuple[Step, ...]) -> list[Row]:
    """The UNet's blocks are lists in PyTorch; a block's parts are numbered residual block, attention, resampling."""
    rows: list[Row] = [
        *linear("decoder.time_embed.0", "decoder.time1"),
        *linear("decoder.time_embed.2", "decoder.time2"),
        *_conv("decoder.input_blocks.0.0", "decoder.stem"),
    ]
    for i, step in enumerate(down):
        torch, jax = f"decoder.input_blocks.{i + 1}", f"decoder.down.{i:02}"
        rows += _conv(f"{torch}.0.op", jax) if step.resample == "down" else _block(torch, jax, step)
    bottom = Step(down[-1].outputs, down[-1].outputs)
    rows += [
        *_residual("decoder.middle_block.0", "decoder.middle.00.res", bottom),
        *_attention("decoder.middle_block.1", "decoder.middle.00.attention"),
        *_residual("decoder.middle_block.2", "decoder.middle.01.res", bottom),
    ]
    for i, step in enumerate(up):
        rows += _block(f"decoder.output_blocks.{i}", f"decoder.up.{i:02}", step)
    return [*rows, *norm("decoder.out.0", "decoder.norm"), *_conv("decoder.out.2", "decoder.out")]


def _block(torch: str, jax: str, step: Step) -> list[Row]:
    rows = _residual(f"{torch}.0", f"{jax}.res", step)
    if step.attention:
        rows += _attention(f"{torch}.1", f"{jax}.attention")
    if step.resample == "up":
        rows += _conv(f"{torch}.{1 + step.attention}.conv", f"{jax}.up")
    return rows


def _residual(torch: str, jax: str, step: Step) -> list[Row]:
    return [
        *norm(f"{torch}.in_layers.0", f"{jax}.norm1"),
        *_conv(f"{torch}.in_layers.2", f"{jax}.conv1"),
        *linear(f"{torch}.emb_layers.1", f"{jax}.time"),
        *norm(f"{torch}.out_layers.0", f"{jax}.norm2"),
        *_conv(f"{torch}.out_layers.3", f"{jax}.conv2"),
        *(_conv(f"{torch}.skip_connection", f"{jax}.skip") if step.inputs != step.outputs else []),
    ]


def _attention(torch: str, jax: str) -> list[Row]:
    """One head; its projections are one-dimensional convolutions in PyTorch."""
    return [
        *norm(f"{torch}.norm", f"{jax}.norm"),
        Rule(f"{torch}.qkv.weight", f"{jax}.attention.qkv.kernel", "(c h k) i 1 -> i c h k", {"c": 3, "h": 1}),
        Rule(f"{torch}.qkv.bias", f"{jax}.attention.qkv.bias", "(c h k) -> c h k", {"c": 3, "h": 1}),
        Rule(f"{torch}.proj_out.weight", f"{jax}.attention.out.kernel", "o (h k) 1 -> h k o", {"h": 1}),
        Rule(f"{torch}.proj_out.bias", f"{jax}.attention.out.bias"),
    ]


def _conv(torch: str, jax: str) -> list[Row]:
    return [Rule(f"{torch}.weight", f"{jax}.kernel", "o i y x -> y x i o"), Rule(f"{torch}.bias", f"{jax}.bias")]


def _pointwise(torch: str, jax: str) -> list[Row]:
    """A linear map that is a convolution of size 1 in PyTorch."""
    return [Rule(f"{torch}.weight", f"{jax}.kernel", "o i 1 1 -> i o"), Rule(f"{torch}.bias", f"{jax}.bias")]
