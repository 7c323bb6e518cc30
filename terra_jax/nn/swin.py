"""Swin Transformer V2 (Liu et al. 2022), channels last, pairs of blocks scanned.

It computes what the public OpenMMLab classes compute, in particular: maps are zero-padded at the bottom and the right
before the cyclic shift, padding is attended to, and a block that sees a map no larger than its window does not shift.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from terra_jax.errors import ConfigError
from terra_jax.nn.linear import LayerNorm, Linear, kaiming_uniform_fan_in, parameter, zeros
from terra_jax.nn.patches import patchify
from terra_jax.nn.stacking import remat_policy, scan_blocks, stacked
from terra_jax.nn.transformer import MLP, drop_path

EPS = 1e-5
BIAS_HIDDEN = 512
MOST_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class SwinSize:
    """Hyper-parameters; one entry a stage.

    Attributes:
        widths, depths, heads: of the stages.
        windows: pixels per side of the attention windows, on the stage's own grid.
        pretrained_windows: windows that the position biases were trained with, 0 where these are the stage's own.
        patch: image pixels per side of a pixel of the first stage.
        channels: of the image.
        extra_norm: every so many blocks of a stage the main branch is normed; 0 for never.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...] = (8, 8, 8, 8)
    pretrained_windows: tuple[int, ...] = (0, 0, 0, 0)
    patch: int = 4
    channels: int = 3
    extra_norm: int = 0

    def __post_init__(self):
        stages = [self.widths, self.depths, self.heads, self.windows, self.pretrained_windows]
        if len({len(entries) for entries in stages}) > 1:
            raise ConfigError("widths, depths, heads, windows and pretrained_windows need one entry for each stage")
        if self.extra_norm % 2:
            raise ConfigError(f"extra_norm={self.extra_norm} is odd, but blocks come in pairs; use an even number")

    @property
    def stride(self) -> int:
        """Image pixels per side of a pixel of the last stage."""
        return self.patch * 2 ** (len(self.widths) - 1)


