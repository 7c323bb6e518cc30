import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from terra_jax.errors import ConfigError
from terra_jax.parallel.mesh import make_mesh
from terra_jax.parallel.rules import resolve


def test_the_free_axis_takes_what_remains():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    mesh = make_mesh(2, -1, 2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert dict(make_mesh(devices=jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((3, 1, 1), "mesh.data=3, mesh.fsdp=1, mesh.tensor=1 does not fit 8 device"),
        ((-1, 3, 1), "mesh.fsdp=3.* does not fit 8 device.*use sizes out of .1, 2, 4, 8."),
        ((2, 2, 1), "does not fit 8"),
        ((-1, -1, 1), "mesh.data and mesh.fsdp are both -1"),
        ((0, 1, 1), "mesh.data=0 is not a number of devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_named(axes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(*axes)


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("layers", "embed", "mlp"), (12, 64, 256), (None, "fsdp", "tensor")),
        (("layers", "mlp", "embed"), (12, 256, 64), (None, "tensor", "fsdp")),
        (("embed", "embed"), (64, 64), ("fsdp", None)),  # the axis is taken
        (("embed", "mlp"), (63, 256), (None, "tensor")),  # does not divide: replicated
        (("embed", "mlp"), (64, 3), ("fsdp", None)),
        (("mlp",), (252,), ("tensor",)),
        (("mlp", "patch"), (254, 8), ("tensor", None)),
        (("regions", "tokens"), (16, 8), (("fsdp", "tensor"), None)),  # both axes together
        (("regions", "mlp"), (12, 8), ("fsdp", "tensor")),  # not by eight, but by four
        (("something new", None), (8, 8), (None, None)),
        ((), (), ()),
    ],
)
def test_the_first_fitting_rule_wins(names, shape, expected):
    assert resolve(names, shape, {"data": 1, "fsdp": 4, "tensor": 2}) == PartitionSpec(*expected)


def test_a_rule_that_does_not_fit_leaves_the_dimension_to_the_next():
    assert resolve(("mlp",), (9,), {"tensor": 2, "fsdp": 3}) == PartitionSpec("fsdp")
    with pytest.raises(ValueError, match="1 logical names"):
        resolve(("mlp",), (2, 2), {"tensor": 2})
