"""SkySense's parameters under the public PyTorch names, one flat state dict a part (public release, OpenMMLab classes).

Two layouts exist. "module" holds the keys of the public classes, which PyTorch loads with strict=True. "public" holds
those of the released files: the HR file has a mask token and lacks buffers and the norms of the first stages; the
Sentinel-2 file has the table of date positions. Either is read under the former, whatever of these it has or lacks.
"""

from functools import partial

import numpy as np

from terra_jax.errors import ConfigError
from terra_jax.nn.swin import SwinSize, log_offsets
from terra_jax.skysense.variants import FusionSize, SeriesSize
from terra_jax.weights.rules import WRAPPERS, Fixed, Ignored, Row, Rule, WeightMap, linear, norm

LAYOUTS = ("module", "public")
_FUSED = {".attn.Wqkv.": ".attn.in_proj_"}
"""SkySense++'s whole checkpoint comes from a fused attention, which keeps the same rows under another name."""


def check_layout(layout: str) -> str:
    """The layout's name.

    Raises:
        ConfigError: if it is unknown.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; choose {' or '.join(LAYOUTS)}")
    return layout


def hr_map(size: SwinSize, layout: str = "module") -> WeightMap:
    """The whole correspondence for the HR encoder, in the public order of keys."""
    public, stages = layout == "public", range(len(size.widths))
    unwritten = stages[:-1] if public else ()
    pixels = {"p": size.patch, "q": size.patch}
    rows: list[Row] = [
        Rule("mask_token", "mask_token", "1 1 d -> d") if public else Ignored("mask_token"),
        Rule("patch_embed.projection.weight", "embedding.kernel", "d c p q -> (p q c) d", pixels),
        Rule("patch_embed.projection.bias", "embedding.bias"),
        *norm("patch_embed.norm", "embedding_norm"),
    ]
    for stage in stages:
        rows += _stage(size, stage, buffers=not public)
    for stage in stages:
        if stage not in unwritten:
            weight, bias = norm(f"norm{stage}", f"norm{stage}")
            optional = stage != stages[-1]
            rows += [Rule(rule.torch, rule.jax, optional=optional) for rule in (weight, bias)]
    return WeightMap(
        *rows,
        training_only=tuple(f"norm{stage}" for stage in unwritten),
        wrappers=(*WRAPPERS, "backbone_hr", "backbone_gep"),
    )


def _stage(size: SwinSize, stage: int, buffers: bool) -> list[Row]:
    torch, jax, depth = f"stages.{stage}", f"stage{stage}", size.depths[stage]
    rows: list[Row] = []
    if stage:
        # PyTorch's unfold puts the channels before the pixels.
        kernel = Rule(
            f"{torch}.downsample.reduction.weight",
            f"{jax}.merging.reduction.kernel",
            "o (c p q) -> (p q c) o",
            {"p": 2, "q": 2},
        )
        rows += [kernel, *norm(f"{torch}.downsample.norm", f"{jax}.merging.norm")]
    window, heads = (size.windows[stage], size.pretrained_windows[stage]), size.heads[stage]
    if depth > 1:
        rows += _block(f"{torch}.blocks.{{2i}}", f"{jax}.pairs.plain", heads, *window, buffers)
        rows += _block(f"{torch}.blocks.{{2i+1}}", f"{jax}.pairs.shifted", heads, *window, buffers)
    if size.extra_norm and depth >= size.extra_norm:
        rows += norm(f"{torch}.blocks.{{{size.extra_norm}i+{size.extra_norm - 1}}}.norm3", f"{jax}.norms")
    if depth % 2:
        rows += _block(f"{torch}.blocks.{depth - 1}", f"{jax}.last", heads, *window, buffers)
    return rows


def _block(torch: str, jax: str, heads: int, window: int, pretrained: int, buffers: bool) -> list[Row]:
    attention, own, split = f"{torch}.attn.w_msa", f"{jax}.attention", {"h": heads}
    side = 2 * window - 1
    tables: list[Row] = [
        Fixed(f"{attention}.relative_coords_table", (1, side, side, 2), partial(_coordinates, window, pretrained)),
        Fixed(f"{attention}.relative_position_index", (window**2,) * 2, partial(_pair_index, window), "int64"),
    ]
    return [
        Rule(f"{attention}.logit_scale", f"{own}.logit_scale", "h 1 1 -> h"),
        Rule(f"{attention}.q_bias", f"{own}.query_bias", "(h k) -> h k", split),
        Rule(f"{attention}.v_bias", f"{own}.value_bias", "(h k) -> h k", split),
        *(tables if buffers else ()),
        *linear(f"{attention}.cpb_mlp.0", f"{own}.bias_up"),
        *linear(f"{attention}.cpb_mlp.2", f"{own}.bias_down", bias=False),
        Rule(f"{attention}.qkv.weight", f"{own}.qkv.kernel", "(c h k) i -> i c h k", {"c": 3, **split}),
        Rule(f"{attention}.proj.weight", f"{own}.out.kernel", "o (h k) -> h k o", split),
        Rule(f"{attention}.proj.bias", f"{own}.out.bias"),
        *norm(f"{torch}.norm1", f"{jax}.norm1"),
        *_mlp(torch, jax),
        *norm(f"{torch}.norm2", f"{jax}.norm2"),
    ]


def _mlp(torch: str, jax: str) -> list[Row]:
    return [*linear(f"{torch}.ffn.layers.0.0", f"{jax}.mlp.up"), *linear(f"{torch}.ffn.layers.1", f"{jax}.mlp.down")]


def _coordinates(window: int, pretrained: int) -> np.ndarray:
    return log_offsets(window, pretrained)[None]


def _pair_index(window: int) -> np.ndarray:
    """Row of the coordinate table for each pair of a window's pixels."""
    position = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij")).reshape(2, -1)
    down, right = position[:, :, None] - position[:, None] + window - 1
    return down * (2 * window - 1) + right


