"""SkySense's modules in PyTorch, written from their published description: the other side of benchmarks and tests.

The library never imports this file. Parameter names and shapes are the public modules', so that a state dict which
loads here with `strict=True` loads there. arXiv 2312.10115 describes the model, arXiv 2111.09883 Swin V2. Needs
`pip install "terra_jax[torch]"`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5


class FFN(nn.Module):
    """d -> 4d -> d with the exact GELU, under the names that OpenMMLab gives its parts."""

    def __init__(self, width: int):
        super().__init__()
        up = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.layers = nn.Sequential(up, nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        return self.layers(x)


class _InProjection(nn.Module):
    """Attention whose query, key and value weights are one matrix, rows in this order, heads within."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(0.02 * torch.randn(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(attended.transpose(1, 2).reshape(batch, tokens, width))


class Attention(nn.Module):
    """The wrapper that puts a second `attn` into the names."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = _InProjection(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        """Attend among tokens, (batch, tokens, d)."""
        return self.attn(x)


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, eps: float = EPS):
        super().__init__()
        self.ln1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.ln2 = nn.LayerNorm(width, eps=eps)
        self.ffn = FFN(width)

    def forward(self, x: Tensor) -> Tensor:
        """One layer, (batch, tokens, d)."""
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class _Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: int, norm: bool):
        super().__init__()
        self.projection = nn.Conv2d(channels, width, patch, patch)
        self.norm = nn.LayerNorm(width, eps=EPS) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.projection(x).permute(0, 2, 3, 1))


class SeriesEncoder(nn.Module):
    """Vision transformer of the Sentinel series, one frame at a time, without a final norm.

    Args:
        channels: bands.
        width, depth, heads: of the transformer.
        patch, image: pixels per side of a patch and of the image that the position table was made for.
        class_token: whether a class token is fed along; it is no part of the result.
    """

    def __init__(
        self,
        channels: int,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        patch: int = 4,
        image: int = 64,
        class_token: bool = True,
    ):
        super().__init__()
        self.grid, self.class_token = image // patch, class_token
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid**2, width))
        self.patch_embed = _Patches(channels, width, patch, norm=False)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, bands, height, width) -> (batch, d, height / patch, width / patch)."""
        tokens = self.patch_embed(x)
        batch, rows, columns, width = tokens.shape
        table = self.pos_embed[:, 1:].view(1, self.grid, self.grid, width).permute(0, 3, 1, 2)
        if (rows, columns) != (self.grid, self.grid):
            table = F.interpolate(table, size=(rows, columns), mode="bicubic", align_corners=False)
        tokens = tokens.flatten(1, 2) + table.flatten(2).transpose(1, 2)
        if self.class_token:
            first = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
            tokens = torch.cat([first, tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = tokens[:, self.class_token :]
        return tokens.transpose(1, 2).reshape(batch, width, rows, columns)


class UpHead(nn.Module):
    """From the encoder's map to the Sentinel-2 grid."""

    def __init__(self, inputs: int = 1024, outputs: int = 2816, scale: int = 4):
        super().__init__()
        self.decoder = nn.Sequential(nn.Conv2d(inputs, scale**2 * outputs, 1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, d, y, x) -> (batch, c, 4 y, 4 x)."""
        return self.decoder(x)


class Fusion(nn.Module):
    """Transformer over the frames of one position."""

    def __init__(self, inputs: int = 2816, width: int = 1024, depth: int = 24, heads: int = 16):
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.porj_linear = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))

    def forward(self, frames: Tensor) -> Tensor:
        """(positions, frames, c) -> (positions, d): the class token after the last layer."""
        tokens = self.porj_linear(frames)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


class _WindowAttention(nn.Module):
    """Scaled cosine attention in windows, with the log-spaced continuous position bias."""

    relative_coords_table: Tensor
    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        span = torch.arange(1 - window, window, dtype=torch.float32)
        table = 8 * torch.stack(torch.meshgrid(span, span, indexing="ij"), dim=-1)[None] / (window - 1)
        table = table.sign() * torch.log2(table.abs() + 1) / math.log2(8)
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = places[:, :, None] - places[:, None, :] + window - 1
        self.register_buffer("relative_coords_table", table)
        self.register_buffer("relative_position_index", offset[0] * (2 * window - 1) + offset[1])
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within windows: (batch, windows, pixels, d); the mask is (windows, 1, pixels, pixels)."""
        *leading, pixels, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(*leading, pixels, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        q = F.normalize(q, dim=-1) * self.logit_scale.clamp(max=math.log(100)).exp()
        values = 16 * torch.sigmoid(self.cpb_mlp(self.relative_coords_table)).view(-1, self.heads)
        added = values[self.relative_position_index.view(-1)].view(pixels, pixels, self.heads).permute(2, 0, 1)
        added = added[None, None] if mask is None else added + mask[None]
        y = F.scaled_dot_product_attention(q, F.normalize(k, dim=-1), v, attn_mask=added, scale=1.0)
        return self.proj(y.transpose(2, 3).reshape(*leading, pixels, width))


class _ShiftedWindows(nn.Module):
    """Padding, cyclic shift and cutting into windows around the attention."""

    def __init__(self, width: int, heads: int, window: int, shift: bool, pad_small_map: bool):
        super().__init__()
        self.w_msa = _WindowAttention(width, heads, window)
        self.window, self.shift, self.pad_small_map = window, window // 2 if shift else 0, pad_small_map

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows of a map (batch, height, width, d)."""
        _, height, width, depth = x.shape
        w, shift = self.window, self.shift
        if min(height, width) <= w and not self.pad_small_map:
            assert min(height, width) == w, "the map is smaller than a window"
            shift = 0
        x = F.pad(x, (0, 0, 0, -width % w, 0, -height % w))
        rows, columns = x.shape[1] // w, x.shape[2] // w
        mask = _shift_mask(x.shape[1], x.shape[2], w, shift, x) if shift else None
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
        x = x.view(-1, rows, w, columns, w, depth).transpose(2, 3).reshape(-1, rows * columns, w * w, depth)
        x = self.w_msa(x, mask)
        x = x.view(-1, rows, columns, w, w, depth).transpose(2, 3).reshape(-1, rows * w, columns * w, depth)
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width]


def _shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """-100 between pixels of a shifted map's window that were no neighbours before."""
    ids = like.new_zeros(height, width)
    strips = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(strips):
        for j, columns in enumerate(strips):
            ids[rows, columns] = 3 * i + j
    ids = ids.view(height // window, window, width // window, window).transpose(1, 2).reshape(-1, window * window)
    return -100.0 * (ids[:, None, :, None] != ids[:, None, None, :]).to(like.dtype)


class SwinBlock(nn.Module):
    """Attention and FFN, each closed by its norm; some blocks norm the main branch at their end."""

    def __init__(self, width: int, heads: int, window: int, shift: bool, extra_norm: bool, pad_small_map: bool):
        super().__init__()
        self.attn = _ShiftedWindows(width, heads, window, shift, pad_small_map)
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.ffn = FFN(width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        if extra_norm:
            self.norm3 = nn.LayerNorm(width, eps=EPS)
        self.extra_norm = extra_norm

    def forward(self, x: Tensor) -> Tensor:
        """One block, (batch, height, width, d)."""
        x = x + self.norm1(self.attn(x))
        x = x + self.norm2(self.ffn(x))
        return self.norm3(x) if self.extra_norm else x


class _Merging(nn.Module):
    """Every 2 x 2 pixels become one; the channels come before the pixels in the weight's columns."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.reduction = nn.Linear(4 * width, outputs, bias=False)
        self.norm = nn.LayerNorm(outputs, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the sides of a map (batch, height, width, d)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        batch, height, width, depth = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, depth).permute(0, 1, 3, 5, 2, 4)
        return self.norm(self.reduction(x.reshape(batch, height // 2, width // 2, 4 * depth)))


class _Stage(nn.Module):
    def __init__(
        self, width: int, depth: int, heads: int, window: int, before: int | None, extra_norm: int, pad_small_map: bool
    ):
        super().__init__()
        self.downsample = None if before is None else _Merging(before, width)
        normed = [bool(extra_norm) and (i + 1) % extra_norm == 0 for i in range(depth)]
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window, i % 2 == 1, normed[i], pad_small_map) for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class SwinV2(nn.Module):
    """The encoder of high-resolution images.

    Args:
        widths, depths, heads: of the stages.
        window: pixels per side of a window.
        extra_norm: every so many blocks of a stage the main branch is normed; 0 for never.
        pad_small_map: pad maps smaller than the window, and shift maps of its size.
        patch: image pixels per side of a pixel of the first stage.
    """

    def __init__(
        self,
        widths: Sequence[int] = (352, 704, 1408, 2816),
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (8, 16, 32, 64),
        window: int = 8,
        extra_norm: int = 6,
        pad_small_map: bool = False,
        patch: int = 4,
    ):
        super().__init__()
        self.patch_embed = _Patches(3, widths[0], patch, norm=True)
        self.stages = nn.ModuleList(
            _Stage(widths[i], depths[i], heads[i], window, widths[i - 1] if i else None, extra_norm, pad_small_map)
            for i in range(len(widths))
        )
        for i, width in enumerate(widths):
            self.add_module(f"norm{i}", nn.LayerNorm(width, eps=EPS))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(batch, 3, height, width) -> the normed map of every stage, channels first."""
        x = self.patch_embed(x)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            maps.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2))
        return maps
