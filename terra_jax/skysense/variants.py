"""The sizes of SkySense (paper, section 3 and public builders; `nano` and `small` are ours)."""

from dataclasses import dataclass

from terra_jax.nn.swin import SwinSize

HR_PIXELS = 32
"""High-resolution pixels along the side of a Sentinel-2 pixel: all modalities meet on the Sentinel-2 grid."""

DAYS = 365
"""Rows of the table of date positions."""


@dataclass(frozen=True)
class SeriesSize:
    """Hyper-parameters of the encoder of a Sentinel series and of the head that aligns it.

    Attributes:
        modality: whose frames it takes.
        width, depth, heads: of the vision transformer.
        aligned: channels of the aligned map.
        patch: pixels per side of a patch, and the factor by which the head enlarges.
        image: pixels per side of the image that the position table was made for.
    """

    modality: str
    width: int = 1024
    depth: int = 24
    heads: int = 16
    aligned: int = 2816
    patch: int = 4
    image: int = 64


@dataclass(frozen=True)
class FusionSize:
    """Hyper-parameters of the multi-modal temporal fusion transformer.

    Attributes:
        inputs: channels of the aligned maps.
        width, depth, heads: of the transformer.
    """

    inputs: int = 2816
    width: int = 1024
    depth: int = 24
    heads: int = 16


@dataclass(frozen=True)
class SkySenseSize:
    """Hyper-parameters of a whole model; the aligned maps of all modalities have the width of the last HR stage."""

    hr: SwinSize
    s2: SeriesSize
    s1: SeriesSize
    fusion: FusionSize


def _whole(hr: SwinSize, series: tuple[int, int, int], fusion: tuple[int, int, int], image: int = 64) -> SkySenseSize:
    """From the HR encoder and (width, depth, heads) of the series' encoders and of the fusion."""
    aligned = hr.widths[-1]
    s2, s1 = (SeriesSize(name, *series, aligned=aligned, image=image) for name in ("S2L2A", "S1GRD"))
    return SkySenseSize(hr, s2, s1, FusionSize(aligned, *fusion))


_HUGE = SwinSize((352, 704, 1408, 2816), (2, 2, 18, 2), (8, 16, 32, 64), extra_norm=6)
_LARGE = SwinSize((192, 384, 768, 1536), (2, 2, 18, 2), (6, 12, 24, 48))
_NANO = SwinSize((32, 64, 128), (2, 2, 2), (2, 4, 8), (4, 4, 4), (0, 0, 0), patch=8)

WHOLE: dict[str, SkySenseSize] = {
    "skysense_nano": _whole(_NANO, (64, 2, 4), (64, 2, 4), image=16),
    "skysense_small": _whole(_LARGE, (768, 12, 12), (768, 12, 12)),
    "skysense_huge": _whole(_HUGE, (1024, 24, 16), (1024, 24, 16)),
}
"""Registered name -> sizes."""

PARTS = ("hr", "s2", "s1", "head_s2", "head_s1", "fusion")
"""The public files that make a whole model, and the attributes that hold their parameters."""

PART_MODELS: dict[str, str] = {
    "skysense_backbone_hr": "hr",
    "skysense_backbone_s2": "s2",
    "skysense_backbone_s1": "s1",
    "skysense_head_s2": "head_s2",
    "skysense_head_s1": "head_s1",
    "skysense_fusion": "fusion",
    "skysensepp_head_s2": "head_s2",
    "skysensepp_head_s1": "head_s1",
    "skysensepp_fusion": "fusion",
}
"""Registered name -> which part of `skysense_huge` it is; the parts of SkySense++ named here have the same sizes."""


def part_size(part: str) -> SwinSize | SeriesSize | FusionSize:
    """Sizes of a part of `skysense_huge`."""
    return getattr(WHOLE["skysense_huge"], part.removeprefix("head_"))
