"""Weight maps: order, shapes and bijectivity."""

import numpy as np
import pytest
import toy_model

from terra_jax.weights.rules import Fixed, Rule, Tied, WeightMap, linear, norm, table, torch_shapes


def test_keys_come_block_by_block_in_the_public_order():
    blocks = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.index", "mlp.weight", "mlp.bias"]
    assert list(torch_shapes(toy_model.weight_map(), toy_model.template())) == [
        "cls_token",
        "embed.mod@224.weight",
        *(f"blocks.{i}.{name}" for i in range(3) for name in blocks),
        "scale.0.weight",
        "norm.weight",
        "norm.bias",
        "head.weight",
    ]


def test_shapes_follow_from_the_layouts():
    shapes = torch_shapes(toy_model.weight_map(), toy_model.template())
    assert shapes["cls_token"] == (1, 1, 8)
    assert shapes["embed.mod@224.weight"] == shapes["head.weight"] == (8, 3, 2, 2)
    assert shapes["blocks.2.attn.qkv.weight"] == (24, 8)
    assert shapes["blocks.2.attn.index"] == (4, 4)
    assert shapes["blocks.0.mlp.weight"] == (5, 8)


def leaf(*shape):
    return np.zeros(shape, np.float32)


def test_blocks_that_alternate_in_kind_interleave():
    weights = WeightMap(Rule("s.{2i}.a", "plain.a"), Rule("s.{2i+1}.a", "shifted.a"), Rule("end", "end"))
    shapes = torch_shapes(weights, {"plain": {"a": leaf(2, 1)}, "shifted": {"a": leaf(2, 1)}, "end": leaf(1)})
    assert list(shapes) == ["s.0.a", "s.1.a", "s.2.a", "s.3.a", "end"]


def test_rarer_rows_stand_in_their_own_blocks():
    weights = WeightMap(Rule("s.{2i}.a", "plain"), Rule("s.{2i+1}.a", "shifted"), Rule("s.{4i+3}.n", "norm"))
    shapes = torch_shapes(weights, {"plain": leaf(4, 1), "shifted": leaf(4, 1), "norm": leaf(2, 1)})
    assert list(shapes) == ["s.0.a", "s.1.a", "s.2.a", "s.3.a", "s.3.n", "s.4.a", "s.5.a", "s.6.a", "s.7.a", "s.7.n"]


def test_rows_beside_the_public_class_are_not_counted():
    weights, template = WeightMap(Rule("x", "a"), Rule("y", "b", beside=True)), {"a": leaf(4), "b": leaf(2)}
    assert torch_shapes(weights, template) == {"x": (4,)}
    assert list(table(weights, template, beside=True)) == ["x", "y"]


def test_stacks_of_unequal_length_and_a_tied_stack():
    weights = WeightMap(Rule("s.{i}.a", "a"), Rule("s.{i}.b", "b"), Tied("copy.{i}.a", to="s.{i}.a"))
    shapes = torch_shapes(weights, {"a": leaf(3, 2), "b": leaf(1, 4)})
    assert shapes == {"s.0.a": (2,), "s.0.b": (4,), "s.1.a": (2,), "s.2.a": (2,)} | {
        f"copy.{i}.a": (2,) for i in range(3)
    }


def test_ready_made_rows():
    assert [row.torch for row in (*linear("fc", "fc"), *linear("no", "no", bias=False), *norm("n", "n"))] == [
        "fc.weight",
        "fc.bias",
        "no.weight",
        "n.weight",
        "n.bias",
    ]


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ([], {}, "forgets a"),
        ([Rule("x", "a"), Rule("y", "a")], {}, "assigns a more than once"),
        ([Rule("x", "a"), Rule("y", "b")], {}, "names b"),
        ([Rule("x", "a")], {"training_only": ("a",)}, "names a"),
        ([Rule("x", "a"), Tied("x", to="x")], {}, "gives x twice"),
        ([Rule("x", "a"), Tied("y", to="z")], {}, "ties y to z"),
        ([Rule("x", "a"), Fixed("b.{i}.c", (1,), lambda: leaf(1))], {}, "number of blocks"),
        ([Rule("x", "a", "i o -> o i")], {}, "does not fit"),
    ],
)
def test_a_map_that_is_no_bijection_is_a_mistake(rows, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        torch_shapes(WeightMap(*rows, **options), {"a": leaf(4)})