def series_map(size: SeriesSize, layout: str = "module", dates: bool = False) -> WeightMap:
    """The whole correspondence for the encoder of a series, in the public order of keys.

    Args:
        size: sizes.
        layout: "module" or "public".
        dates: whether the encoder keeps the table of date positions.
    """
    pixels = {"p": size.patch, "q": size.patch}
    table: list[Row] = []
    if dates:
        table = [Rule("ctpe", "dates", "1 t d -> t d", beside=layout == "module")]
    elif size.modality == "S2L2A":
        table = [Ignored("ctpe")]
    return WeightMap(
        Rule("cls_token", "cls", "1 1 d -> d"),
        Rule("pos_embed", "positions", "1 n d -> n d"),
        Rule("patch_embed.projection.weight", "embedding.kernel", "d c p q -> (p q c) d", pixels),
        Rule("patch_embed.projection.bias", "embedding.bias"),
        *_layer("layers.{i}", "blocks.blocks", size.heads),
        *table,
        wrappers=(*WRAPPERS, {"S2L2A": "backbone_s2", "S1GRD": "backbone_s1"}[size.modality]),
        aliases=_FUSED,
    )


def _layer(torch: str, jax: str, heads: int) -> list[Row]:
    attention, own, split = f"{torch}.attn.attn", f"{jax}.attention", {"c": 3, "h": heads}
    return [
        *norm(f"{torch}.ln1", f"{jax}.norm1"),
        Rule(f"{attention}.in_proj_weight", f"{own}.qkv.kernel", "(c h k) i -> i c h k", split),
        Rule(f"{attention}.in_proj_bias", f"{own}.qkv.bias", "(c h k) -> c h k", split),
        Rule(f"{attention}.out_proj.weight", f"{own}.out.kernel", "o (h k) -> h k o", {"h": heads}),
        Rule(f"{attention}.out_proj.bias", f"{own}.out.bias"),
        *norm(f"{torch}.ln2", f"{jax}.norm2"),
        *_mlp(torch, jax),
    ]


def head_map(size: SeriesSize) -> WeightMap:
    """The whole correspondence for an alignment head: the channels of its convolution are (channel, row, column)."""
    pixels = {"p": size.patch, "q": size.patch}
    return WeightMap(
        Rule("decoder.0.weight", "projection.kernel", "(c p q) d 1 1 -> d p q c", pixels),
        Rule("decoder.0.bias", "projection.bias", "(c p q) -> p q c", pixels),
        wrappers=(*WRAPPERS, {"S2L2A": "head_s2", "S1GRD": "head_s1"}[size.modality]),
    )


def fusion_map(size: FusionSize) -> WeightMap:
    """The whole correspondence for the fusion, in the public order of keys; the misspelt one is the public one."""
    last = size.depth - 1
    return WeightMap(
        Rule("cls_token", "cls", "1 1 d -> d"),
        *linear("porj_linear", "projection"),
        *(_layer("layers.{i}", "blocks.blocks", size.heads) if last else ()),
        *_layer(f"layers.{last}", "readout", size.heads),
        wrappers=(*WRAPPERS, "fusion"),
        aliases=_FUSED,
    )
