"""SkySense's encoders of single modalities: Swin V2 for high resolution, a vision transformer for Sentinel series."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from terra_jax.errors import ConfigError
from terra_jax.nn.linear import Linear, kaiming_uniform_fan_in, parameter, trunc_normal, zeros
from terra_jax.nn.patches import patchify
from terra_jax.nn.positions import bicubic_interpolation, resample_positions
from terra_jax.nn.stacking import Stack
from terra_jax.nn.swin import SwinSize, SwinV2
from terra_jax.nn.transformer import Block
from terra_jax.skysense.inputs import STATISTICS, input_bands, single, standard_input
from terra_jax.skysense.torch_weights import check_layout, hr_map, series_map
from terra_jax.skysense.variants import DAYS, SeriesSize
from terra_jax.weights.rules import WeightMap


class HREncoder(SwinV2):
    """Encoder of high-resolution optical images.

    Args:
        variant: sizes.
        rngs: source of the initial values.
        drop_path: drop rate of the last block in training.
        pad_small_map: pad maps smaller than a window; the public default refuses images of less than 256 pixels.
        statistics: statistics set that standardises raw inputs.
        layout: "module" for the keys of the public class; "public" for those of the released file, which has a mask
            token that nothing uses and lacks the norms of all stages but the last.
        remat: rematerialisation policy of the pairs of blocks.
        dtype: compute dtype.
    """

    def __init__(
        self,
        variant: SwinSize,
        *,
        rngs: nnx.Rngs,
        drop_path: float = 0.0,
        pad_small_map: bool = False,
        statistics: str = STATISTICS,
        layout: str = "module",
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        super().__init__(variant, rngs=rngs, drop_path=drop_path, pad_small_map=pad_small_map, remat=remat, dtype=dtype)
        public = check_layout(layout) == "public"
        self.mask_token = parameter(trunc_normal, {"embed": variant.widths[0]}, rngs) if public else None
        self.statistics = statistics
        self.layout = layout

    @property
    def weight_map(self) -> WeightMap:
        """How the parameters are named and laid out in PyTorch."""
        return hr_map(self.size, self.layout)

    def __call__(  # type: ignore[override]
        self,
        inputs: Mapping[str, Num[Array, "b h w c"]],
        *,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
    ) -> Float[Array, "b y x d"]:
        """Map of the last stage, one pixel for every 32 of the image.

        Args:
            inputs: {"HR": image}, red, green and blue, 0..255, channels last.
            normalised: the image is standardised.
            bands: {"HR": names of its channels}, where they are not red, green, blue.
            fill: what stands for bands that are not given: "zero", "mean" or "copy:BAND".

        Raises:
            ConfigError: another input, channels that do not match, or an image too small.
        """
        return self.feature_maps(inputs, normalised=normalised, bands=bands, fill=fill)[-1]

    def feature_maps(
        self,
        inputs: Mapping[str, Num[Array, "b h w c"]],
        *,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
    ) -> list[Float[Array, "b y x d"]]:
        """Maps of all stages, finest first; arguments as for calling the model."""
        return self.maps(
            standard_input(
                single(inputs, "HR"),
                "HR",
                statistics=self.statistics,
                normalised=normalised,
                bands=(bands or {}).get("HR"),
                fill=fill,
            )
        )


class SeriesEncoder(nnx.Module):
    """Encoder of the frames of a Sentinel series, each by itself.

    Args:
        variant: sizes.
        rngs: source of the initial values.
        drop_path: drop rate of the last block's MLP in training; attention is never dropped.
        class_token: whether a class token is fed along, as the released encoders do when used alone.
        eps: of the norms (unknown for the released weights' own training; 1e-5 in the released code).
        dates: whether the table of date positions belongs to the encoder, as it does in the released Sentinel-2 file.
        statistics: statistics set that standardises raw inputs.
        layout: "module" for the keys of the public class; "public" for those of the released file.
        remat: rematerialisation policy of the blocks.
        dtype: compute dtype.
    """

    def __init__(
        self,
        variant: SeriesSize,
        *,
        rngs: nnx.Rngs,
        drop_path: float = 0.0,
        class_token: bool = True,
        eps: float = 1e-5,
        dates: bool | None = None,
        statistics: str = STATISTICS,
        layout: str = "module",
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        v, width = variant, variant.width
        fan_in = v.patch**2 * len(input_bands(v.modality))
        uniform = kaiming_uniform_fan_in(fan_in)
        released = check_layout(layout) == "public" and v.modality == "S2L2A"
        self.variant = v
        self.embedding = Linear(
            {"patch": fan_in}, {"embed": width}, rngs=rngs, init=uniform, bias_init=uniform, dtype=dtype
        )
        self.cls = parameter(trunc_normal, {"embed": width}, rngs)
        self.grid = v.image // v.patch
        self.positions = parameter(trunc_normal, {"tokens": 1 + self.grid**2, "embed": width}, rngs)
        self.blocks = Stack(
            lambda r: Block(width, v.heads, rngs=r, eps=eps, drop_attention=False, dtype=dtype),
            v.depth,
            rngs=rngs,
            drop_path=drop_path,
            remat=remat,
        )
        dated = released if dates is None else dates
        self.dates = parameter(zeros, {"days": DAYS, "embed": v.aligned}, rngs) if dated else None
        self.class_token = class_token
        self.statistics = statistics
        self.layout = layout

    @property
    def weight_map(self) -> WeightMap:
        """How the parameters are named and laid out in PyTorch."""
        return series_map(self.variant, self.layout, dates=self.dates is not None)

    def __call__(
        self,
        inputs: Mapping[str, Num[Array, "... h w c"]],
        *,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
    ) -> Float[Array, "... y x d"]:
        """Map of the last block, one pixel a patch.

        Args:
            inputs: {modality: image or series}, channels last: Sentinel-2 digital numbers without offset (ten bands,
                without B01 and B09), Sentinel-1 backscatter in dB.
            normalised: it is standardised.
            bands: {modality: names of its channels}, where they are not those.
            fill: what stands for bands that are not given: "zero", "mean" or "copy:BAND".

        Raises:
            ConfigError: another input, channels that do not match, or sides that are not whole patches.
        """
        return self.encode(self._prepare(inputs, normalised, bands, fill))

    def feature_maps(
        self,
        inputs: Mapping[str, Num[Array, "... h w c"]],
        *,
        blocks: Sequence[int] | None = None,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
    ) -> list[Float[Array, "... y x d"]]:
        """Maps after chosen blocks, without a norm.

        Args:
            inputs, normalised, bands, fill: as for calling the model.
            blocks: indices of blocks, counted from 0; default four, evenly spaced, the last one included.
        """
        image = self._prepare(inputs, normalised, bands, fill)
        depth = self.variant.depth
        chosen = range(depth - 1, -1, -max(1, depth // 4))[:4][::-1] if blocks is None else blocks
        _, every = self.blocks(self._embed(image), every=True)
        return [self._as_map(every[i], image) for i in chosen]

    def encode(self, image: Float[Array, "... h w c"], key: Key[Array, ""] | None = None) -> Float[Array, "... y x d"]:
        """Map of the last block from standardised images; `key` is the randomness of drop path."""
        return self._as_map(self.blocks(self._embed(image), key)[0], image)

    def _prepare(self, inputs, normalised, bands, fill) -> Float[Array, "... h w c"]:
        name = self.variant.modality
        given = (bands or {}).get(name)
        image = single(inputs, name)
        return standard_input(image, name, statistics=self.statistics, normalised=normalised, bands=given, fill=fill)

    def _embed(self, image: Float[Array, "... h w c"]) -> Float[Array, "b n d"]:
        height, width = image.shape[-3:-1]
        patch = self.variant.patch
        if height % patch or width % patch:
            raise ConfigError(
                f"{self.variant.modality} of {height} x {width} pixels is not made of whole patches; "
                f"give sides that are multiples of {patch}"
            )
        tokens = self.embedding(patchify(image.reshape(-1, *image.shape[-3:]), patch))
        tokens = tokens + self._positions(height // patch, width // patch).astype(tokens.dtype)
        if not self.class_token:
            return tokens
        cls = (self.cls[...] + self.positions[...][0]).astype(tokens.dtype)
        return jnp.concatenate([jnp.broadcast_to(cls, (tokens.shape[0], 1, tokens.shape[2])), tokens], axis=1)

    def _positions(self, rows: int, columns: int) -> Float[Array, "n d"]:
        """Positions of the patches, the table's own or resampled as PyTorch's bicubic interpolation does it."""
        table = self.positions[...][1:]
        if (rows, columns) == (self.grid, self.grid):
            return table
        return resample_positions(table, (self.grid, self.grid), (rows, columns), bicubic_interpolation)

    def _as_map(self, tokens: Float[Array, "b n d"], image: Float[Array, "... h w c"]) -> Float[Array, "... y x d"]:
        if self.class_token:
            tokens = tokens[:, 1:]
        *leading, height, width, _ = image.shape
        patch = self.variant.patch
        return tokens.reshape(*leading, height // patch, width // patch, -1)
