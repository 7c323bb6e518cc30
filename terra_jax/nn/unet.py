"""The UNet of "Diffusion models beat GANs" (Dhariwal & Nichol 2021), channels last, as a short plan of blocks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from terra_jax.nn.linear import Initialiser, Linear, kaiming_uniform_fan_in, ones, parameter, zeros
from terra_jax.nn.stacking import remat_policy
from terra_jax.nn.transformer import Attention
from terra_jax.parallel.activations import split_examples


@dataclass(frozen=True)
class UNetSize:
    """Hyper-parameters.

    Attributes:
        channels: of the finest level.
        multipliers: channels of each level in units of `channels`; the side halves from one to the next.
        blocks: residual blocks a level on the way down; one more on the way up.
        attention: factors of downsampling at which residual blocks are followed by attention.
        patch: pixels per side of what is folded into the channels before the finest level.
        groups: of the group normalisation.
    """

    channels: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 3
    attention: tuple[int, ...] = (4, 8)
    patch: int = 4
    groups: int = 32

    @property
    def multiple(self) -> int:
        """What the sides of an image must be divisible by, pixels."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def time(self) -> int:
        """Width of the time embedding."""
        return 4 * self.channels


@dataclass(frozen=True)
class Step:
    """One block of the plan.

    Attributes:
        inputs, outputs: channels; on the way up, `inputs` counts the skip connection.
        attention: whether attention follows a residual block.
        resample: "down": a strided convolution and nothing else; "up": the side doubles at the end.
    """

    inputs: int
    outputs: int
    attention: bool = False
    resample: str = ""


