import importlib.util

import pytest

from terra_jax.errors import ConfigError
from terra_jax.parallel.hardware import chip_of
from terra_jax.parallel.mesh import make_mesh
from terra_jax.parallel.topology import SHAPES, topology_devices


@pytest.mark.parametrize(
    ("name", "slices", "devices", "chip"),
    [
        ("v5e:16x16", 1, 256, "v5e"),
        ("v5p:4x4x4", 1, 64, "v5p"),
        ("v6e:2x4", 1, 8, "v6e"),
        ("v4:2x2x2", 1, 8, "v4"),  # one device a chip
        ("tpu7x:2x2x1", 1, 8, "tpu7x"),  # two
        ("v5e:4x4", 2, 32, "v5e"),
        ("v5e:1x1", 1, 1, "v5e"),
    ],
)
def test_topologies_by_name(libtpu, name, slices, devices, chip):
    found = topology_devices(name, slices)
    assert len(found) == devices and chip_of(found[0].device_kind).name == chip


@pytest.mark.parametrize("name", [f"{chip}:{shapes[-1]}" for chip, shapes in SHAPES.items()])
def test_a_mesh_lies_on_any_torus(libtpu, name):
    devices = topology_devices(name)
    mesh = make_mesh(fsdp=8, devices=devices)
    assert mesh.size == len(devices)
    neighbours = [tuple(device.coords) for device in mesh.devices[0, :, 0]]
    spans = [max(axis) - min(axis) + 1 for axis in zip(*neighbours, strict=True)]
    assert max(spans) <= 8 and len(set(neighbours)) in (4, 8)  # two devices of a chip have one place


def test_slices_lie_along_data(libtpu):
    mesh = make_mesh(fsdp=8, devices=topology_devices("v5e:4x4", 2))
    assert {device.slice_index for device in mesh.devices[0].flat} == {0}
    assert {device.slice_index for device in mesh.devices[-1].flat} == {1}
    with pytest.raises(ConfigError, match=r"mesh\.data=1 must be a multiple of the 2 slices"):
        make_mesh(data=1, fsdp=32, devices=topology_devices("v5e:4x4", 2))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("v5e-256", "v5e:16x16"),
        ("v5litepod-16", "v5e:4x4"),
        ("v9:2x2", "v6e:2x2"),
        ("v5p:4x4", "v5p:4x4x4"),
        ("v7x:2x2x1", "tpu7x:2x2x1"),
        ("nonsense", "v5e:16x16"),
        ("v5e:3x3", "not divisible"),
    ],
)
def test_an_unknown_topology_is_refused_with_its_neighbours(libtpu, name, near):
    with pytest.raises(ConfigError, match=f"unknown topology '{name}'; did you mean .*{near}"):
        topology_devices(name)


def test_without_the_compiler_its_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'libtpu.* is not installed; pip install "terra_jax\[tpu\]"'):
        topology_devices("v5e:2x2")
    with pytest.raises(ConfigError, match="--slices 0 is too small"):
        topology_devices("v5e:2x2", 0)
