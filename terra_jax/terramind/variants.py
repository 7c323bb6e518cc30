"""Sizes of TerraMind's tokenizers and models (paper, sections 3 and 4; public builders; the `nano` ones are ours)."""

from dataclasses import dataclass, replace
from math import lcm, prod

from data_pipelines.modalities import LAND_COVER, Unit, modality
from terra_jax.nn.unet import UNetSize


@dataclass(frozen=True)
class TokenizerVariant:
    """Hyper-parameters of one tokenizer.

    Attributes:
        modality: whose images it takes.
        levels: of the finite scalar quantisation, one number a dimension of the code.
        width, depth, heads: of the encoder, and of the decoder where that is a vision transformer.
        patch: pixels per side of a token.
        table: tokens per side of the fixed position table, which is resampled to every other grid.
        image: pixels per side of a usual image.
        unet: of the diffusion decoder; None for a vision transformer that gives class logits.
    """

    modality: str
    levels: tuple[int, ...] = (8, 8, 8, 6, 5)
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    table: int = 16
    image: int = 224
    unet: UNetSize | None = None

    @property
    def kind(self) -> str:
        """What the decoder is: "diffusion" or "vit"."""
        return "diffusion" if self.unet else "vit"

    @property
    def channels(self) -> int:
        """Channels that the network sees: bands, or classes."""
        table = modality(self.modality)
        return len(LAND_COVER) if table.unit is Unit.CLASS else len(table.bands)

    @property
    def codebook(self) -> int:
        """Number of different tokens."""
        return prod(self.levels)

    @property
    def grid(self) -> int:
        """Tokens per side of a usual image."""
        return self.image // self.patch

    @property
    def multiple(self) -> int:
        """What the sides of an image must be divisible by, pixels."""
        return lcm(self.patch, self.unet.multiple) if self.unet else self.patch


_PUBLIC = {
    **{name.lower(): TokenizerVariant(name, unet=UNetSize()) for name in ("S2L2A", "S1RTC", "S1GRD", "DEM", "NDVI")},
    "lulc": TokenizerVariant("LULC", levels=(7, 5, 5, 5, 5)),
}
_NANO_UNET = UNetSize(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), groups=8)


def _nano(public: TokenizerVariant) -> TokenizerVariant:
    """The same kind of tokenizer, small enough to be trained in minutes on two cores."""
    unet = _NANO_UNET if public.unet else None
    return replace(public, width=128, depth=2, heads=4, patch=8, table=8, image=64, unet=unet)


TOKENIZERS: dict[str, TokenizerVariant] = {
    **{f"terramind_v1_tokenizer_{key}": variant for key, variant in _PUBLIC.items()},
    **{f"terramind_v1_tokenizer_{key}_nano": _nano(variant) for key, variant in _PUBLIC.items()},
}
"""Registered name -> sizes."""


@dataclass(frozen=True)
class Variant:
    """Hyper-parameters of one size of the encoder-decoder, and of the backbone that is its encoder.

    Attributes:
        width, depth, heads: of the encoder; the decoder has the same width and heads.
        decoder_depth: blocks of the decoder.
        hidden: width inside the MLPs.
        gated: whether the MLPs are gated (SwiGLU) or plain with the exact GELU.
        bias: whether attention and MLPs have biases.
        patch: pixels per side of a patch.
        image: pixels per side of the image that the positions are made for; they are resampled for other sizes.
    """

    width: int
    depth: int
    heads: int
    decoder_depth: int
    hidden: int
    gated: bool
    bias: bool
    patch: int = 16
    image: int = 224

    @property
    def grid(self) -> int:
        """Patches per side of that image."""
        return self.image // self.patch


MODELS: dict[str, Variant] = {
    "nano": Variant(128, 4, 2, 2, hidden=512, gated=False, bias=True, patch=8, image=64),
    "tiny": Variant(192, 12, 3, 4, hidden=768, gated=False, bias=True),
    "small": Variant(384, 12, 6, 6, hidden=1536, gated=False, bias=True),
    "base": Variant(768, 12, 12, 12, hidden=2048, gated=True, bias=False),
    "large": Variant(1024, 24, 16, 24, hidden=2730, gated=True, bias=False),
}
"""Size -> hyper-parameters; `nano` fits the nano tokenizers."""