def plan(size: UNetSize) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Blocks on the way down, without the first convolution, and on the way up."""
    widths = [size.channels * multiplier for multiplier in size.multipliers]
    down, kept, width = [], [size.channels], size.channels
    for level, outputs in enumerate(widths):
        for _ in range(size.blocks):
            down.append(Step(width, outputs, 2**level in size.attention))
            width = outputs
        if level < len(widths) - 1:
            down.append(Step(width, width, resample="down"))
    kept += [step.outputs for step in down]
    up = []
    for level, outputs in reversed(list(enumerate(widths))):
        for block in range(size.blocks + 1):
            last = block == size.blocks and level > 0
            up.append(Step(width + kept.pop(), outputs, 2**level in size.attention, "up" if last else ""))
            width = outputs
    return tuple(down), tuple(up)


class Conv(nnx.Module):
    """A convolution of odd size with zero padding."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        size: int = 3,
        stride: int = 1,
        init: Initialiser | None = None,
        dtype: DTypeLike = jnp.float32,
    ):
        init = init or kaiming_uniform_fan_in(size * size * inputs)
        self.kernel = parameter(init, {"rows": size, "columns": size, "inputs": inputs, "embed": outputs}, rngs)
        self.bias = parameter(zeros, {"embed": outputs}, rngs)
        self.stride = stride
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b y x o"]:
        """Convolve in the compute dtype."""
        kernel = self.kernel[...].astype(self.dtype)
        margin = (kernel.shape[0] // 2,) * 2
        y = convolve(x.astype(self.dtype), kernel, padding=(margin, margin), stride=self.stride)
        return split_examples(y + self.bias[...].astype(self.dtype))


class Upsample(Conv):
    """Nearest-neighbour doubling of the side and then a convolution of size 3, without making the larger image.

    An output pixel sees 2 x 2 different input pixels: four convolutions of size 2, one for each parity of its row and
    column, are less than half of the work.
    """

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b 2h 2w o"]:
        """Enlarge and convolve in the compute dtype."""
        batch, rows, columns, _ = x.shape
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        parities = [
            convolve(x, part, padding=((1 - row, row), (1 - column, column)))
            for row, strip in enumerate(_merged_taps(kernel, axis=0))
            for column, part in enumerate(_merged_taps(strip, axis=1))
        ]
        y = jnp.stack(parities, axis=-2).reshape(batch, rows, columns, 2, 2, -1)
        y = y.swapaxes(2, 3).reshape(batch, 2 * rows, 2 * columns, -1)
        return split_examples(y + self.bias[...].astype(self.dtype))


def _merged_taps(kernel: Float[Array, "..."], axis: int) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Three taps over doubled pixels as two over the pixels themselves, for even and for odd positions."""
    before, at, after = jnp.split(kernel, 3, axis)
    return jnp.concatenate([before, at + after], axis), jnp.concatenate([before + at, after], axis)


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "p q i o"],
    *,
    padding: tuple[tuple[int, int], tuple[int, int]],
    stride: int = 1,
) -> Float[Array, "b y x o"]:
    """Convolution, channels last."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)


class GroupNorm(nnx.Module):
    """Normalisation over space and groups of channels; statistics in float32, result in the input's dtype."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs, eps: float = 1e-5):
        self.scale = parameter(ones, {"embed": channels}, rngs)
        self.bias = parameter(zeros, {"embed": channels}, rngs)
        self.groups = groups
        self.eps = eps

    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        """Normalise and rescale."""
        f = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
        mean = self._grouped(f.mean(1))
        gain = self.scale[...] * jax.lax.rsqrt(self._grouped(jnp.square(f - mean).mean(1)) + self.eps)
        return (f * gain + (self.bias[...] - mean * gain)).astype(x.dtype).reshape(x.shape)

    def _grouped(self, channels: Float[Array, "b c"]) -> Float[Array, "b 1 c"]:
        """Means of the channels, replaced by those of their groups: on CPU twice as fast as one mean over both."""
        means = channels.reshape(channels.shape[0], self.groups, -1).mean(-1)
        return means.repeat(channels.shape[1] // self.groups, axis=-1)[:, None]


class ResBlock(nnx.Module):
    """Norm, SiLU, convolution; the time embedding is added; norm, SiLU, convolution; skip connection."""

    def __init__(self, inputs: int, outputs: int, size: UNetSize, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.norm1 = GroupNorm(inputs, size.groups, rngs=rngs)
        self.conv1 = Conv(inputs, outputs, rngs=rngs, dtype=dtype)
        self.time = _time_linear(size.time, "embed", outputs, rngs)
        self.norm2 = GroupNorm(outputs, size.groups, rngs=rngs)
        self.conv2 = Conv(outputs, outputs, rngs=rngs, init=zeros, dtype=dtype)
        self.skip = Conv(inputs, outputs, size=1, rngs=rngs, dtype=dtype) if inputs != outputs else None

    def __call__(self, x: Float[Array, "b h w i"], time: Float[Array, "b t"]) -> Float[Array, "b h w o"]:
        """One block; `time` is the embedding after its SiLU."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = h + self.time(time)[:, None, None].astype(h.dtype)
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.skip is None else self.skip(x))


