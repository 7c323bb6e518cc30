"""TerraMind's tokenizers (paper, section 3; public builders; the `nano` ones are ours)."""

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
