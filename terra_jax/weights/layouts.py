"""Layouts: how one PyTorch tensor is arranged in JAX, as an einops pattern that is run in either direction."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import einops
import numpy as np

Group = tuple[str, ...]
TOKEN = re.compile(r"\(([^()]*)\)|(\S+)")


@dataclass(frozen=True)
class Layout:
    """A pattern "torch axes -> jax axes" such as "(c h d) i -> i c h d"; "1" is an axis of length one."""

    pattern: str

    def __post_init__(self):
        named = [sorted(axis for group in side for axis in group if axis != "1") for side in _sides(self.pattern)]
        if named[0] != named[1] or len(set(named[0])) != len(named[0]):
            raise ValueError(f"layout {self.pattern!r} must name the same axes once on both sides")

    def torch_shape(self, jax_shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in PyTorch of what has `jax_shape` in JAX; `sizes` gives axes that JAX does not tell apart."""
        axes = self._axes(jax_shape, sizes)
        return tuple(prod(axes[axis] for axis in group) for group in _sides(self.pattern)[0])

    def to_jax(self, array: np.ndarray, jax_shape: tuple[int, ...], sizes: Mapping[str, int]) -> np.ndarray:
        """Rearranges a tensor of PyTorch's for JAX."""
        return self._rearrange(array, self.pattern, jax_shape, sizes)

    def to_torch(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Rearranges an array of JAX's for PyTorch."""
        left, right = self.pattern.split("->")
        return self._rearrange(array, f"{right} -> {left}", array.shape, sizes)

    def _rearrange(
        self, array: np.ndarray, pattern: str, jax_shape: tuple[int, ...], sizes: Mapping[str, int]
    ) -> np.ndarray:
        axes = self._axes(jax_shape, sizes)
        return einops.rearrange(array, pattern, **{axis: size for axis, size in axes.items() if axis != "1"})

    def _axes(self, jax_shape: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int]:
        """The length of every axis, from the shape on the JAX side."""
        groups = _sides(self.pattern)[1]
        if len(groups) != len(jax_shape):
            raise ValueError(f"layout {self.pattern!r} does not fit an array of shape {jax_shape}")
        axes = {"1": 1, **sizes}
        for group, length in zip(groups, jax_shape, strict=True):
            unknown = [axis for axis in group if axis not in axes]
            known = prod(axes[axis] for axis in group if axis in axes)
            if len(unknown) > 1 or (not unknown and known != length) or (unknown and (not known or length % known)):
                raise ValueError(f"layout {self.pattern!r} with sizes {dict(sizes)} does not fit shape {jax_shape}")
            axes.update({axis: length // known for axis in unknown})
        return axes


@cache
def _sides(pattern: str) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """The groups of axes on the two sides of a pattern: "(c h) i" is (("c", "h"), ("i",))."""
    left, right = pattern.split("->")
    return _groups(left), _groups(right)


def _groups(side: str) -> tuple[Group, ...]:
    return tuple(tuple((grouped or single).split()) for grouped, single in TOKEN.findall(side))