class SpatialAttention(nnx.Module):
    """x + Attention(GroupNorm(x)) among all positions, one head."""

    def __init__(self, channels: int, size: UNetSize, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.norm = GroupNorm(channels, size.groups, rngs=rngs)
        self.attention = Attention(channels, heads=1, rngs=rngs, out_init=zeros, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Attend."""
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return (tokens + self.attention(self.norm(tokens))).reshape(x.shape)


class UNetBlock(nnx.Module):
    """Residual block, attention where the plan has it, and on the way up perhaps a doubling of the side."""

    def __init__(self, step: Step, size: UNetSize, *, rngs: nnx.Rngs, dtype: DTypeLike):
        width = step.outputs
        self.res = ResBlock(step.inputs, width, size, rngs=rngs, dtype=dtype)
        self.attention = SpatialAttention(width, size, rngs=rngs, dtype=dtype) if step.attention else None
        self.up = Upsample(width, width, rngs=rngs, dtype=dtype) if step.resample == "up" else None

    def __call__(self, x: Float[Array, "b h w i"], time: Float[Array, "b t"]) -> Float[Array, "b y x o"]:
        """One block; `time` is the embedding after its SiLU."""
        x = self.res(x, time)
        if self.attention is not None:
            x = self.attention(x)
        return x if self.up is None else self.up(x)


class UNet(nnx.Module):
    """Image, condition and timestep to an image of the same shape.

    Args:
        size: hyper-parameters.
        channels: of the image.
        condition: channels of the condition.
        rngs: source of the initial values; the last convolutions of all branches and of the whole begin at zero.
        remat: rematerialisation policy of the blocks (`nn.stacking.REMAT_POLICIES`).
        dtype: compute dtype; the time embedding, norms' statistics and the softmax are float32.

    Raises:
        ConfigError: if the rematerialisation policy is unknown.
    """

    def __init__(
        self,
        size: UNetSize,
        channels: int,
        condition: int,
        *,
        rngs: nnx.Rngs,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        options: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        down, up = plan(size)
        folded, width, bottom = channels * size.patch**2, size.channels, down[-1].outputs
        self.size = size
        self.policy = remat_policy(remat)
        self.time1 = _time_linear(width, "time_out", size.time, rngs)
        self.time2 = _time_linear(size.time, "time_out", size.time, rngs)
        self.stem = Conv(folded + condition, width, **options)
        self.down = _numbered(
            Conv(step.inputs, step.outputs, stride=2, **options)
            if step.resample == "down"
            else UNetBlock(step, size, **options)
            for step in down
        )
        self.middle = _numbered(
            UNetBlock(Step(bottom, bottom, attention=attention), size, **options) for attention in (True, False)
        )
        self.up = _numbered(UNetBlock(step, size, **options) for step in up)
        self.norm = GroupNorm(width, size.groups, rngs=rngs)
        self.out = Conv(width, folded, init=zeros, **options)

    def __call__(
        self, image: Float[Array, "b h w c"], condition: Float[Array, "b y x k"], t: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """Run the network.

        Args:
            image: sides divisible by `size.multiple`.
            condition: on a coarser grid, or on that of the folded image.
            t: timestep, 0..999.
        """
        patch = self.size.patch
        time = jax.nn.silu(self.time2(jax.nn.silu(self.time1(timestep_embedding(t, self.size.channels)))))
        folded = rearrange(image, "b (y p) (x q) c -> b y x (c p q)", p=patch, q=patch)
        x = self.stem(jnp.concatenate([folded, enlarged(condition, folded.shape[1] // condition.shape[1])], axis=-1))
        kept = [x]
        for block in self.down.values():
            x = block(x) if isinstance(block, Conv) else self._run(block, x, time)
            kept.append(x)
        for block in self.middle.values():
            x = self._run(block, x, time)
        for block in self.up.values():
            x = self._run(block, jnp.concatenate([x, kept.pop()], axis=-1), time)
        x = self.out(jax.nn.silu(self.norm(x))).astype(jnp.float32)
        return rearrange(x, "b y x (c p q) -> b (y p) (x q) c", p=patch, q=patch)

    def _run(self, block: UNetBlock, x: Float[Array, "b h w i"], time: Float[Array, "b t"]) -> Float[Array, "b y x o"]:
        return (block if self.policy is None else jax.checkpoint(block, policy=self.policy))(x, time)


def timestep_embedding(t: Int[Array, " b"], width: int) -> Float[Array, "b width"]:
    """Cosines, then sines, of t at frequencies from 1 down to almost 1/10000."""
    frequencies = np.exp(-math.log(10_000) * np.arange(width // 2) / (width // 2)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def enlarged(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b y x c"]:
    """Nearest-neighbour upsampling of both axes."""
    return x if factor == 1 else x.repeat(factor, axis=1).repeat(factor, axis=2)


def _time_linear(inputs: int, output: str, outputs: int, rngs: nnx.Rngs) -> Linear:
    """A map of the time embedding, in float32."""
    return Linear({"time": inputs}, {output: outputs}, rngs=rngs, init=kaiming_uniform_fan_in(inputs))


def _numbered(blocks: Iterable[nnx.Module]) -> nnx.Dict:
    """Blocks under the names "00", "01" ... in order: text, since checkpoints keep no other keys."""
    return nnx.Dict({f"{i:02}": block for i, block in enumerate(blocks)})
