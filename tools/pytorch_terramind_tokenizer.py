"""TerraMind's tokenizers in PyTorch, written from their description: the other side of benchmarks and parity tests.

The library never imports this file. Parameter names and shapes are the public models', so that a state dict which
loads here with `strict=True` loads there. `arXiv 2504.11171` describes the tokenizers, Dhariwal & Nichol 2021 the
UNet, Mentzer et al. 2023 the quantisation. Needs `pip install "terra_jax[torch]"`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class UNetSize:
    """Of the diffusion decoder: as in `terra_jax.nn.unet.UNetSize`."""

    channels: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 3
    attention: tuple[int, ...] = (4, 8)
    patch: int = 4
    groups: int = 32


@dataclass(frozen=True)
class Size:
    """Of a tokenizer: as in `terra_jax.terramind.variants.TokenizerVariant`."""

    channels: int
    levels: tuple[int, ...] = (8, 8, 8, 6, 5)
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    table: int = 16
    unet: UNetSize | None = None


def nano(size: Size) -> Size:
    """The small tokenizer of the same kind."""
    unet = (
        replace(size.unet, channels=32, multipliers=(1, 2), blocks=1, attention=(2,), groups=8) if size.unet else None
    )
    return replace(size, width=128, depth=2, heads=4, patch=8, table=8, unet=unet)


_CHANNELS = {"s2l2a": 12, "s1rtc": 2, "s1grd": 2, "dem": 1, "ndvi": 1}
SIZES = {
    **{name: Size(channels, unet=UNetSize()) for name, channels in _CHANNELS.items()},
    "lulc": Size(10, levels=(7, 5, 5, 5, 5)),
}
SIZES |= {f"{name}_nano": nano(size) for name, size in SIZES.items()}


class Attention(nn.Module):
    """Multi-head self-attention with one fused query-key-value projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend among tokens, (batch, tokens, d)."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    """d -> 4d -> d."""

    def __init__(self, width: int, activation: nn.Module):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = activation
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.mlp = MLP(width, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """One block, (batch, tokens, d)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Trunk(nn.Module):
    """Fixed positions, blocks, one more MLP with a tanh."""

    def __init__(self, size: Size):
        super().__init__()
        self.pos_emb = nn.Parameter(_positions(size.table, size.width), requires_grad=False)

    def add_layers(self, size: Size) -> None:
        """The layers, after whatever a subclass puts before them: the public order of keys."""
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))
        self.norm_mlp = nn.LayerNorm(size.width, eps=1e-6)
        self.post_mlp = MLP(size.width, nn.Tanh())

    def transform(self, x: Tensor) -> Tensor:
        """(batch, d, rows, columns) -> the same."""
        grid = x.shape[-2:]
        positions = F.interpolate(self.pos_emb, size=grid, mode="bicubic", align_corners=False)
        x = (x + positions).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = x + self.post_mlp(self.norm_mlp(x))
        return x.transpose(1, 2).unflatten(2, grid)


class Encoder(Trunk):
    """Image to the features of every token."""

    def __init__(self, size: Size):
        super().__init__(size)
        self.proj = nn.Conv2d(size.channels, size.width, size.patch, size.patch)
        self.add_layers(size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, d, rows, columns)."""
        return self.transform(self.proj(x))


class ClassDecoder(Trunk):
    """Features of every token to class logits of every pixel."""

    def __init__(self, size: Size):
        super().__init__(size)
        self.patch = size.patch
        self.add_layers(size)
        self.out_proj = nn.Linear(size.width, size.channels * size.patch**2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, d, rows, columns) -> (batch, classes, height, width)."""
        x = self.out_proj(self.transform(x).permute(0, 2, 3, 1))
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), self.patch)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution; plus the time embedding; norm, SiLU, convolution; skip connection."""

    def __init__(self, inputs: int, outputs: int, size: UNetSize):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(size.groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * size.channels, outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(size.groups, outputs),
            nn.SiLU(),
            nn.Dropout(0.0),
            _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(batch, i, rows, columns) -> (batch, o, rows, columns)."""
        h = self.in_layers(x) + self.emb_layers(time)[..., None, None]
        return self.skip_connection(x) + self.out_layers(h)


