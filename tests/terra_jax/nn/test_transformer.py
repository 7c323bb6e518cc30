import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from terra_jax.errors import ConfigError
from terra_jax.nn.linear import LayerNorm, Linear
from terra_jax.nn.patches import patchify
from terra_jax.nn.stacking import Stack
from terra_jax.nn.transformer import VIT, Attention, Block, CrossAttention, Style, attend, drop_path, feed_forward
from terra_jax.parallel.flops import count_flops


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(1), (2, 5, 32))


def _stack(remat="none", rate=0.0):
    return Stack(lambda r: Block(32, 4, rngs=r), 3, rngs=nnx.Rngs(0), remat=remat, drop_path=rate)


def test_scanned_blocks_equal_blocks_one_after_another(tokens):
    stack = _stack()
    graphdef, state = nnx.split(stack.blocks)
    expected, outputs = tokens, []
    for i in range(3):
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], state))
        expected = block(expected, 0.0, None)
        outputs.append(expected)
    last, every = stack(tokens, every=True)
    np.testing.assert_allclose(last, expected, atol=1e-5)
    np.testing.assert_allclose(every, jnp.stack(outputs), atol=1e-5)


def test_blocks_of_a_stack_differ_and_carry_the_layers_axis():
    kernel = _stack().blocks.mlp.up.kernel
    assert kernel.get_metadata()["axes"] == ("layers", "embed", "mlp")
    assert not np.allclose(kernel[...][0], kernel[...][1])


@pytest.mark.parametrize("policy", ["full", "dots"])
def test_rematerialisation_changes_no_gradient(tokens, policy):
    def gradient(remat):
        graphdef, state = nnx.split(_stack(remat, rate=0.2))
        loss = lambda state: jnp.square(nnx.merge(graphdef, state)(tokens, jax.random.key(3))[0]).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(state)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient(policy), gradient("none")
    )


def test_a_policy_that_keeps_products_recomputes_only_attention(tokens):
    def work(remat):
        graphdef, state = nnx.split(_stack(remat))
        loss = lambda state: nnx.merge(graphdef, state)(tokens)[0].sum()  # noqa: E731
        return count_flops(jax.make_jaxpr(jax.grad(loss))(state))

    (batch, number, width), depth = tokens.shape, 3
    # 3 + 1 + 4 maps of width x width; what the last one of a block gives is not needed again
    linear = 2 * depth * batch * number * 8 * width**2
    attention = 2 * depth * batch * 2 * number**2 * width
    assert work("dots") - work("none") == attention
    assert work("full") - work("none") == linear + attention


def test_an_unknown_remat_policy_is_named():
    with pytest.raises(ConfigError, match=r"'half'.*none, full, dots"):
        _stack("half")


def test_drop_path_zeroes_whole_samples_and_keeps_the_mean():
    x = jnp.ones((4000, 3))
    dropped = np.asarray(drop_path(x, 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    assert (dropped == dropped[:, :1]).all()
    assert abs(dropped.mean() - 1) < 0.03
    assert drop_path(x, 0.25, None) is x


def test_drop_path_grows_with_depth_and_needs_a_key(tokens):
    stack = _stack(rate=0.5)
    assert np.array_equal(stack(tokens)[0], _stack()(tokens)[0])
    assert not np.array_equal(stack(tokens, jax.random.key(1))[0], stack(tokens, jax.random.key(2))[0])


def test_norm_statistics_are_float32_and_survive_an_offset():
    norm = LayerNorm({"embed": 64}, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 64)) + 1000
    expected = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(x), expected, atol=1e-3)
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_linear_contracts_several_axes():
    layer = Linear({"heads": 2, "head_dim": 3}, {"embed": 4}, rngs=nnx.Rngs(0))
    x = jnp.arange(12.0).reshape(2, 2, 3)
    expected = x.reshape(2, 6) @ layer.kernel[...].reshape(6, 4)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-6)
    assert Linear({"a": 2}, {"b": 2}, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)(jnp.ones(2)).dtype == jnp.bfloat16


def test_patches_are_row_major_and_the_rest_is_left_out():
    image = jnp.arange(5 * 7).reshape(1, 5, 7, 1)
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 4)
    assert patches[0, 1].tolist() == [2, 3, 9, 10]


def test_masks_leave_what_the_visible_keys_alone_would_give(tokens):
    call = jax.jit(lambda layer, *arguments: layer(*arguments))
    layer = Attention(32, 4, rngs=nnx.Rngs(0))
    seen = np.array([[True, False, True, True, False], [False, True, True, False, True]])
    alone = call(layer, tokens[seen].reshape(2, 3, 32))
    np.testing.assert_allclose(call(layer, tokens, seen)[seen], alone.reshape(6, 32), atol=1e-5)
    each = np.tril(np.ones((2, 5, 5), bool))
    np.testing.assert_allclose(call(layer, tokens, each)[:, 2], call(layer, tokens[:, :3])[:, 2], atol=1e-5)
    cross = CrossAttention(32, 4, rngs=nnx.Rngs(0))
    expected = call(cross, tokens, tokens[:, :3])
    np.testing.assert_allclose(call(cross, tokens, tokens, each[:, 2]), expected, atol=1e-5)


def test_a_query_that_sees_nothing_gets_zeros_and_passes_no_gradient():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2, 4, 8))
    mask = jnp.ones((1, 4, 4), bool).at[0, 1].set(False)
    attended, gradient = jax.value_and_grad(lambda q: jnp.square(attend(q, k, v, mask)).sum())(q)
    assert np.isfinite(attended) and not attend(q, k, v, mask)[0, 1].any()
    assert not gradient[0, :, 1].any() and np.isfinite(gradient).all() and gradient.any()


def test_styles_decide_gates_and_biases(tokens):
    gated = feed_forward(32, 48, rngs=nnx.Rngs(0), style=Style(bias=False, gated=True))
    kernels = (layer.kernel[...] for layer in (gated.gate, gated.up, gated.down))
    gate, up, down = kernels
    expected = (jax.nn.sigmoid(tokens @ gate) * (tokens @ gate) * (tokens @ up)) @ down
    np.testing.assert_allclose(gated(tokens), expected, atol=1e-5)
    block = Block(32, 4, rngs=nnx.Rngs(0), hidden=48, style=Style(bias=False, norm_bias=False))
    assert block.norm1.bias is block.attention.qkv.bias is block.mlp.down.bias is None
    assert block.mlp.up.kernel.shape == (32, 48) and VIT.bias and VIT.norm_bias and not VIT.gated
