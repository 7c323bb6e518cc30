"""Layout patterns: the arithmetic is einops', the inverse and the shapes are checked here."""

import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terra_jax.weights.layouts import Layout


@st.composite
def layouts(draw):
    """A random pattern with the lengths of its axes."""
    axes = draw(st.lists(st.sampled_from(string.ascii_lowercase), min_size=1, max_size=5, unique=True))
    sizes = {axis: draw(st.integers(1, 4)) for axis in axes}
    sides = []
    for _ in range(2):
        order, side = draw(st.permutations(axes)), []
        while order:
            count = draw(st.integers(1, len(order)))
            group, order = order[:count], order[count:]
            side.append(group[0] if count == 1 else f"({' '.join(group)})")
        if draw(st.booleans()):
            side.insert(draw(st.integers(0, len(side))), "1")
        sides.append(" ".join(side))
    return " -> ".join(sides), sizes


def lengths(side: str, sizes: dict[str, int]) -> tuple[int, ...]:
    groups = side.replace("(", " ( ").replace(")", " ) ").split()
    shape, inside = [], None
    for token in groups:
        if token == "(":
            inside = 1
        elif token == ")":
            shape.append(inside)
            inside = None
        elif inside is None:
            shape.append(sizes.get(token, 1))
        else:
            inside *= sizes[token]
    return tuple(shape)


@settings(max_examples=200, deadline=None)
@given(layouts())
def test_there_and_back_is_the_identity(case):
    pattern, sizes = case
    layout = Layout(pattern)
    torch_shape, jax_shape = (lengths(side, sizes) for side in pattern.split("->"))
    array = np.arange(np.prod(torch_shape), dtype=np.float32).reshape(torch_shape)
    assert layout.torch_shape(jax_shape, sizes) == torch_shape
    there = layout.to_jax(array, jax_shape, sizes)
    assert there.shape == jax_shape
    np.testing.assert_array_equal(layout.to_torch(there, sizes), array)


def test_a_fused_projection_is_split_into_queries_keys_and_values():
    weight = np.arange(3 * 2 * 4 * 5).reshape(24, 5)
    kernel = Layout("(c h d) i -> i c h d").to_jax(weight, (5, 3, 2, 4), {})
    assert kernel[1, 2, 0, 3] == weight[2 * 8 + 0 * 4 + 3, 1]


def test_a_missing_length_is_inferred_from_the_others():
    assert Layout("d c p q -> (p q c) d").torch_shape((2 * 2 * 12, 7), {"p": 2, "q": 2}) == (7, 12, 2, 2)


@pytest.mark.parametrize("pattern", ["a b -> a", "a a -> a", "a -> a b"])
def test_a_pattern_that_loses_an_axis_is_a_mistake(pattern):
    with pytest.raises(ValueError, match="same axes once"):
        Layout(pattern)


@pytest.mark.parametrize(
    ("shape", "sizes"), [((6,), {}), ((6, 2), {"a": 2}), ((6,), {"a": 4}), ((6,), {"a": 2, "b": 2})]
)
def test_a_shape_that_does_not_fit_is_a_mistake(shape, sizes):
    with pytest.raises(ValueError, match="does not fit"):
        Layout("a b -> (a b)").torch_shape(shape, sizes)