class SpatialAttention(nn.Module):
    """Attention among all positions, one head."""

    def __init__(self, channels: int, size: UNetSize):
        super().__init__()
        self.norm = nn.GroupNorm(size.groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """(batch, channels, rows, columns) -> the same."""
        tokens = x.flatten(2)
        q, k, v = self.qkv(self.norm(tokens)).transpose(1, 2).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return (tokens + self.proj_out(attended)).view_as(x)


class Downsample(nn.Module):
    """Half the side."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """(batch, channels, rows, columns) -> (batch, channels, rows / 2, columns / 2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Twice the side."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """(batch, channels, rows, columns) -> (batch, channels, 2 rows, 2 columns)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stem(nn.Conv2d):
    """The first convolution, called as the other blocks are."""

    def forward(self, x: Tensor, _: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve."""
        return super().forward(x)


class Layers(nn.Sequential):
    """Layers that also see the time embedding, one after another."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:  # type: ignore[override]
        """Run them."""
        for layer in self:
            x = layer(x, time)
        return x


class UNet(nn.Module):
    """The UNet of "Diffusion models beat GANs", on images folded into patches, with codes as further channels."""

    def __init__(self, size: UNetSize, channels: int, condition: int):
        super().__init__()
        self.size = size
        width, folded = size.channels, channels * size.patch**2
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        blocks = [Layers(Stem(folded + condition, width, 3, padding=1))]
        kept = [width]
        widths = [width * multiplier for multiplier in size.multipliers]

        def residual(inputs: int, outputs: int, level: int) -> Layers:
            attention = [SpatialAttention(outputs, size)] if 2**level in size.attention else []
            return Layers(ResBlock(inputs, outputs, size), *attention)

        for level, outputs in enumerate(widths):
            for _ in range(size.blocks):
                blocks.append(residual(width, outputs, level))
                width = outputs
                kept.append(width)
            if level < len(widths) - 1:
                blocks.append(Layers(Downsample(width)))
                kept.append(width)
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = Layers(
            ResBlock(width, width, size), SpatialAttention(width, size), ResBlock(width, width, size)
        )
        blocks = []
        for level, outputs in reversed(list(enumerate(widths))):
            for i in range(size.blocks + 1):
                block = residual(width + kept.pop(), outputs, level)
                if i == size.blocks and level > 0:
                    block.append(Upsample(outputs))
                blocks.append(block)
                width = outputs
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(
            nn.GroupNorm(size.groups, width), nn.SiLU(), _zeroed(nn.Conv2d(width, folded, 3, padding=1))
        )

    def forward(self, x: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        """The clean image, estimated.

        Args:
            x: noisy image, (batch, channels, height, width).
            condition: codes, (batch, 5, rows, columns).
            t: timesteps, (batch,).
        """
        time = self.time_embed(_timestep_embedding(t, self.size.channels))
        folded = F.pixel_unshuffle(x, self.size.patch)
        h = torch.cat([folded, F.interpolate(condition, size=folded.shape[-2:], mode="nearest")], dim=1)
        kept = []
        for block in self.input_blocks:
            h = block(h, time)
            kept.append(h)
        h = self.middle_block(h, time)
        for block in self.output_blocks:
            h = block(torch.cat([h, kept.pop()], dim=1), time)
        return F.pixel_shuffle(self.out(h), self.size.patch)


class Tokenizer(nn.Module):
    """A public tokenizer: standardised images to tokens and back.

    Args:
        size: a name in `SIZES`, or a `Size`.
    """

    levels: Tensor
    basis: Tensor
    alpha_bar: Tensor

    def __init__(self, size: str | Size = "s2l2a"):
        super().__init__()
        size = SIZES[size] if isinstance(size, str) else size
        self.size = size
        self.encoder = Encoder(size)
        self.quant_proj = nn.Conv2d(size.width, len(size.levels), 1)
        if size.unet:
            self.decoder: nn.Module = UNet(size.unet, size.channels, len(size.levels))
        else:
            self.decoder = ClassDecoder(size)
            self.post_quant_proj = nn.Conv2d(len(size.levels), size.width, 1)
        basis = list(accumulate(size.levels[:-1], mul, initial=1))
        self.register_buffer("levels", torch.tensor(size.levels)[:, None, None], persistent=False)
        self.register_buffer("basis", torch.tensor(basis)[:, None, None], persistent=False)
        self.register_buffer("alpha_bar", _alpha_bar(), persistent=False)

    def latents(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width), standardised or one-hot -> (batch, 5, rows, columns)."""
        return self.quant_proj(self.encoder(x))

    def tokenize(self, x: Tensor) -> Tensor:
        """Tokens of an image, (batch, rows, columns)."""
        numbers = (self.latents(x).sigmoid() * (self.levels - 1)).round()
        return (numbers.long() * self.basis).sum(1)

    def codes(self, ids: Tensor) -> Tensor:
        """Codes in [0, 1] of tokens, (batch, 5, rows, columns)."""
        return (ids[:, None] // self.basis % self.levels) / (self.levels - 1)

    def logits(self, codes: Tensor) -> Tensor:
        """Class logits, (batch, classes, height, width)."""
        return self.decoder(self.post_quant_proj(codes))

    def decode_tokens(self, ids: Tensor, noise: Tensor, steps: int = 10, clip: bool = True) -> Tensor:
        """Standardised image of tokens by DDIM with trailing steps, (batch, channels, height, width)."""
        codes, x = self.codes(ids), noise
        timesteps: Sequence[int] = range(999, -1, -(1000 // steps))
        for t, before in zip(timesteps, [*timesteps[1:], -1], strict=True):
            now = self.alpha_bar[t]
            previous = self.alpha_bar[before] if before >= 0 else torch.ones(())
            predicted = self.decoder(x, codes, torch.full((len(x),), t))
            direction = (x - now.sqrt() * predicted) / (1 - now).sqrt()
            clean = predicted.clamp(-1, 1) if clip else predicted
            x = previous.sqrt() * clean + (1 - previous).sqrt() * direction
        return x


def _alpha_bar() -> Tensor:
    """Signal power left at timesteps 0..999: linear betas, rescaled to end at nothing."""
    signal = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square().float()


def _positions(side: int, width: int) -> Tensor:
    """Sines and cosines of the row and of the column, (1, width, side, side)."""
    frequencies = 1 / 10_000 ** (torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    angles = torch.arange(side, dtype=torch.float32)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1).T
    rows, columns = waves[:, :, None].expand(-1, -1, side), waves[:, None].expand(-1, side, -1)
    return torch.cat([rows, columns])[None].clone()


def _timestep_embedding(t: Tensor, width: int) -> Tensor:
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, dtype=torch.float32) / (width // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _zeroed(layer: nn.Module) -> nn.Module:
    """The last layer of a branch, which begins at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
