"""The sizes of TerraFM (paper, section 4 and public builders; `nano` and `small` are ours)."""

from dataclasses import dataclass

STEM_RATIO = 3
"""Width of the modality stems, in widths of the transformer: fixed in the public class."""


@dataclass(frozen=True)
class Variant:
    """Hyper-parameters of one size.

    Attributes:
        width, depth, heads: of the vision transformer.
        patch: pixels per side of a patch.
        image: pixels per side of the image that the position table was made for.
        queries: learned queries of the cross-modal fusion.
        fusion_heads: heads of the cross-modal fusion (unpublished; Panopticon's value).
    """

    width: int
    depth: int
    heads: int
    patch: int = 16
    image: int = 224
    queries: int = 5
    fusion_heads: int = 16


VARIANTS = {
    "terrafm_nano": Variant(width=64, depth=4, heads=2, patch=4, image=16, queries=2, fusion_heads=8),
    "terrafm_small": Variant(width=384, depth=12, heads=6),
    "terrafm_base": Variant(width=768, depth=12, heads=12),
    "terrafm_large": Variant(width=1024, depth=24, heads=16),
}
