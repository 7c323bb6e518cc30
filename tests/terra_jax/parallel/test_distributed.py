"""What can be seen of several processes from one; `training/test_several.py` starts them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from terra_jax.errors import ConfigError
from terra_jax.parallel import distributed
from terra_jax.parallel.distributed import Group, batch_share, fetch, joined
from terra_jax.parallel.mesh import make_mesh
from terra_jax.parallel.shardings import batch_sharding


def layout(*rows):
    """A batch's sharding: for each device in turn, (process, part of the batch) out of as many parts as there are."""
    parts = max(part for _, part in rows) + 1
    width = len(rows) // parts
    return SimpleNamespace(
        num_devices=len(rows),
        devices_indices_map=lambda shape: {
            Device(process): (slice(part * width, (part + 1) * width),) for process, part in rows
        },
    )


class Device:
    def __init__(self, process_index):
        self.process_index = process_index


def shares(sharding, count, monkeypatch):
    found = []
    for index in range(count):
        monkeypatch.setattr(distributed.jax, "process_index", lambda index=index: index)
        found.append(batch_share(sharding))
    return found


def test_processes_feed_equal_parts_of_a_batch(monkeypatch):
    plain = layout((0, 0), (0, 1), (1, 2), (1, 3))
    assert shares(plain, 2, monkeypatch) == [(0, 2), (1, 2)]
    interleaved = layout((0, 0), (1, 1), (0, 2), (1, 3))
    assert shares(interleaved, 2, monkeypatch) == [(0, 2), (1, 2)]
    tensor_across = layout((0, 0), (1, 0), (2, 1), (3, 1))
    assert shares(tensor_across, 4, monkeypatch) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    uneven = layout((0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 0))
    with pytest.raises(ConfigError, match="processes would hold uneven parts"):
        shares(uneven, 4, monkeypatch)


def test_one_process_agrees_with_itself():
    group = Group()
    assert (group.index, group.count, group.is_first) == (0, 1, True)
    assert group.gather("this", {"a": 1}) == [{"a": 1}] and group.agree("that", lambda: 3) == 3
    group.barrier("nothing")
    assert group.failure() is None and group.called(0) == "process 0"
    assert batch_share(batch_sharding(make_mesh())) == (0, 1)
    with joined(None):
        pass


def test_results_come_whole():
    placed = jax.device_put(np.arange(16.0), batch_sharding(make_mesh()))
    result = fetch({"a": jax.jit(lambda x: x + 1)(placed), "b": np.ones(2)})
    np.testing.assert_array_equal(result["a"], np.arange(1.0, 17))
    assert all(isinstance(leaf, np.ndarray) for leaf in result.values())