class WindowAttention(nnx.Module):
    """Scaled cosine attention within windows, with a position bias from a small network (Swin V2, section 3)."""

    def __init__(self, width: int, heads: int, window: int, pretrained: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        head = {"heads": heads, "head_dim": width // heads}
        self.qkv = Linear({"embed": width}, {"qkv": 3, **head}, rngs=rngs, bias=False, dtype=dtype)
        self.query_bias = parameter(zeros, head, rngs)
        self.value_bias = parameter(zeros, head, rngs)
        self.logit_scale = parameter(jax.nn.initializers.constant(math.log(10)), {"heads": heads}, rngs)
        uniform = kaiming_uniform_fan_in(2)
        self.bias_up = Linear({"offset": 2}, {"bias": BIAS_HIDDEN}, rngs=rngs, init=uniform, bias_init=uniform)
        self.bias_down = Linear({"bias": BIAS_HIDDEN}, {"heads": heads}, rngs=rngs, bias=False)
        self.out = Linear(head, {"embed": width}, rngs=rngs, dtype=dtype)
        self.window = window
        self.pretrained = pretrained

    def __call__(
        self, x: Float[Array, "b w n d"], regions: Bool[np.ndarray, "w n n"] | None = None
    ) -> Float[Array, "b w n d"]:
        """Attend within each window.

        Args:
            x: pixels of the windows.
            regions: which pairs of a shifted window's pixels are neighbours on the ground; None for all.
        """
        qkv = self.qkv(x)
        q, k, v = (jnp.moveaxis(qkv[:, :, :, i], 2, 3) for i in range(3))
        q = q + self.query_bias[...].astype(q.dtype)[:, None]
        v = v + self.value_bias[...].astype(v.dtype)[:, None]
        scale = jnp.exp(jnp.minimum(self.logit_scale[...], MOST_LOGIT_SCALE))
        q = (_unit(q) * scale[:, None, None]).astype(v.dtype)
        k = _unit(k).astype(v.dtype)
        scores = jnp.einsum("bwhnd,bwhmd->bwhnm", q, k, preferred_element_type=jnp.float32) + self.position_bias()
        if regions is not None:
            scores = scores + jnp.where(regions, 0.0, -100.0)[:, None]
        weights = jax.nn.softmax(scores).astype(v.dtype)
        return self.out(jnp.einsum("bwhnm,bwhmd->bwnhd", weights, v))

    def position_bias(self) -> Float[Array, "h n n"]:
        """What is added to the score of each pair of pixels."""
        coordinates = jnp.asarray(log_offsets(self.window, self.pretrained))
        values = 16 * jax.nn.sigmoid(self.bias_down(jax.nn.relu(self.bias_up(coordinates))))
        # The offset of each pair as a product of one-hot matrices: gathers, and scatters backward, are slow everywhere.
        position = np.arange(self.window)
        offset = position[:, None] - position + self.window - 1
        pick = jnp.asarray((offset[..., None] == np.arange(2 * self.window - 1)).astype(np.float32))
        picked = jnp.einsum("ija,abh->ijbh", pick, values, precision="highest")
        bias = jnp.einsum("klb,ijbh->hikjl", pick, picked, precision="highest")
        return bias.reshape(-1, self.window**2, self.window**2)


def log_offsets(window: int, pretrained: int = 0) -> Float[np.ndarray, "k k 2"]:
    """Log-spaced coordinates of the (2 window - 1)^2 offsets between two pixels of a window, the inputs of the bias.

    Args:
        window: pixels per side.
        pretrained: window that the bias was trained with; 0 for the same.
    """
    offsets = np.arange(1 - window, window, dtype=np.float32)
    relative = 8 * offsets / np.float32((pretrained or window) - 1)
    spaced = np.sign(relative) * np.log2(np.abs(relative) + 1) / np.log2(np.float32(8))
    return np.stack(np.meshgrid(spaced, spaced, indexing="ij"), axis=-1).astype(np.float32)


def _unit(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Vectors of length one; those of zero, which padding has, stay zero and have a gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def shifted_regions(height: int, width: int, window: int, shift: int) -> Bool[np.ndarray, "w n n"]:
    """Which pixels of a shifted map's windows were neighbours before the shift."""

    def strips(length: int) -> np.ndarray:
        return np.digitize(np.arange(length), [length - window, length - shift])

    ids = 3 * strips(height)[:, None] + strips(width)
    ids = rearrange(ids, "(y p) (x q) -> (y x) (p q)", p=window, q=window)
    return ids[:, :, None] == ids[:, None, :]


class SwinBlock(nnx.Module):
    """x += LN(attention(x)); x += LN(MLP(x)): the norms close the branches."""

    def __init__(
        self,
        width: int,
        heads: int,
        window: int,
        pretrained: int,
        *,
        rngs: nnx.Rngs,
        shift: bool,
        pad_small_map: bool,
        dtype: DTypeLike,
    ):
        self.attention = WindowAttention(width, heads, window, pretrained, rngs=rngs, dtype=dtype)
        self.norm1 = LayerNorm({"embed": width}, rngs=rngs, eps=EPS)
        self.mlp = MLP(width, 4 * width, rngs=rngs, dtype=dtype)
        self.norm2 = LayerNorm({"embed": width}, rngs=rngs, eps=EPS)
        self.shift = window // 2 if shift else 0
        self.window = window
        self.pad_small_map = pad_small_map

    def __call__(
        self, x: Float[Array, "b h w d"], drop: Float[Array, ""], key: Key[Array, ""] | None
    ) -> Float[Array, "b h w d"]:
        """One block; `drop` is the probability of skipping a branch for a sample, used when `key` is given."""
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.norm1(self._attend(x)), drop, keys[0])
        return x + drop_path(self.norm2(self.mlp(x)), drop, keys[1])

    def _attend(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        height, width = x.shape[1:3]
        window, shift = self.window, self.shift
        if min(height, width) <= window and not self.pad_small_map:
            if min(height, width) < window:
                raise ConfigError(
                    f"a map of {height} x {width} pixels is smaller than the attention window of {window}; "
                    "give larger images or pad_small_map=True"
                )
            shift = 0
        x = jnp.pad(x, [(0, 0), (0, -height % window), (0, -width % window), (0, 0)])
        rows, columns = x.shape[1] // window, x.shape[2] // window
        if shift:
            x = jnp.roll(x, (-shift, -shift), axis=(1, 2))
        windows = rearrange(x, "b (y p) (x q) d -> b (y x) (p q) d", p=window, q=window)
        regions = shifted_regions(x.shape[1], x.shape[2], window, shift) if shift else None
        windows = self.attention(windows, regions)
        x = rearrange(windows, "b (y x) (p q) d -> b (y p) (x q) d", y=rows, x=columns, p=window, q=window)
        if shift:
            x = jnp.roll(x, (shift, shift), axis=(1, 2))
        return x[:, :height, :width]


class SwinPair(nnx.Module):
    """A block on plain windows and one on shifted ones."""

    def __init__(self, make_block: Callable[..., SwinBlock], rngs: nnx.Rngs):
        self.plain = make_block(rngs=rngs, shift=False)
        self.shifted = make_block(rngs=rngs, shift=True)

    def __call__(self, x: Float[Array, "b h w d"], drop: Float[Array, "2"], key: Key[Array, "2"] | None):
        """Both blocks, each with its drop rate and key."""
        keys = (None, None) if key is None else (key[0], key[1])
        return self.shifted(self.plain(x, drop[0], keys[0]), drop[1], keys[1])


class PatchMerging(nnx.Module):
    """Every 2 x 2 pixels become one of twice the width; maps of odd size are padded with zeros."""

    def __init__(self, width: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.reduction = Linear({"patch": 4 * width}, {"embed": outputs}, rngs=rngs, bias=False, dtype=dtype)
        self.norm = LayerNorm({"embed": outputs}, rngs=rngs, eps=EPS)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b y x e"]:
        """Halve the sides."""
        x = jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)])
        merged = self.norm(self.reduction(patchify(x, 2)))
        return merged.reshape(x.shape[0], x.shape[1] // 2, x.shape[2] // 2, -1)


class SwinStage(nnx.Module):
    """Patch merging, except before the first stage, and blocks; pairs of blocks are stacked and scanned."""

    def __init__(
        self, size: SwinSize, stage: int, *, rngs: nnx.Rngs, pad_small_map: bool, remat: str, dtype: DTypeLike
    ):
        width, depth = size.widths[stage], size.depths[stage]
        window, pretrained = size.windows[stage], size.pretrained_windows[stage]

        def block(*, rngs: nnx.Rngs, shift: bool) -> SwinBlock:
            return SwinBlock(
                width,
                size.heads[stage],
                window,
                pretrained,
                rngs=rngs,
                shift=shift,
                pad_small_map=pad_small_map,
                dtype=dtype,
            )

        self.merging = PatchMerging(size.widths[stage - 1], width, rngs=rngs, dtype=dtype) if stage else None
        self.pairs = stacked(lambda r: SwinPair(block, r), depth // 2, rngs) if depth > 1 else None
        self.last = block(rngs=rngs, shift=False) if depth % 2 else None
        self.extra_norms = depth // size.extra_norm if size.extra_norm else 0
        self.norms = (
            stacked(lambda r: LayerNorm({"embed": width}, rngs=r, eps=EPS), self.extra_norms, rngs)
            if self.extra_norms
            else None
        )
        self.depth = depth
        self.every = size.extra_norm // 2
        self.policy = remat_policy(remat)

    def __call__(
        self, x: Float[Array, "b h w d"], rates: Float[Array, " depth"], key: Key[Array, ""] | None = None
    ) -> Float[Array, "b y x e"]:
        """Run the stage.

        Args:
            x: the map of the stage before.
            rates: drop rate of each block.
            key: randomness of drop path; None runs deterministically.
        """
        if self.merging is not None:
            x = self.merging(x)
        keys = None if key is None else jax.random.split(key, self.depth)
        paired = self.depth // 2
        if self.pairs is not None:
            graphdef, state = nnx.split(self.pairs)
            per_pair = jax.tree.map(lambda a: a[: 2 * paired].reshape(paired, 2, *a.shape[1:]), (rates, keys))
            x = self._run_pairs(graphdef, (state, *per_pair), x)
        if self.last is not None:
            x = self.last(x, rates[-1], None if keys is None else keys[-1])
        return x

    def _run_pairs(self, graphdef: nnx.GraphDef, pairs, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """All pairs; where there are extra norms, as many runs of pairs, each closed by one, and then the rest."""
        normed = self.extra_norms * self.every
        if self.norms is not None:
            runs = jax.tree.map(lambda a: a[:normed].reshape(self.extra_norms, self.every, *a.shape[1:]), pairs)
            norm, norms = nnx.split(self.norms)

            def run(x, layer):
                (members, rates, keys), state = layer
                x, _ = scan_blocks(graphdef, members, x, rates, keys, self.policy)
                return nnx.merge(norm, state)(x), None

            x, _ = jax.lax.scan(run, x, (runs, norms))
            pairs = jax.tree.map(lambda a: a[normed:], pairs)
        if self.depth // 2 > normed:
            members, rates, keys = pairs
            x, _ = scan_blocks(graphdef, members, x, rates, keys, self.policy)
        return x


class SwinV2(nnx.Module):
    """A pyramid of feature maps.

    Args:
        size: hyper-parameters.
        rngs: source of the initial values.
        drop_path: drop rate of the last block in training; rates grow linearly over all blocks.
        pad_small_map: pad maps smaller than the window, and shift maps of its size, where the public default refuses
            the former and does not shift the latter.
        remat: rematerialisation policy of the pairs of blocks.
        dtype: compute dtype.
    """

    def __init__(
        self,
        size: SwinSize,
        *,
        rngs: nnx.Rngs,
        drop_path: float = 0.0,
        pad_small_map: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        fan_in = size.patch**2 * size.channels
        uniform = kaiming_uniform_fan_in(fan_in)
        self.embedding = Linear(
            {"patch": fan_in}, {"embed": size.widths[0]}, rngs=rngs, init=uniform, bias_init=uniform, dtype=dtype
        )
        self.embedding_norm = LayerNorm({"embed": size.widths[0]}, rngs=rngs, eps=EPS)
        for stage, width in enumerate(size.widths):
            made = SwinStage(size, stage, rngs=rngs, pad_small_map=pad_small_map, remat=remat, dtype=dtype)
            setattr(self, f"stage{stage}", made)
            setattr(self, f"norm{stage}", LayerNorm({"embed": width}, rngs=rngs, eps=EPS))
        self.size = size
        self.drop_path = drop_path

    def maps(self, image: Float[Array, "b h w c"], key: Key[Array, ""] | None = None) -> list[Float[Array, "b y x d"]]:
        """The normed map of every stage, finest first.

        Args:
            image: standardised image.
            key: randomness of drop path; None runs deterministically.

        Raises:
            ConfigError: a map is smaller than its window and `pad_small_map` is off.
        """
        size = self.size
        height, width = image.shape[1] // size.patch, image.shape[2] // size.patch
        x = self.embedding_norm(self.embedding(patchify(image, size.patch)))
        x = x.reshape(image.shape[0], height, width, -1)
        rates = jnp.split(jnp.linspace(0.0, self.drop_path, sum(size.depths)), np.cumsum(size.depths)[:-1])
        stages = range(len(size.widths))
        keys = [None for _ in stages] if key is None or not self.drop_path else list(jax.random.split(key, len(stages)))
        maps = []
        for stage in stages:
            x = getattr(self, f"stage{stage}")(x, rates[stage], keys[stage])
            maps.append(getattr(self, f"norm{stage}")(x))
        return maps
