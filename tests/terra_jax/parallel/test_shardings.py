import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from terra_jax import registry
from terra_jax.nn.linear import Linear
from terra_jax.parallel import shardings
from terra_jax.parallel.mesh import make_mesh
from terra_jax.training.build import tree_mode


def _abstract(make):
    with tree_mode():
        return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


@pytest.mark.parametrize("name", ["terrafm_nano", "terramind_v1_tokenizer_s2l2a", "skysense_nano"])
def test_every_parameter_of_a_real_model_has_names(name):
    axes = shardings.logical_axes(_abstract(registry.family(name).maker(name)))
    leaves = jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    unnamed = [jax.tree_util.keystr(path) for path, names in leaves if None in names]
    assert leaves and not unnamed


def test_a_real_layer_is_split_over_the_mesh():
    layer = _abstract(lambda rngs: Linear({"embed": 16}, {"mlp": 32}, rngs=rngs))
    mesh, axes = make_mesh(data=1, fsdp=4, tensor=2), shardings.logical_axes(layer)
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    placed = shardings.parameter_shardings(axes, params, mesh)
    assert placed["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert placed["bias"].spec == PartitionSpec("tensor")
    moments = {"mu": params, "count": np.zeros(())}
    mirrored = shardings.mirrored_shardings(moments, params, placed, mesh)
    assert mirrored["mu"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert mirrored["count"].spec == PartitionSpec()
